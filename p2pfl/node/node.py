"""The trio driver: carries out what one Peer asks for, in order, over a real transport, disk and learner.

Nothing is decided here.  Tasks: the wires (node/wires.py) turn what the transport brings into events; the
main loop gives events to the peer one at a time, in a worker thread, and carries out the effects; the
learner's task answers Train and Evaluate; the dialler (node/dialing.py) keeps connections.  Every queue
between them is bounded.

The peer's clock is seconds since 1970, taken once at start and advanced by trio's monotonic clock.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec
import numpy as np
import trio
from msgspec.structs import replace
from numpy.typing import NDArray

from p2pfl.errors import NotRunningError
from p2pfl.events import (
    Commanded,
    Commit,
    Dial,
    Effect,
    Evaluate,
    Event,
    Fact,
    Fetch,
    Finish,
    HangUp,
    Kind,
    Message,
    Note,
    Notice,
    Penalise,
    Refuse,
    Send,
    Started,
    Train,
    Validate,
)
from p2pfl.ids import PeerId
from p2pfl.learn.flat import Schema, unflatten
from p2pfl.net import discovery
from p2pfl.net.transport import Gate, Transport
from p2pfl.node.dialing import Dialer
from p2pfl.node.learner_messages import LearnerSpec
from p2pfl.node.learning import Learning, Task, carry_out
from p2pfl.node.lobby import Lobby
from p2pfl.node.store import Store
from p2pfl.node.telemetry import EventHub, Telemetry
from p2pfl.node.wires import Wires
from p2pfl.participant import Participant
from p2pfl.trust.identity import Identity
from p2pfl.view import PeerView
from p2pfl.work import Work

__all__ = ["Clock", "Node", "Outcome", "inline"]

# Events that wait for the peer: a burst from every neighbour; beyond it the transport stops reading.
_INBOX_EVENTS = 256
# Seconds for the last acknowledgements to leave before the connections close.
_FAREWELL_S = 2.0

T = TypeVar("T")


async def inline(function: Callable[..., T], *arguments: Any) -> T:
    """Run in place: under a mock clock a real thread would let deadlines fire meanwhile."""
    return function(*arguments)


class Clock:
    """Seconds since 1970, advanced by trio's clock."""

    def __init__(self, wall: float | None = None) -> None:
        """wall: the time now; the system's when None."""
        self._offset = (time.time() if wall is None else wall) - trio.current_time()

    def now(self) -> float:
        """Now."""
        return trio.current_time() + self._offset

    def on_trio(self, moment: float) -> float:
        """The same moment on trio's clock."""
        return moment - self._offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a node's work ended: `done`, `left`, `revoked` or `stopped`; `state` is its last status."""

    reason: str
    round: int
    metrics: Mapping[str, float]
    state: Mapping[str, Any]


class Node:
    """One process's part in one run."""

    def __init__(
        self,
        *,
        peer: Participant,
        identity: Identity,
        store: Store,
        learning: Learning,
        learner: LearnerSpec,
        transport: Callable[[Gate], Transport],
        bootstrap: Mapping[PeerId, tuple[str, ...]],
        ticket: bytes = b"",
        clock: Clock,
        run_sync: Callable[..., Awaitable[Any]] = trio.to_thread.run_sync,
        on_fact: Callable[[Fact], None] = lambda _: None,
        until_round: int | None = None,
        rng: np.random.Generator,
    ) -> None:
        """ticket: this site's own certificate, shown in the lobby of members that do not know it yet.

        run_sync: runs what blocks (`inline` under a mock clock).   until_round: stop, resumably, once so many
        training rounds are committed.   rng: jitter.
        """
        self.peer = peer
        self.identity = identity
        self.store = store
        self.clock = clock
        self.telemetry = Telemetry()
        self.hub = EventHub(last=store.last_event())
        self.view: PeerView = peer.view()
        self.schema: Schema | None = None
        self.started = trio.Event()
        self.outcome: Outcome | None = None
        self._learning, self._learner = learning, learner
        self._run_sync, self._on_fact, self._until = run_sync, on_fact, until_round
        self._inbox_in, self._inbox = trio.open_memory_channel[tuple[Event, trio.Event | None]](_INBOX_EVENTS)
        # What the learner has still to do, at most one of a kind: a newer job makes an older one pointless.
        self._jobs: dict[type[Task], Task] = {}
        self._job_is_there = trio.Event()
        lobby = Lobby(
            peer.state.consortium,
            ticket=ticket,
            ask=self.ask,
            now=clock.now,
            count=lambda *sent: self.wires.count(*sent),
        )
        self.transport = transport(lobby.gate)
        self._dialer = Dialer(
            self.transport,
            lobby,
            consortium=peer.state.consortium,
            bootstrap=bootstrap,
            wanted=lambda: self.view.wanted,
            now=clock.now,
            note=self.telemetry.observe,
            rng=rng,
        )
        self.wires = Wires(
            self.transport,
            identity,
            tell=self._tell,
            notice=self._notice,
            lost=self._dialer.lost,
            run_sync=run_sync,
        )
        self._stop = trio.Event()
        self._stop_after_round = False

    # --- life ------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> Outcome:
        """Take part until the run is over or `stop` is called; what was committed is kept either way."""
        run = self.peer.state.run
        snapshot = await self._run_sync(self.store.load, run)
        try:
            ready = await self._learning.start(self._learner)
            async with trio.open_nursery() as nursery:
                self.schema = ready.schema
                await self._run_sync(self.store.put, f"schema:{run}", msgspec.json.encode(ready.schema))
                await nursery.start(self.transport.run)
                self._publish()
                for task in (self.wires.run, self._learn, self._dialer.run):
                    nursery.start_soon(task)
                nursery.start_soon(self._until_stopped, nursery.cancel_scope)
                started = Started(
                    snapshot=snapshot,
                    parameters=ready.parameters,
                    samples=ready.samples,
                    schema_hash=ready.schema_hash,
                    statistics=ready.statistics,
                    release=ready.release,
                    expected=ready.expected,
                    account=await self._run_sync(self.store.account, ready.data_set),
                )
                await self._take(started)
                self.started.set()
                task_status.started()
                await self._loop()
                with trio.move_on_after(_FAREWELL_S):
                    await self._flush()
                nursery.cancel_scope.cancel()
        finally:
            self.hub.close()
            with trio.CancelScope(shield=True):
                await self._learning.aclose()
                await self._run_sync(self.store.count, run, self.wires.outbound())
        if self.outcome is None:
            self._end("stopped")
        assert self.outcome is not None
        if self.outcome.reason != "stopped":
            await self._run_sync(self.store.mark, run, self.outcome.reason, self.clock.now())
        return self.outcome

    def stop(self, after_round: bool = False) -> None:
        """Stop now, or after the next commit of a round; the mass stays here and the run goes on later."""
        if after_round and self.view.phase == "running":
            self._stop_after_round = True
        else:
            self._stop.set()

    async def ask(self, event: Commanded) -> None:
        """Give the peer a command and wait until its effects are carried out.  Raises NotRunningError."""
        if self.outcome is not None:
            raise NotRunningError("the run is over on this node")
        done = trio.Event()
        await self._inbox_in.send((event, done))
        await done.wait()

    def named_model(self) -> dict[str, NDArray[Any]]:
        """The model's tensors by name; one vector `parameters` when the learner does not name them."""
        vector = self.peer.model()
        return unflatten(vector, self.schema) if self.schema else {"parameters": vector}

    async def _until_stopped(self, scope: trio.CancelScope) -> None:
        await self._stop.wait()
        scope.cancel()

    async def _flush(self) -> None:
        while self.wires.waiting():
            await trio.sleep(0.01)
        # The last frame is with the transport, which writes it before it closes.
        await trio.sleep(0.05)

    def _end(self, reason: str) -> None:
        view = self.view
        self.outcome = Outcome(reason=reason, round=view.training_round, metrics=view.metrics, state={})

    def _publish(self) -> None:
        addresses = self.transport.addresses()[: discovery.MAX_ADDRESSES]
        now = self.clock.now()
        sign = partial(self.identity.sign, b"")
        record = discovery.sign_record(self.identity.peer_id, addresses, now, sign)
        self.peer.state.consortium.publish(record, now)

    # --- the peer ----------------------------------------------------------------------------------------

    async def _tell(self, event: Event) -> None:
        await self._inbox_in.send((event, None))

    async def _loop(self) -> None:
        while self.outcome is None:
            deadline = self.peer.deadline
            with trio.move_on_at(np.inf if deadline is None else self.clock.on_trio(deadline)) as scope:
                event, done = await self._inbox.receive()
            if scope.cancelled_caught:
                await self._carry_out_all(await self._run_sync(self._expire, self.clock.now()))
            else:
                await self._take(event)
                if done is not None:
                    done.set()

    async def _take(self, event: Event) -> None:
        await self._carry_out_all(await self._run_sync(self._handle, event, self.clock.now()))

    def _handle(self, event: Event, now: float) -> list[Effect]:
        effects = self.peer.handle(event, now)
        self.view = self.peer.view()
        return effects

    def _expire(self, now: float) -> list[Effect]:
        effects = self.peer.expire(now)
        self.view = self.peer.view()
        return effects

    async def _carry_out_all(self, effects: list[Effect]) -> None:
        for effect in effects:
            await self._carry_out(effect)

    async def _carry_out(self, effect: Effect) -> None:
        run, now = self.peer.state.run, self.clock.now()
        match effect:
            case Train() | Work() | Evaluate() | Validate():
                self._jobs.pop(type(effect), None)
                self._jobs[type(effect)] = effect
                self._job_is_there.set()
            case Commit(snapshot=snapshot, facts=facts):
                facts = tuple(map(self._counted, facts))
                commit = partial(
                    self.store.commit,
                    decisions=effect.decisions,
                    proofs=effect.proofs,
                    outbound=self.wires.outbound(),
                )
                await self._run_sync(commit, run, snapshot, facts, now, self._peer_rows())
                self.observe(facts)
                self._count_rounds(facts)
            case Note(facts=facts):
                await self._run_sync(self.store.record, facts, now, run)
                self.observe(facts)
            case Send(peer=peer, message=message):
                self.wires.queue(peer, message)
            case Fetch(peer=peer, header=header):
                deadline = trio.current_time() + self.peer.state.spec.run.deadline_s
                self.wires.fetch(peer, header, deadline)
            case Refuse(peer=peer, header=header):
                self.wires.refuse(peer, header)
            case Dial(peer=peer):
                self._dialer.hurry(peer)
            case HangUp(peer=peer):
                self.wires.hang_up(peer)
            case Penalise(peer=peer):
                self.wires.penalise(peer)
            case Finish(reason=reason):
                self._end(reason)

    def _peer_rows(self) -> list[dict[str, Any]]:
        view = self.view
        members = [peer for peer in view.members if peer in view.neighbours]
        return [{"peer": peer, **view.neighbours[peer]} for peer in members]

    def _counted(self, fact: Fact) -> Fact:
        if fact.event != "round committed":
            return fact
        sent, received = self.wires.counted()
        return replace(fact, fields={**fact.fields, "bytes_sent": sent, "bytes_received": received})

    def _count_rounds(self, facts: tuple[Fact, ...]) -> None:
        rounds = [fact for fact in facts if fact.event == "round committed"]
        enough = self._until is not None and any(
            fact.fields["training_round"] + 1 >= self._until for fact in rounds
        )
        if rounds and (self._stop_after_round or enough):
            self._stop.set()

    def observe(self, facts: tuple[Fact, ...]) -> None:
        """Log facts, move the metrics, and tell whoever listens."""
        for fact in facts:
            self.telemetry.observe(fact)
            self.hub.publish(fact)
            self._on_fact(fact)

    async def _learn(self) -> None:
        while True:
            await self._job_is_there.wait()
            job = self._jobs.pop(next(iter(self._jobs)))
            if not self._jobs:
                self._job_is_there = trio.Event()
            await self._tell(await carry_out(self._learning, job, self.clock.on_trio))

    def _notice(self, peer: PeerId, code: str, text: str) -> Message:
        header = self.peer.state.header(peer, Kind.NOTICE)
        return Message(header=replace(header, issued_at=self.clock.now()), body=Notice(code=code, text=text))
