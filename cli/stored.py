"""What the disk of a stopped node still answers: its rounds, log, audit log, and neighbours as last known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from p2pfl.errors import StoreError
from p2pfl.ids import RunId

from .home import STORE
from .terminal import Terminal

__all__ = ["is_answered_by_disk", "stored_audit", "stored_rounds", "stored_facts", "stored_peers"]

# Events read at a time: one page of some hundred kilobytes.
_PAGE = 1_000


def is_answered_by_disk(terminal: Terminal, *, live_only: bool = False) -> bool:
    """Whether the node is stopped and left something on its disk, which the person is then told.

    live_only: the question is about what is to come, so only a running node answers it.
    What nobody answers is the caller's NotRunningError, from asking the node all the same.
    """
    from .client import ControlClient

    with ControlClient(terminal.home) as node:
        if live_only or node.is_running() or not (terminal.home / STORE).exists():
            return False
    terminal.note("the node is not running; this is what its disk holds")
    return True


def stored_rounds(home: Path, since: int) -> Iterator[dict[str, Any]]:
    """The rounds from `since` on, of the run that was active last."""
    from p2pfl.node.store import Store

    with Store.open(home) as store:
        runs = store.runs()
        if not runs:
            return
        run = RunId(runs[0]["run"])
        measured: dict[int, dict[str, float]] = {}
        for metric in store.metrics(run):
            measured.setdefault(metric["round"], {})[metric["name"]] = metric["value"]
        for row in store.rounds(run, since):
            yield {**row, "metrics": measured.get(row["round"], {})}


def stored_facts(home: Path, since: int) -> Iterator[dict[str, Any]]:
    """The facts numbered above `since`, oldest first."""
    from p2pfl.node.store import Store

    with Store.open(home) as store:
        while page := store.events(since, _PAGE):
            yield from page
            since = page[-1]["seq"]


def stored_peers(home: Path) -> list[dict[str, Any]]:
    """The neighbours at the last commit of the run that was active last, under the keys of `/v1/peers`."""
    from p2pfl.node.store import Store

    with Store.open(home) as store:
        runs = store.runs()
        rows = store.peers(RunId(runs[0]["run"])) if runs else []
    return [{"peer_id": row.pop("peer"), "last_seen": row.pop("seen_at"), **row} for row in rows]


@contextmanager
def stored_audit(home: Path) -> Iterator[Callable[[str, int], dict[str, Any]]]:
    """What answers for the audit log of the run that was active last, as `/v1/audit` does."""
    from p2pfl.node.audit_answers import answer
    from p2pfl.node.store import Store

    with Store.open(home) as store:
        runs = store.runs()
        if not runs:
            raise StoreError(f"{home} holds no run yet; `p2pfl node start` begins one")
        yield partial(answer, store, RunId(runs[0]["run"]))
