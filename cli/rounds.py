"""`p2pfl rounds` and `p2pfl log`: what happened, from the running node or from its disk."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from .stored import is_answered_by_disk, stored_facts, stored_rounds
from .terminal import Terminal, clean, pass_terminal

__all__ = ["log", "rounds"]

_COLUMNS = ("round", "at", "peers", "seconds", "w", "loss", "bytes_sent", "bytes_received")
_WIDTH = 10
# Characters of one field on one line; --json has it whole.
_LONGEST = 64
_DIGEST = re.compile("[0-9a-f]{64}")


def _moment(at: Any) -> str | None:
    return None if at is None else datetime.fromtimestamp(float(at), UTC).strftime("%H:%M:%S")


def _cells(row: Mapping[str, Any]) -> list[str]:
    """A round as text, one cell a column, the site's own metrics last."""
    cells = []
    for name in _COLUMNS:
        value = row.get(name)
        if name == "at":
            value = _moment(value)
        cells.append("-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value))
    metrics = row.get("metrics") or (row.get("fields") or {}).get("metrics") or {}
    return [*cells, "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if value is not None)]


def _lines(found: Iterator[dict[str, Any]], form: str) -> Iterator[str]:
    """Rounds in `form`, a header first where the form has one."""
    if form == "table":
        names = (name.removeprefix("bytes_") for name in (*_COLUMNS, "metrics"))
        yield "".join(name.ljust(_WIDTH) for name in names).rstrip()
    elif form == "csv":
        yield _csv((*_COLUMNS, "metrics"))
    for row in found:
        if form == "json":
            yield json.dumps({"v": 1, **row})
        elif form == "csv":
            metrics = row.get("metrics") or {}
            yield _csv([*(row.get(name) for name in _COLUMNS), json.dumps(metrics) if metrics else ""])
        else:
            yield "".join(cell.ljust(_WIDTH) for cell in _cells(row)).rstrip()


def _csv(cells: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def _live_rounds(terminal: Terminal, since: int, follow: bool) -> Iterator[dict[str, Any]]:
    """The rounds the running node knows, and with `follow` those to come."""
    from .client import ControlClient

    with ControlClient(terminal.home) as node:
        last = since - 1
        # Asked before the events begin, so that no round falls between the two.
        for row in node.get("/v1/rounds", since=since)["rounds"]:
            last = max(last, row["round"])
            yield row
        for fact in node.events() if follow else ():
            number = fact["fields"].get("round")
            if fact["event"] == "round committed" and number is not None and number > last:
                last = number
                yield fact["fields"]


@click.command(epilog="Example: p2pfl rounds --follow, or p2pfl rounds --format csv > rounds.csv")
@click.option("--follow", is_flag=True, help="Go on with the rounds to come, until the node stops.")
@click.option("--since", type=click.IntRange(min=0), default=0, help="The first round to show.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="For people, for a spreadsheet, or one object a line.",
)
@pass_terminal
def rounds(terminal: Terminal, follow: bool, since: int, form: str) -> None:
    """The rounds so far, one line each.

    From the running node; when it does not run, from its disk.
    """
    if is_answered_by_disk(terminal, live_only=follow):
        found = stored_rounds(terminal.home, since)
    else:
        found = _live_rounds(terminal, since, follow)
    for line in _lines(found, "json" if terminal.json else form):
        click.echo(line)


def _live_facts(terminal: Terminal, since: int, follow: bool) -> Iterator[dict[str, Any]]:
    from .client import ControlClient

    with ControlClient(terminal.home) as node:
        yield from node.events(since, follow=follow)


_COLOURS = {"debug": "bright_black", "info": "green", "warning": "yellow", "error": "red"}


def _sentence(fact: Mapping[str, Any]) -> str:
    fields = "  ".join(
        f"{name}={_short(value)}" for name, value in fact["fields"].items() if value is not None
    )
    moment, level = _moment(fact.get("at")), str(fact["level"])
    coloured = click.style(f"{level:<7}", fg=_COLOURS.get(level))
    return (
        f"{fact['seq']:>6}  {f'{moment}  ' if moment else ''}{coloured}  {fact['event']}  {fields}".rstrip()
    )


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else clean(value)
    if _DIGEST.fullmatch(text):
        return text[:8]
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


@click.command(epilog="Example: p2pfl log --follow")
@click.option("--follow", is_flag=True, help="Go on with what comes, until the node stops.")
@click.option("--since", type=click.IntRange(min=0), default=0, help="The number after which to begin.")
@pass_terminal
def log(terminal: Terminal, follow: bool, since: int) -> None:
    """What happened, newest last.

    From the running node, as far back as it remembers; when it does not run, from its disk.
    """
    if is_answered_by_disk(terminal, live_only=follow):
        found = stored_facts(terminal.home, since)
    else:
        found = _live_facts(terminal, since, follow)
    for fact in found:
        terminal.result(fact, _sentence(fact))
