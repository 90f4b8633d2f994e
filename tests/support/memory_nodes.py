"""Whole nodes in one process: real stores, keys and peers, the network in memory, time on a mock clock."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import trio
from tiny_learner import tiny

from p2pfl.consortium import Consortium
from p2pfl.events import Fact
from p2pfl.ids import PeerId
from p2pfl.learn.learner import LearnerFactory
from p2pfl.net.link_model import LinkModel
from p2pfl.net.memory import MemoryNetwork, MemoryTransport
from p2pfl.net.transport import Gate
from p2pfl.node.inline_learner import InlineLearner
from p2pfl.node.learner_messages import LearnerSpec
from p2pfl.node.node import Clock, Node, Outcome, inline
from p2pfl.node.store import Store
from p2pfl.peer import Peer
from p2pfl.run import RunSpec, dp_sgd_of, run_id
from p2pfl.simulations.mass_audit import MassAudit, audit, books_on_disk
from p2pfl.trust.identity import Identity, verify

__all__ = ["WALL", "Sites", "agreement", "keys", "mass_on_disk"]

# Seconds since 1970 when every test begins.
WALL = 1_790_000_000.0
# A hundredth of a second one way: one moment's work is over everywhere before the next begins.
_LINK = LinkModel(latency_s=(0.01, 0.01))


def keys(n: int) -> list[Identity]:
    """n keys, by PeerId."""
    return sorted((Identity(bytes((i + 1,)) * 32) for i in range(n)), key=lambda key: key.peer_id)


def agreement(founders: list[Identity], **tables: Mapping[str, Any]) -> RunSpec:
    """A run of `founders`; a table's keys stand above the defaults used here."""
    spec: dict[str, dict[str, Any]] = {
        "run": {"rounds": 5, "members_at_start": len(founders), "closing_rounds": 2, "deadline_s": 10.0},
        "gossip": {"topology": {"kind": "complete"}},
        "trust": {"founders": [key.peer_id for key in founders], "quorum": len(founders) // 2 + 1},
    }
    for name, table in tables.items():
        spec[name] = {**spec.get(name, {}), **table}
    return msgspec.convert(spec, RunSpec)


class Sites:
    """Sites on one network, made within trio.  `live` is one life of a site's process; its disk stays."""

    def __init__(
        self,
        folder: Path,
        spec: RunSpec,
        identities: list[Identity],
        *,
        link: LinkModel = _LINK,
        fit_s: Callable[[int], float] = lambda _: 1.0,
        factory: LearnerFactory | None = tiny,
        datasets: list[Any] | None = None,
        looks: bool = False,
    ) -> None:
        """fit_s: how long a fit of site i takes.   datasets: what each site's learner is given.
        looks: whether a fit looks at the clock, and is over at the deadline.
        """
        self.folder, self.spec, self.identities = folder, spec, identities
        self.network = MemoryNetwork(seed=spec.run.seed, link=link)
        self.nodes: dict[int, Node] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.facts: dict[int, list[tuple[float, Fact]]] = {i: [] for i in range(len(identities))}
        # Bodies that a site asked for, by whom they were offered, over all of its lives.
        self.fetched: dict[int, list[PeerId]] = {i: [] for i in range(len(identities))}
        self._scopes: dict[int, trio.CancelScope] = {}
        self._fit_s, self._factory, self._datasets = fit_s, factory, datasets
        self._looks, self._lives = looks, 0
        self.clock = Clock(wall=WALL)

    def name(self, i: int) -> PeerId:
        """Site i's PeerId."""
        return self.identities[i].peer_id

    def home(self, i: int) -> Path:
        """Site i's folder."""
        return self.folder / f"site{i}"

    def address(self, i: int) -> str:
        """Where site i listens."""
        return f"/ip4/127.0.0.1/tcp/{4001 + i}/p2p/{self.name(i)}"

    async def live(
        self,
        i: int,
        *,
        spec: RunSpec | None = None,
        bootstrap: list[int] | None = None,
        ticket: bytes = b"",
        until_round: int | None = None,
        task_status: trio.TaskStatus[Node] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run site i until its run ends, it is stopped, or it is killed."""
        spec = spec or self.spec
        identity = self.identities[i]
        self._lives += 1
        draw = hashlib.sha256(f"{i}/{self._lives}".encode()).digest()

        async def at_leisure(job: Callable[[], Any]) -> Any:
            call = cast("partial[Any]", job)
            if call.func.__name__ == "train":
                ends_at = trio.current_time() + self._fit_s(i)
                await trio.sleep_until(min(ends_at, call.args[0].deadline) if self._looks else ends_at)
            return job()

        def transport(gate: Gate) -> MemoryTransport:
            made = self.network.attach(identity.peer_id, gate, (self.address(i),))
            fetch = made.fetch

            async def counted(offer: Any, into: memoryview, *, deadline: float) -> None:
                self.fetched[i].append(offer.peer)
                await fetch(offer, into, deadline=deadline)

            made.fetch = counted  # type: ignore[method-assign]
            return made

        others = [j for j in range(len(self.identities)) if j != i] if bootstrap is None else bootstrap
        founders = tuple(PeerId(founder) for founder in spec.trust.founders)
        with Store.open(self.home(i)) as store, trio.CancelScope() as scope:
            self._scopes[i] = scope
            node = self.nodes[i] = Node(
                peer=Peer(
                    me=identity.peer_id,
                    spec=spec,
                    consortium=Consortium.of(
                        run_id(spec), founders, spec.trust.quorum, verify=lambda p, d, s: verify(p, b"", d, s)
                    ),
                    boot_session=int.from_bytes(draw[:8], "big") >> 1,
                    entropy=hashlib.sha256(draw).digest(),
                ),
                identity=identity,
                store=store,
                learning=InlineLearner(
                    self._factory,
                    dataset=self._datasets[i] if self._datasets else None,
                    runner=at_leisure,
                ),
                learner=LearnerSpec(
                    options=msgspec.json.encode(spec.learner),
                    data=str(i),
                    name=f"site{i}",
                    seed=spec.run.seed,
                    dp_sgd=dp_sgd_of(spec),
                ),
                transport=transport,
                bootstrap={self.name(j): (self.address(j),) for j in others},
                ticket=ticket,
                clock=self.clock,
                run_sync=inline,
                on_fact=lambda fact: self.facts[i].append((self.clock.now() - WALL, fact)),
                until_round=until_round,
                rng=np.random.default_rng(i),
            )
            task_status.started(node)
            self.outcomes[i] = await node.run()

    def kill(self, i: int) -> None:
        """End site i's process, as SIGKILL would between two effects."""
        self.outcomes.pop(i, None)
        self._scopes[i].cancel()

    async def until(self, claim: Callable[[], bool], within_s: float = 1000.0) -> None:
        """Return once `claim` holds; it is looked at a hundred times a second."""
        with trio.fail_after(within_s):
            while not claim():
                await trio.sleep(0.01)

    def rounds(self, i: int) -> list[Mapping[str, Any]]:
        """The fields of every "round committed" of site i, over all of its lives."""
        return [fact.fields for _, fact in self.facts[i] if fact.event == "round committed"]

    def said(self, i: int, event: str) -> list[Mapping[str, Any]]:
        """The fields of every fact `event` of site i."""
        return [fact.fields for _, fact in self.facts[i] if fact.event == event]

    def mass(self) -> MassAudit:
        """Where the mass is, by what is on the disks alone."""
        return mass_on_disk(
            {self.name(i): self.home(i) for i in self.facts if self.home(i).exists()}, self.spec
        )


def mass_on_disk(homes: Mapping[PeerId, Path], spec: RunSpec) -> MassAudit:
    """Where a network's mass is, by the committed ledgers in `homes`, none of which is in use."""
    books = []
    for name, home in homes.items():
        with Store.open(home) as store:
            snapshot = store.load(run_id(spec))
        books.append(None if snapshot is None else books_on_disk(name, snapshot))
    return audit(books)
