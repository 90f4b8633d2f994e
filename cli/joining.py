"""Consent to an agreement: what it says in plain words, a person's yes, and what the home remembers of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pfl.errors import ConfigError, RefusedError
from p2pfl.ids import short

from . import home as homes
from .terminal import Terminal

if TYPE_CHECKING:
    from p2pfl.run import RunSpec

__all__ = ["agree"]


def agree(
    terminal: Terminal,
    file: Path,
    ticket: str | None,
    *,
    recovery: Path | None = None,
    bootstrap: Sequence[str] = (),
    yes: bool,
) -> tuple[RunSpec, str]:
    """The agreement in `file`, to which this node is bound from now on, and in what capacity.

    ticket: None for a founder.   recovery: the recovery key of a ticket whose own key is lost.
    Raises RefusedError when the ticket does not admit this key, or nobody consents; ConfigError.
    """
    from p2pfl.run import load, run_id, self_contained
    from p2pfl.trust.identity import load as load_key
    from p2pfl.trust.tickets import parse_ticket

    from .agreement import in_plain_words
    from .client import ControlClient
    from .rotate import succeeded

    home = terminal.home
    identity = homes.identity_of(home)
    spec = load(file)
    parsed = parse_ticket(ticket) if ticket else None
    if parsed is not None and recovery is not None:
        ticket = succeeded(parsed, load_key(recovery.expanduser()), identity)
        parsed = parse_ticket(ticket)
    capacity = homes.admitted_by(spec, identity, parsed)
    joined = homes.joined_run(home)
    changes = joined is not None and run_id(joined) != run_id(spec)
    with ControlClient(home) as node:
        if changes and node.is_running():
            raise ConfigError(f"the node in {home} takes part in another run; `p2pfl node stop` first")
    if not terminal.json:
        click.echo(f"{in_plain_words(spec)}\n{'as':<10} {capacity}", err=True)
    if joined is not None and changes:
        terminal.warn(
            f"this node leaves run {joined.run.name!r} ({short(run_id(joined))}) without handing over "
            "its weight; `p2pfl run leave` does that, while it runs"
        )
    if not terminal.confirm("Take part on these terms?", yes):
        raise RefusedError("not joined: no consent was given")
    homes.remember_run(home, self_contained(file), file.absolute().parent, ticket)
    homes.add_bootstrap(home, [*bootstrap, *(parsed.addresses if parsed else ())])
    return spec, capacity
