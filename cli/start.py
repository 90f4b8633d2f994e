"""`p2pfl node start`: this site's part in a run, in front or as a daemon."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pfl.errors import ConfigError, RefusedError
from p2pfl.ids import short

from . import home as homes
from .exits import Exit
from .terminal import Terminal, pass_terminal

if TYPE_CHECKING:
    from p2pfl.net.transport import TransportOf
    from p2pfl.node.learning import Learning
    from p2pfl.node.node import Outcome
    from p2pfl.participant import Participant
    from p2pfl.peer import Peer
    from p2pfl.run import RunSpec
    from p2pfl.settings import NodeSettings
    from p2pfl.trust.identity import Identity

    from .live import LiveRounds

__all__ = ["agreement_of", "find_learner", "run_node", "start"]

# libp2p and torch take seconds to import on a slow disk, and the learner reads its data.
_READY_S = 180.0


def agreement_of(home: Path, identity: Identity, file: Path | None) -> RunSpec:
    """The run this node takes part in: the joined one, or `file` when it is the same or the first."""
    from p2pfl import run as runs

    joined = homes.joined_run(home)
    if file is None:
        if joined is None:
            raise ConfigError(f"the node in {home} has joined no run; `p2pfl run new`, then `p2pfl run join`")
        homes.admitted_by(joined, identity, homes.joined_ticket(home))
        return joined
    spec = runs.load(file)
    if joined is not None and runs.run_id(joined) != runs.run_id(spec):
        keys = ", ".join(runs.differing_keys(runs.canonical(joined), runs.canonical(spec)))
        raise RefusedError(
            f"{file} is not the agreement this node has joined: it differs in {keys}; "
            f"`p2pfl run join {file}` changes to it"
        )
    homes.admitted_by(spec, identity, homes.joined_ticket(home))
    if joined is None:
        homes.remember_run(home, file.read_text(encoding="utf-8"), file.absolute().parent, None)
    return spec


def find_learner(home: Path, agreed: str, flag: str | None) -> None:
    """Let this process and the learner's own find the learner's module.

    The flag says where the code of the agreement lies, never that other code is run.   agreed: its module.
    """
    folder = homes.code_folder(home)
    if flag is not None:
        place, _, attribute = flag.rpartition(":")
        module = Path(place).stem if place.endswith(".py") else place
        if f"{module}:{attribute}" != agreed:
            raise RefusedError(
                f"the agreement's learner is {agreed or 'built in'!r}, no flag changes it; "
                "--learner says where its code lies, such as src/ward.py:learner"
            )
        if place.endswith(".py"):
            if not Path(place).is_file():
                raise ConfigError(
                    f"{place} is missing; --learner takes FILE.py:ATTRIBUTE or MODULE:ATTRIBUTE"
                )
            folder = Path(place).absolute().parent
    if folder is not None:
        sys.path.insert(0, str(folder))
        known = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{known}" if known else str(folder)


async def _until_signal(serve: Callable[[], Awaitable[Outcome]]) -> tuple[Outcome | None, int | None]:
    """What `serve` gives, or the number of the signal that ended it.  A second signal ends it at once."""
    import trio

    outcome: Outcome | None = None
    caught: int | None = None
    scope = trio.CancelScope()

    async def watch() -> None:
        nonlocal caught
        async for number in signals:
            if caught is not None:
                # Every round is committed to the disk before it is shown, so nothing is lost.
                os._exit(128 + number)
            caught = number
            scope.cancel()

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            with scope:
                outcome = await serve()
            nursery.cancel_scope.cancel()
    return outcome, caught


def run_node(
    terminal: Terminal,
    settings: NodeSettings,
    spec: RunSpec,
    until_round: int | None = None,
    *,
    detached: bool = False,
    around: Callable[[Peer], Participant] = lambda peer: peer,
    learning: Learning | None = None,
    behind: Callable[[TransportOf], TransportOf] = lambda own: own,
) -> int:
    """Serve until the run, a command or a signal ends it; the exit code.

    around, learning, behind: see node/daemon.py.
    """
    import trio

    from p2pfl.node import telemetry
    from p2pfl.node.daemon import serve

    from .live import LiveRounds

    level = "info" if detached else ("error" if terminal.quiet else "warning")
    telemetry.configure(("debug" if terminal.verbosity > 1 else "info") if terminal.verbosity else level)
    home = terminal.home
    rounds, closing = spec.run.rounds, spec.run.closing_rounds
    with LiveRounds(terminal, rounds=rounds, closing=closing, shown=not detached) as view:
        body = partial(
            serve,
            home=home,
            settings=settings,
            spec=spec,
            on_fact=view,
            until_round=until_round,
            around=around,
            learning=learning,
            behind=behind,
        )
        outcome, caught = trio.run(_until_signal, body)
    return _ending(terminal, view, outcome, caught, spec.run.seed)


def _ending(
    terminal: Terminal, view: LiveRounds, outcome: Outcome | None, caught: int | None, seed: int
) -> int:
    from .live import summary

    again = terminal.node_command("node start")
    if outcome is None:
        name = signal.Signals(caught or signal.SIGTERM).name
        terminal.result(
            {"reason": "signal", "signal": name, "round": view.round},
            f"stopped by {name}; state saved at round {view.round}; `{again}` goes on from there",
        )
        return int(Exit.INTERRUPTED if caught == signal.SIGINT else Exit.TERMINATED)
    metrics = {name: float(value) for name, value in outcome.metrics.items()}
    listed = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    text = {
        "done": f"the run is done after round {outcome.round}  {listed}\n"
        f"next      {terminal.node_command('run export -o model.safetensors')}",
        "left": f"left the run at round {outcome.round}; its weight went to a neighbour",
        "revoked": "this node was revoked by the founders",
        "stopped": f"stopped; state saved at round {outcome.round}; `{again}` goes on from there",
    }
    state = dict(outcome.state)
    value = summary(view, reason=outcome.reason, metrics=metrics, state=state, seed=seed)
    terminal.result(value, text.get(outcome.reason, outcome.reason).rstrip())
    return int(Exit.REFUSED if outcome.reason == "revoked" else Exit.DONE)


def _flags(**given: Any) -> dict[str, dict[str, Any]]:
    """The flags of `start` that stand above node.toml, by section."""
    section = {
        key: list(value) if isinstance(value, tuple) else value for key, value in given.items() if value
    }
    return {"node": section} if section else {}


@click.command(epilog="Example: p2pfl node start --run ward/run.toml --detach")
@click.option(
    "--run", "run_file", type=click.Path(dir_okay=False, path_type=Path), help="The agreement, run.toml."
)
@click.option("--learner", metavar="FILE.py:ATTR", help="Where the agreement's learner lies on this machine.")
@click.option("--detach", is_flag=True, help="Go on as a daemon, and return once it is ready.")
@click.option("--rounds", type=click.IntRange(min=1), help="Stop, state saved, once this round is committed.")
@click.option("--listen", multiple=True, metavar="MULTIADDR", help="Instead of node.toml's.")
@click.option("--bulk-listen", metavar="HOST:PORT", help="Instead of node.toml's.")
@click.option("--bootstrap", multiple=True, metavar="MULTIADDR", help="Instead of node.toml's.")
@click.option("--data", help="Instead of node.toml's.")
@click.option("--role", help="Instead of node.toml's.")
@click.option("--name", help="Instead of node.toml's.")
@pass_terminal
def start(
    terminal: Terminal,
    run_file: Path | None,
    learner: str | None,
    detach: bool,
    rounds: int | None,
    listen: tuple[str, ...],
    bulk_listen: str | None,
    bootstrap: tuple[str, ...],
    data: str | None,
    role: str | None,
    name: str | None,
) -> None:
    """Take part in the run that this node has joined.

    A founder may name the agreement with --run the first time; everybody else joins it with a ticket
    (`p2pfl run join`).  Ctrl-C saves and stops; the next start goes on from there.
    """
    from p2pfl import settings as node_settings
    from p2pfl.learn.options import at_role
    from p2pfl.node.sockets import socket_path
    from p2pfl.run import run_id

    home = terminal.home
    identity = homes.identity_of(home)
    overlay = _flags(
        listen=listen, bulk_listen=bulk_listen, bootstrap=bootstrap, data=data, role=role, name=name
    )
    settings = node_settings.load(home, overlay)
    spec = agreement_of(home, identity, run_file)
    played = at_role(spec.learner, settings.node.role)
    socket_path(home)
    find_learner(home, played.module, learner)
    banner = {
        "peer_id": identity.peer_id,
        "name": settings.node.name,
        "run_id": run_id(spec),
        "run_name": spec.run.name,
        "home": str(home),
    }
    text = f"{settings.node.name}  {identity.peer_id}\nrun        {spec.run.name}  {short(run_id(spec))}"
    body = partial(run_node, terminal, settings, spec, rounds, detached=detach)
    if not detach:
        terminal.result({"event": "starting", **banner}, text)
        sys.stdout.flush()
        code = body()
        if code:
            sys.exit(code)
        return
    _detach(terminal, home, banner, text, body)


def _detach(
    terminal: Terminal, home: Path, banner: dict[str, Any], text: str, body: Callable[[], int]
) -> None:
    from . import daemon
    from .client import ControlClient

    with ControlClient(home) as node:
        if node.is_running():
            raise ConfigError(f"a node runs in {home} already; `p2pfl node stop` ends it")
        child = daemon.detach(home / homes.LOG, body)
        problem = daemon.wait_until_ready(child, node.is_ready, _READY_S)
        if problem is not None:
            terminal.problem(problem)
            sys.exit(int(problem.exit))
        addresses = node.get("/v1/status").get("addresses") or []
    lines = [text, *(f"listening  {address}" for address in addresses)]
    lines.append(f"process    {child.pid}, log in {child.log}")
    value = {**banner, "addresses": addresses, "pid": child.pid, "log": str(child.log)}
    terminal.result(value, "\n".join(lines))
