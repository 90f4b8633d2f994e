"""`p2pfl`: the commands by name, loaded when asked for, and the one place where errors become exit codes."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from p2pfl.errors import ConfigError

from .exits import EXIT_CODES, problem_of
from .terminal import Terminal, add_global_flags

__all__ = ["COMMANDS", "FOREIGN_DISTRIBUTION", "foreign_version", "main"]

# PyPI's `p2pfl` is another project whose files land on top of ours; ours is `p2pfl-node`.
FOREIGN_DISTRIBUTION = "p2pfl"

# name: where it is, and its line in --help (so that help loads none of them).
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": (
        "p2pfl.cli.demo:demo",
        "Start several real nodes here, let them train over loopback, and judge the result.",
    ),
    "node": (
        "p2pfl.cli.node:node",
        "The site's node: init, start, stop, backup, restore, rotate-key, service.",
    ),
    "run": (
        "p2pfl.cli.run:run",
        "The agreement: new, check, hash, join, amend, probe, pause, resume, leave, export.",
    ),
    "trust": (
        "p2pfl.cli.trust:trust",
        "Who is believed and who is told: list, invite, admit, renew, set, ban, forget, audit.",
    ),
    "status": ("p2pfl.cli.status:status", "What the node does now."),
    "peers": ("p2pfl.cli.status:peers", "The members, and how the edges to them stand."),
    "ping": ("p2pfl.cli.status:ping", "Reach one member and time it."),
    "topology": ("p2pfl.cli.status:topology", "Who sends to whom in the present round."),
    "rounds": ("p2pfl.cli.rounds:rounds", "The rounds so far, one line each."),
    "log": ("p2pfl.cli.rounds:log", "What happened, newest last."),
    "predict": ("p2pfl.cli.predict:predict", "Classify rows by the model of this site's last commit."),
    "simulate": ("p2pfl.cli.simulate:simulate", "Run a scenario, a file or one that is shipped."),
    "doctor": ("p2pfl.cli.doctor:doctor", "Check this machine and this node: result, cause, cure."),
    "completion": ("p2pfl.cli.completion:completion", "Print the completion script of a shell."),
}


def foreign_version() -> str | None:
    """The version of the other project named p2pfl when it is installed beside ours, else None."""
    from importlib import metadata

    for found in metadata.distributions(name=FOREIGN_DISTRIBUTION):
        return found.version
    return None


def _print_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from importlib import metadata

        click.echo(f"p2pfl {metadata.version('p2pfl-node')} (p2pfl-node)")
        context.exit()


class _CommandLine(click.Group):
    """A click group whose commands are loaded by name, and whose errors end in `exits.problem_of`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002, click's signature
        return [name for name, (place, _) in COMMANDS.items() if _exists(place)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002, likewise
        place, _ = COMMANDS.get(cmd_name, ("", ""))
        if not place or not _exists(place):
            return None
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return add_global_flags(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)] or [("", "")])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), text) for code, text in EXIT_CODES.items()])
        super().format_epilog(ctx, formatter)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: ARG002, errors and exits are handled here
        windows_expand_args: bool = True,  # noqa: ARG002, there is no shell to help on Windows
        **extra: Any,
    ) -> NoReturn:
        arguments = list(sys.argv[1:] if args is None else args)
        terminal = extra.setdefault("obj", Terminal())
        try:
            code = super().main(
                arguments,
                prog_name or "p2pfl",
                complete_var or "_P2PFL_COMPLETE",
                standalone_mode=False,
                **extra,
            )
        except Exception as error:
            # A wrong flag stops parsing before --json was seen.
            terminal.json = terminal.json or "--json" in arguments
            if terminal.verbosity >= 2:
                traceback.print_exc()
            problem = problem_of(error)
            terminal.problem(problem)
            sys.exit(int(problem.exit))
        sys.exit(int(code) if isinstance(code, int) else 0)


def _exists(place: str) -> bool:
    return importlib.util.find_spec(place.partition(":")[0]) is not None


@click.group(
    "p2pfl",
    cls=_CommandLine,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Example: p2pfl demo, or p2pfl node init && p2pfl run new --from torch . && p2pfl node start",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="The version."
)
@click.pass_context
def main(context: click.Context) -> None:
    """Serverless peer-to-peer federated learning."""
    version = foreign_version()
    # The doctor explains it instead.
    if version is not None and context.invoked_subcommand != "doctor":
        raise ConfigError(
            f"another project named p2pfl ({version}) is installed too, and overwrites our files; "
            "run `pip uninstall p2pfl` and then `pip install --force-reinstall p2pfl-node`"
        )


add_global_flags(main, hidden=False)

if __name__ == "__main__":
    main()
