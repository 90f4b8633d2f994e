"""`p2pfl simulate --join`: a node of a real run, behind which stand virtual peers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from p2pfl.errors import ConfigError
from p2pfl.ids import short

from . import home as homes
from .terminal import Terminal

if TYPE_CHECKING:
    from p2pfl.run import RunSpec
    from p2pfl.simulations.mixed import FrontOptions

__all__ = ["take_part"]


def take_part(
    terminal: Terminal,
    file: Path,
    ticket: str,
    *,
    peers: int | None,
    partition: str | None,
    inner_rounds: int | None,
    data: str | None,
    yes: bool,
) -> None:
    """Join with `ticket` if that was not done before, and serve until the run ends.

    ticket: empty for a founder and for a node that has joined.   data: instead of node.toml's.
    Raises ConfigError, RefusedError; exits with the code of a node that ends.
    """
    from p2pfl import settings as node_settings
    from p2pfl.node.sockets import socket_path
    from p2pfl.run import run_id
    from p2pfl.simulations import mixed

    from .joining import agree
    from .start import agreement_of, run_node

    home = terminal.home
    identity = homes.identity_of(home)
    if not file.is_file():
        raise ConfigError(f"{file} is missing; --join takes the agreement, run.toml, as its founders sent it")
    if ticket and not _has_joined(home, file, ticket):
        agree(terminal, file, ticket, yes=yes)
    spec = agreement_of(home, identity, file)
    settings = node_settings.load(home, {"node": {"data": data}} if data else {})
    socket_path(home)
    options = _options(spec, peers, partition, inner_rounds)
    learning = mixed.learning(options, spec, settings.node.isolation)
    rounds = f", {options.inner_rounds} inner rounds each" if options.inner_rounds > 1 else ""
    terminal.result(
        {
            "event": "starting",
            "peer_id": identity.peer_id,
            "name": settings.node.name,
            "run_id": run_id(spec),
            "run_name": spec.run.name,
            "home": str(home),
            "virtual_peers": options.peers,
            "inner_rounds": options.inner_rounds,
        },
        f"{settings.node.name}  {identity.peer_id}\nrun        {spec.run.name}  {short(run_id(spec))}\n"
        f"behind it  {options.peers} virtual peers{rounds}",
    )
    sys.stdout.flush()
    code = run_node(terminal, settings, spec, learning=learning)
    if code:
        sys.exit(code)


def _has_joined(home: Path, file: Path, ticket: str) -> bool:
    """Whether this node has agreed to `file` before, with this ticket."""
    from p2pfl.run import load, run_id

    joined, path = homes.joined_run(home), home / homes.TICKET
    if joined is None or not path.exists() or run_id(joined) != run_id(load(file)):
        return False
    return path.read_text(encoding="utf-8").strip() == ticket.strip()


def _options(
    spec: RunSpec, peers: int | None, partition: str | None, inner_rounds: int | None
) -> FrontOptions:
    import msgspec

    from p2pfl.simulations.mixed import FrontOptions, inner_rounds_of

    from .sites import partition_of

    if peers is None:
        raise ConfigError("--join needs --peers, how many virtual peers stand behind this node")
    options = {
        "peers": peers,
        "inner_rounds": inner_rounds_of(spec.learner, inner_rounds),
        "partition": partition_of(partition or "iid", of_dirichlet=2),
        "weights": spec.run.weights,
    }
    try:
        return msgspec.convert(options, FrontOptions)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--join: {error}") from error
