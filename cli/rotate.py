"""`p2pfl node rotate-key`: another key in the place of this node's, without asking the founders."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pfl.errors import ConfigError, LocalError, RefusedError, StoreError

from . import home as homes
from .terminal import Terminal, pass_terminal

if TYPE_CHECKING:
    from p2pfl.ids import RunId
    from p2pfl.trust.identity import Identity
    from p2pfl.trust.tickets import Ticket

__all__ = ["rotate_key", "succeeded"]

# The key to come, until everything that speaks of it is written.
_NEXT = "identity.next"
# Seconds between two looks at whether the node has gone, and beyond two deadlines of a round for its end.
_POLL_S, _STOP_S = 0.1, 60.0


def succeeded(ticket: Ticket, signer: Identity, new: Identity) -> str:
    """`ticket` for `new` in the place of the key that it was for.

    signer: that key, or the recovery key of the ticket.   Raises RefusedError when it is neither.
    """
    from p2pfl.trust.successions import issue_succession
    from p2pfl.trust.tickets import write_ticket

    if signer.peer_id not in (ticket.subject, ticket.certificate.recovery):
        named = ticket.certificate.recovery or "no recovery key"
        raise RefusedError(
            f"the ticket names {named}, and this is {signer.peer_id}; ask the founders to admit the new key"
        )
    made = issue_succession(signer, new, run=ticket.run, old=ticket.subject, now=time.time())
    return write_ticket(ticket.certificate, ticket.addresses, (*ticket.successions, made))


@click.command("rotate-key", epilog="Example: p2pfl node rotate-key")
@click.option("--yes", is_flag=True, help="Go on without being asked.")
@pass_terminal
def rotate_key(terminal: Terminal, yes: bool) -> None:
    """Put a new key in the place of this node's; the old one is refused everywhere from then on.

    A running node hands its weight to a neighbour and stops.  `node start` brings it back under its new id,
    as the member it was; nothing is lost, and nobody has to sign.
    """
    from p2pfl.run import run_id
    from p2pfl.trust import identity

    home = terminal.home
    old, spec, ticket = homes.identity_of(home), homes.joined_run(home), homes.joined_ticket(home)
    if spec is None:
        raise ConfigError(f"the node in {home} has joined no run; `node init` in another --home makes a key")
    if old.peer_id in spec.trust.founders or ticket is None:
        raise RefusedError(
            "a founder's key is part of the agreement, and its rights go to no other; to take part under a"
            " new key, let the founders invite that key and ban this one"
        )
    coming = home / _NEXT
    if ticket.subject == old.peer_id:
        if not terminal.confirm(f"Replace {old.peer_id} for good?", yes):
            raise RefusedError("the key stays: no consent was given")
        _hand_over(terminal, run_id(spec), 2 * spec.run.deadline_s + _STOP_S)
        new = identity.load(coming) if coming.exists() else identity.create(coming)
        homes.write_private(home / homes.TICKET, succeeded(ticket, old, new) + "\n")
    else:
        # An earlier attempt was cut short between its last two steps.
        new = identity.load(coming)
    coming.replace(home / homes.KEY)
    terminal.result(
        {"peer_id": new.peer_id, "old": old.peer_id},
        f"{new.peer_id} stands in the place of {old.peer_id}\n"
        f"key       {home / homes.KEY} (back it up; the old one is worth nothing)\n"
        f"next      {terminal.node_command('node start')}",
    )


def _hand_over(terminal: Terminal, run: RunId, timeout_s: float) -> None:
    """See to it that the node has handed its weight over, and stopped.

    Raises ConfigError when it stopped without, LocalError when it does not get to it.
    """
    from .client import ControlClient

    give_up = time.monotonic() + timeout_s
    with ControlClient(terminal.home) as node:
        if was_running := node.is_running():
            node.post("/v1/run/leave")
        while node.is_running():
            if time.monotonic() > give_up:
                log = terminal.home / homes.LOG
                raise LocalError(f"no neighbour took the weight within {timeout_s:g} s; see {log}")
            time.sleep(_POLL_S)
    if not (terminal.home / homes.STORE).exists():
        return
    states = _states(terminal.home, give_up if was_running else 0.0)
    if states.get(run, "left") not in ("left", "done"):
        raise ConfigError(
            "this node holds weight that would be lost with its key; `p2pfl node start`, and rotate then"
        )


def _states(home: Path, give_up: float) -> dict[str, str]:
    """How each run on the disk stands; a node that has just stopped answering may still hold the disk."""
    from p2pfl.node.store import Store

    while True:
        try:
            with Store.open(home) as store:
                return {row["run"]: row["state"] for row in store.runs()}
        except StoreError:
            if time.monotonic() > give_up:
                raise
            time.sleep(_POLL_S)
