"""A node that does nothing but answer: what the control socket's tests serve."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from p2pfl.errors import P2PFLError
from p2pfl.events import Fact
from p2pfl.node import control
from p2pfl.node.telemetry import EventHub

ALPHA = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
BETA = "12D3KooWBHsCJ9S9yQYiPKDzQ3xS5fQScMAuxso792yPji3Lcgrv"
GAMMA = "12D3KooWHq2EwFwKzgQUPwEReEMdGMyZuZmZJY3uoiWfdVRwLFoq"


class FakeTarget:
    """Implements `control.ControlTarget` from plain attributes, and remembers what it was asked."""

    def __init__(self) -> None:
        self.hub = EventHub()
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self.stops: list[bool] = []
        self.stopped = trio.Event()
        self.fails: P2PFLError | Exception | None = None
        self.answer: dict[str, Any] = {}
        self.is_ready = True
        self.now: dict[str, Any] = {
            "peer_id": ALPHA,
            "name": "alpha",
            "addresses": [f"/ip4/127.0.0.1/tcp/4911/p2p/{ALPHA}"],
            "run_id": "ab" * 32,
            "run_name": "ward",
            "round": 7,
            "rounds": 50,
            "state": "running",
            "reason": "",
            "peers": 1,
            "members": 3,
            "metric": {"accuracy": 0.91, "loss": float("nan")},
            "mass": {"w": 1.25, "weight0": 1.0, "entered": 3.0, "written_off": 0.0, "in_flight": 0.25},
        }
        self.members = [
            {
                "peer_id": BETA,
                "name": "beta",
                "state": "connected",
                "round": 7,
                "sent_w": 2.5,
                "last_seen": None,
            },
            {
                "peer_id": GAMMA,
                "name": "gamma",
                "state": "late",
                "round": 3,
                "share": "deny",
                "accept": "normal",
            },
        ]

    def status(self) -> dict[str, Any]:
        if isinstance(self.fails, Exception) and not isinstance(self.fails, P2PFLError):
            raise self.fails
        return self.now

    def peers(self) -> list[dict[str, Any]]:
        return self.members

    def rounds(self, since: int) -> list[dict[str, Any]]:
        rows = [
            {"round": i, "at": 0.0, "peers": 2, "seconds": 0.5, "w": 1.0, "loss": 1 / (i + 1)}
            for i in range(5)
        ]
        return [row for row in rows if row["round"] >= since]

    def topology(self) -> dict[str, Any]:
        peers = [{"peer_id": ALPHA, "name": "alpha"}, *({**p} for p in self.members)]
        edges = [
            {"source": ALPHA, "target": BETA, "weight": 0.5},
            {"source": BETA, "target": GAMMA, "weight": 0.5},
        ]
        return {"round": 7, "kind": "ring", "peers": peers, "edges": edges}

    def run(self) -> dict[str, Any]:
        return {"run_id": "ab" * 32, "agreement": {"run": {"name": "ward"}}}

    def trust(self) -> list[dict[str, Any]]:
        founder = {"peer_id": ALPHA, "name": "", "founder": True, "self": True, "standing": "member"}
        return [founder, *({**p, "standing": "member", "expires_at": 1_800_000_000} for p in self.members)]

    def audit(self, part: str, since: int) -> dict[str, Any]:
        return {"part": part, "since": since, **self.answer}

    async def command(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.commands.append((verb, arguments))
        if self.fails is not None:
            raise self.fails
        if verb in ("backup", "export") and not Path(arguments["path"]).exists():
            Path(arguments["path"]).write_bytes(b"written")
        return self.answer

    def stop(self, after_round: bool) -> None:
        self.stops.append(after_round)
        if not after_round:
            self.stopped.set()

    def metrics(self) -> bytes:
        return b"p2pfl_rounds_total 7.0\n"

    def ready(self) -> bool:
        return self.is_ready


class Running:
    """A FakeTarget that is served by a thread of its own, for blocking clients."""

    def __init__(self, target: FakeTarget, token: trio.lowlevel.TrioToken) -> None:
        self.target = target
        self._token = token

    def publish(self, event: str, **fields: Any) -> None:
        """Publish a Fact from the test's thread."""
        self.call(lambda: self.target.hub.publish(Fact(event=event, fields=fields)))

    def call(self, function: Callable[[], Any]) -> Any:
        """Run `function` in the node's thread."""
        return trio.from_thread.run_sync(function, trio_token=self._token)


@contextmanager
def served(home: Path, target: FakeTarget | None = None) -> Iterator[Running]:
    """Serve `target` on `home`/control.sock until the block ends, or until it is told to stop."""
    home.mkdir(parents=True, exist_ok=True)
    ready = threading.Event()
    found: list[Running] = []
    failures: list[BaseException] = []

    async def main() -> None:
        running = Running(target or FakeTarget(), trio.lowlevel.current_trio_token())
        found.append(running)
        async with trio.open_nursery() as nursery:
            await nursery.start(control.serve, running.target, home)
            ready.set()
            await running.target.stopped.wait()
            running.target.hub.close()
            nursery.cancel_scope.cancel()

    def thread() -> None:
        try:
            trio.run(main)
        except BaseException as error:  # shown by the test's own thread
            failures.append(error)
        finally:
            ready.set()

    worker = threading.Thread(target=thread)
    worker.start()
    ready.wait(timeout=30)
    try:
        if failures:
            raise failures[0]
        yield found[0]
    finally:
        with suppress(trio.RunFinishedError):
            found[0].call(found[0].target.stopped.set)
        worker.join(timeout=30)
    if failures:
        raise failures[0]
