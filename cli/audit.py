"""`p2pfl trust audit`: what this site decided and sent, whether its log is whole, who told two stories."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from p2pfl.errors import ConfigError, RemoteError, StoreError
from p2pfl.ids import PeerId, RunId, short

from . import home as homes
from .exits import Exit
from .stored import is_answered_by_disk, stored_audit
from .terminal import Terminal, clean, columns, pass_terminal

if TYPE_CHECKING:
    from p2pfl.trust.audit import Signed
    from p2pfl.trust.decisions import Row

__all__ = ["audit"]

_FILE = click.Path(dir_okay=False, path_type=Path)
_EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)
# Asks for a part of the log, from row `since` on.
Ask: TypeAlias = Callable[[str, int], dict[str, Any]]


@click.group(epilog="Example: p2pfl trust audit verify --against hungarian.witness")
def audit() -> None:
    """What was decided here and sent from here: show, verify, outbound, privacy; witness, proofs, check."""


@contextmanager
def _asking(terminal: Terminal) -> Iterator[Ask]:
    """The running node, or the disk of a stopped one."""
    from .client import ControlClient

    if is_answered_by_disk(terminal):
        with stored_audit(terminal.home) as answer:
            yield answer
        return
    with ControlClient(terminal.home) as node:
        yield lambda part, since: node.get(f"/v1/audit/{part}", since=since)


def _rows(ask: Ask, since: int = 0) -> Iterator[dict[str, Any]]:
    while page := ask("decisions", since)["decisions"]:
        yield from page
        since = page[-1]["i"]


def _is(text: str, peer: str) -> bool:
    """Whether `text` is `peer`'s id, or its beginning or end."""
    return bool(text) and (peer.startswith(text) or peer.endswith(text))


def _write(path: Path, data: bytes) -> None:
    from p2pfl.node.snapshots import disk_errors

    with disk_errors(path):
        path.write_bytes(data)


_LINE = "{:>7}  {:<19}  {:>6}  {:<12}  {:<12}  {:<13}  {:<17}  {:>10}  {:>10}  {}"


def _line(row: dict[str, Any]) -> str:
    distance = "-" if row["distance"] is None else f"{row['distance']:.4g}"
    moment = datetime.fromtimestamp(row["at"], UTC).strftime("%Y-%m-%d %H:%M:%S")
    peer = short(PeerId(row["peer"])) if row["peer"] else "-"
    words = (clean(row[name]) for name in ("rule", "verdict"))
    amounts = f"{row['weight']:.4g}", distance, row["digest"][:8] or "-"
    return _LINE.format(row["i"], moment, row["round"], row["type"], peer, *words, *amounts)


@audit.command(epilog="Example: p2pfl trust audit show --round 12")
@click.option("--since", type=click.IntRange(min=0), default=0, help="The row after which to begin.")
@click.option("--peer", default="", help="Only rows about this id, or the beginning or end of one.")
@click.option("--round", "number", type=click.IntRange(min=0), help="Only rows of this round.")
@pass_terminal
def show(terminal: Terminal, since: int, peer: str, number: int | None) -> None:
    """What entered the model at what weight and by which rule, what was refused and why, and who was banned.

    From the running node; when it does not run, from its disk.
    """
    with _asking(terminal) as ask:
        if not terminal.json:
            names = ("row", "time", "round", "type", "peer", "rule", "verdict", "weight", "distance", "of")
            click.echo(_LINE.format(*names))
        for row in _rows(ask, since):
            if number in (None, row["round"]) and (not peer or _is(peer, row["peer"])):
                terminal.result(row, _line(row))


def _signed(path: Path) -> list[Signed]:
    """The statements in a file of `audit witness` or `audit proofs`.  Raises RemoteError, StoreError."""
    from p2pfl.node.snapshots import disk_errors
    from p2pfl.trust.audit import decode_witness

    with disk_errors(path):
        data = path.read_bytes()
    try:
        return decode_witness(data)
    except RemoteError as error:
        raise RemoteError(
            f"{path} is no file of `p2pfl trust audit witness` or `proofs`: {error}; ask its sender again"
        ) from error


def _held(path: Path, me: PeerId, run: RunId) -> dict[bytes, tuple[str, int]]:
    """Heads of this node's log that a neighbour holds, each with where that was said, and the round."""
    from p2pfl.witness import verified

    said = [statement for statement in map(verified, _signed(path)) if statement.sender == me]
    if not any(statement.run == run for statement in said):
        raise ConfigError(
            f"{path} holds no statement of this node in this run; "
            "a neighbour that was connected to it writes one with `p2pfl trust audit witness -o FILE`"
        )
    return {s.log_head: (str(path), s.round) for s in said if s.run == run and s.log_head}


def _own(state: dict[str, Any]) -> tuple[dict[bytes, tuple[str, int]], list[str]]:
    """The head in this node's own last statement, and what is wrong with that."""
    from p2pfl.trust.audit import decode_statement

    content = bytes.fromhex(state["statement"])
    if not content:
        return {}, []
    if hashlib.sha256(content).hexdigest() != state["hash"]:
        return {}, ["the last statement on the disk is not the one that this node's chain ends with"]
    stated = decode_statement(content)
    return ({stated.log_head: ("this node's own statement", stated.round)} if stated.log_head else {}), []


@audit.command(epilog="Example: p2pfl trust audit verify --against hungarian.witness")
@click.option(
    "--against", "files", multiple=True, type=_EXISTING, metavar="FILE", help="What a neighbour witnessed."
)
@pass_terminal
def verify(terminal: Terminal, files: tuple[Path, ...]) -> None:
    """Recompute the chain of the log and name the first bad row; exits with 1 when it is not intact.

    The end of the log is held against the last commit and this node's own last statement, and with --against
    every head that a neighbour holds (`p2pfl trust audit witness` there) must be in it.
    """
    from p2pfl.node.audit_answers import row_from
    from p2pfl.node.audit_table import MAX_DECISIONS
    from p2pfl.trust.decisions import verify as verified_chain

    with _asking(terminal) as ask:
        state = ask("state", 0)
        run, rows, head = RunId(state["run"]), int(state["rows"]), bytes.fromhex(state["head"])
        heads, problems = _own(state)
        me = homes.identity_of(terminal.home).peer_id if files else PeerId("")
        for path in files:
            heads = {**_held(path, me, run), **heads}
        committed: Iterator[Row] = (row_from(row) for row in _rows(ask) if row["i"] <= rows)
        found = verified_chain(committed, run, heads)
    if found.fault:
        problems.append(found.fault)
    elif (found.last, found.head) != (rows, head):
        problems.append(f"the log ends with row {found.last}, the last commit with row {rows}")
    if found.first > 1 and found.last - found.first + 1 < MAX_DECISIONS:
        problems.append(f"the rows before {found.first} are gone, though the last {MAX_DECISIONS} are kept")
    if not found.fault:
        problems += [
            f"no row has the head in {where}, round {number}: rows were changed or removed since then "
            "(or a backup was restored)"
            for held, (where, number) in heads.items()
            if held not in found.found and number >= found.first_round
        ]
    value = {
        "intact": not problems,
        "first": found.first,
        "last": found.last,
        "head": found.head.hex(),
        "held_against": len(heads),
        "problems": problems,
    }
    span = f"rows {found.first} to {found.last}, head {found.head.hex()[:16]}"
    text = f"intact: {span}, held against {len(heads)} statements"
    terminal.result(value, "\n".join(f"not intact: {problem}" for problem in problems) or text)
    if problems:
        click.get_current_context().exit(int(Exit.FAILED))


@audit.command(epilog="Example: p2pfl trust audit outbound --json")
@pass_terminal
def outbound(terminal: Terminal) -> None:
    """Every kind of message this site ever sent in this run, to whom, how often, and how many bytes.

    Counted when it is handed to the connection, a model when it is offered; what was sent between the last
    commit and a crash is missing.
    """
    with _asking(terminal) as ask:
        found = ask("outbound", 0)["outbound"]
    rows = [[short(PeerId(row["peer"])), row["kind"], row["messages"], row["bytes"]] for row in found]
    terminal.result({"outbound": found}, columns(rows, ("peer", "kind", "messages", "bytes")))


@audit.command(epilog="Example: p2pfl trust audit privacy --delta 1e-6")
@click.option(
    "--delta",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=1e-5,
    show_default=True,
    help="At which epsilon is told; below 1 / rows.",
)
@pass_terminal
def privacy(terminal: Terminal, delta: float) -> None:
    """What noise let out about each data set of this node, in all its runs, and what that comes to.

    A release is a round, or with dp-sgd a step; sigma is its noise multiplier, q its share of the rows.
    """
    import msgspec

    from p2pfl.trust.privacy import Account, epsilon_of

    with _asking(terminal) as ask:
        accounts = msgspec.convert(ask("privacy", 0)["accounts"], list[Account])
    found: list[dict[str, Any]] = [
        {**msgspec.to_builtins(one), "epsilon": epsilon_of(one, delta), "delta": delta} for one in accounts
    ]
    rows = [
        [one["data_set"][:40], *(part[name] for name in ("sigma", "q", "steps")), f"{one['epsilon']:.4g}"]
        for one in found
        for part in one["spent"]
    ]
    header = ("data set", "sigma", "q", "releases", "epsilon")
    text = columns(rows, header) if rows else "nothing was released under an agreement with noise"
    terminal.result({"accounts": found}, text)


@audit.command(epilog="Example: p2pfl trust audit witness -o hungarian.witness")
@click.option("-o", "output", type=_FILE, required=True, help="The file to write.")
@pass_terminal
def witness(terminal: Terminal, output: Path) -> None:
    """Write down the last statement that each neighbour signed to this node: for `verify` and `check`."""
    from p2pfl.trust.audit import encode_witness
    from p2pfl.witness import signed_in

    with _asking(terminal) as ask:
        found = ask("witness", 0)["witness"]
    if not found:
        raise StoreError("no neighbour has stated anything to this node yet; wait for a round")
    _write(output, encode_witness([signed_in(bytes.fromhex(row["frame"])) for row in found]))
    peers = [row["peer"] for row in found]
    terminal.result({"path": str(output), "peers": peers}, f"{output}: statements of {len(peers)} members")


@audit.command(epilog="Example: p2pfl trust audit proofs -o va.proof")
@click.option("--peer", default="", help="Of this id, or the beginning or end of one.")
@click.option("-o", "output", type=_FILE, help="Write the proof to this file.")
@pass_terminal
def proofs(terminal: Terminal, peer: str, output: Path | None) -> None:
    """Proofs that a member signed two different statements under one number; it was banned for that."""
    with _asking(terminal) as ask:
        found = [p for p in ask("proofs", 0)["proofs"] if not peer or _is(peer, p["peer"])]
    if output is not None:
        if len(found) != 1:
            raise ConfigError(f"{len(found)} proofs fit; a file holds one: choose it with --peer")
        _write(output, bytes.fromhex(found[0]["evidence"]))
    rows = [
        [proof["peer"], datetime.fromtimestamp(proof["at"], UTC).strftime("%Y-%m-%d %H:%M:%S")]
        for proof in found
    ]
    terminal.result({"proofs": found}, columns(rows, ("peer", "since")) if rows else "no proofs")


@audit.command(epilog="Example: p2pfl trust audit check va.proof, or check hungarian.witness va.witness")
@click.argument("files", type=_EXISTING, nargs=-1, required=True, metavar="FILE...")
@click.option("-o", "output", type=_FILE, help="Write the proof that was found to this file.")
@pass_terminal
def check(terminal: Terminal, files: tuple[Path, ...], output: Path | None) -> None:
    """Check a proof of equivocation, or look for one in what several members witnessed.

    Needs no node and asks nobody.  Exits with 1 when nothing is proved.
    """
    from p2pfl.witness import equivocations, verified

    messages = [signed for path in files for signed in _signed(path)]
    found = equivocations(messages)
    if not found:
        for signed in messages:
            verified(signed)
        raise RemoteError(
            f"nothing is proved: {len(messages)} statements, no two of which share a number and boot session "
            "and differ"
        )
    if output is not None:
        if len(found) != 1:
            raise ConfigError(f"{len(found)} members are proved guilty, and a file holds one proof")
        _write(output, next(iter(found.values())))
    text = "\n".join(f"{peer} signed two different statements under one number" for peer in found)
    terminal.result({"equivocated": list(found)}, text)
