"""The terminal: results on stdout, everything else on stderr, and the flags that say how."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from p2pfl.errors import ConfigError

from .exits import Problem

__all__ = ["Terminal", "add_global_flags", "clean", "columns", "pass_terminal"]


@dataclass(slots=True, kw_only=True)
class Terminal:
    """What the global flags said, and how to speak.  One per invocation, in click's `ctx.obj`."""

    home_flag: str | None = None
    node_flag: str | None = None
    json: bool = False
    quiet: bool = False
    verbosity: int = 0
    no_color: bool = False

    @property
    def home(self) -> Path:
        """The node's folder: --home, else P2PFL_HOME, else the user's data folder; below it --node."""
        from p2pfl.settings import home_of

        return home_of(self.home_flag, self.node_flag).absolute()

    @property
    def is_interactive(self) -> bool:
        """Whether a person sits at both ends, so that asking makes sense."""
        return sys.stdin.isatty() and sys.stderr.isatty()

    @property
    def color(self) -> bool | None:
        """What click.echo wants: False to strip, None to decide by the stream."""
        return False if self.no_color or os.environ.get("NO_COLOR") else None

    def node_command(self, words: str) -> str:
        """`p2pfl WORDS` with the flags that reach the same node, to be pasted."""
        flags = ""
        if self.home_flag:
            flags += f" --home {self.home_flag}"
        if self.node_flag:
            flags += f" --node {self.node_flag}"
        return f"p2pfl{flags} {words}"

    def result(self, value: Mapping[str, Any], text: str) -> None:
        """The command's result: `text` for a person, `value` as one JSON object a line with --json."""
        if self.json:
            self.line(value)
        elif text:
            click.echo(text, color=self.color)

    def line(self, value: Mapping[str, Any]) -> None:
        """One JSON object on stdout, flushed, with `"v": 1`."""
        click.echo(json.dumps({"v": 1, **value}, ensure_ascii=False))
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Progress, on stderr; silent with -q and --json."""
        if not self.quiet and not self.json:
            click.echo(text, err=True, color=self.color)

    def warn(self, text: str) -> None:
        """Something the person should know, on stderr."""
        click.echo(click.style("warning: ", fg="yellow") + text, err=True, color=self.color)

    def problem(self, problem: Problem) -> None:
        """An error, on stderr: two lines, or one JSON object with --json."""
        if self.json:
            error = {"code": problem.code, "message": problem.message, "hint": problem.hint}
            click.echo(json.dumps({"v": 1, "error": error, "exit": int(problem.exit)}), err=True)
            return
        click.echo(click.style("error: ", fg="red") + problem.message, err=True, color=self.color)
        if problem.hint:
            click.echo(click.style("hint: ", fg="cyan") + problem.hint, err=True, color=self.color)

    def confirm(self, question: str, yes: bool) -> bool:
        """Whether to go on: --yes, or a person's answer.  Raises ConfigError when there is nobody to ask."""
        if yes:
            return True
        if not self.is_interactive:
            raise ConfigError("this needs consent, and there is no terminal to ask on; add --yes")
        return click.confirm(question, default=False, err=True)


pass_terminal = click.make_pass_decorator(Terminal, ensure=True)


def clean(value: Any) -> str:
    """`value` as text that cannot move the cursor: what peers wrote may hold control characters."""
    return "".join(character if character.isprintable() else "?" for character in str(value))


def columns(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """`rows` under `header`, aligned by spaces, one line each: readable, and easy to cut and grep."""
    table = [[clean(cell) if cell is not None else "-" for cell in row] for row in (header, *rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    )


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keep a flag wherever it was given: before the command, after it, or both (then the last one)."""
    if value and not context.resilient_parsing:
        terminal = context.ensure_object(Terminal)
        setattr(terminal, str(parameter.name), value)


def _global_flags(hidden: bool) -> list[click.Option]:
    def flag(names: list[str], **settings: Any) -> click.Option:
        return click.Option(names, expose_value=False, callback=_remember, hidden=hidden, **settings)

    return [
        flag(["--home", "home_flag"], metavar="PATH", help="The node's folder (P2PFL_HOME)."),
        flag(["--node", "node_flag"], metavar="NAME", help="A node below that folder, where several live."),
        flag(["--json", "json"], is_flag=True, help="Print one JSON object per result."),
        flag(["-q", "--quiet", "quiet"], is_flag=True, help="No progress on stderr."),
        flag(["-v", "--verbose", "verbosity"], count=True, help="More; -vv shows tracebacks."),
        flag(["--no-color", "no_color"], is_flag=True, help="No colours (NO_COLOR)."),
    ]


def add_global_flags(command: click.Command, *, hidden: bool = True) -> click.Command:
    """Let `command`, and all below it, take the global flags that it does not define itself."""
    taken = {name for parameter in command.params for name in parameter.opts}
    command.params += [flag for flag in _global_flags(hidden) if not taken & set(flag.opts)]
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            add_global_flags(inner)
    return command
