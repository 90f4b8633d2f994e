"""THE state machine: one participant in one run, without I/O, clock or global randomness.

Phases.  A peer is WAITING until `members_at_start` members hold the same agreement and the same first model;
JOINING while it comes (back) to a run that has begun and listens for where the others are; RUNNING through
opening rounds (mixing only, while sites pool their statistics), training rounds and closing rounds (mixing
only); PAUSED when too few neighbours are heard or its learner keeps failing; DRAINING after the last round,
until every share has found its place; JUDGING while the last model is evaluated; LEAVING when it hands its
mass over; FINISHED for ever.

A round.  `Train` goes out with the de-biased model while shares come in.  When the fit is done, every awaited
in-neighbour's last share is in and every awaited out-edge is free, and what came is validated if that is
agreed, or the deadline has passed, there is one step: merge by PeerId and number, add the local step, split;
one Commit; then acknowledgements, shares and the round statement; then the next `Train`.  A neighbour that
missed a deadline or hung up is not awaited again until it speaks.

Invariants: see gossip/links.py.  The parts: state.py (what is known), rounds.py (a round), reception.py (what
others say) and so on, each with its subject in its first line, and here the life of a run.
"""

from __future__ import annotations

import hashlib

from p2pfl import (
    departure,
    edges,
    epochs,
    exchanges,
    greeting,
    plans,
    reception,
    recovery,
    repeats,
    roster,
    rounds,
)
from p2pfl.consortium import Consortium
from p2pfl.events import (
    Commanded,
    Connected,
    Dial,
    Disconnected,
    Effect,
    Evaluate,
    Evaluated,
    Event,
    Faulted,
    Finish,
    Kind,
    Note,
    Notice,
    Offered,
    Received,
    Started,
    Trained,
    Validated,
    Vector,
)
from p2pfl.ids import PeerId
from p2pfl.pauses import cause_to_pause, checked
from p2pfl.releases import open_account
from p2pfl.run import RunSpec, canonical, run_id
from p2pfl.schedule import schedule
from p2pfl.state import Phase, State
from p2pfl.validation import is_validating, take_losses
from p2pfl.view import PeerView, view_of
from p2pfl.work import Worked

__all__ = ["Peer", "PeerView"]

# Seconds that a node which comes back listens for where the others are; a reconnect takes about one.
_JOIN_S = 5.0


class Peer:
    """One participant in one run.  Knows no I/O, no clock, no global randomness."""

    def __init__(
        self,
        *,
        me: PeerId,
        spec: RunSpec,
        consortium: Consortium,
        boot_session: int,
        entropy: bytes,
        memory_bytes: int = 4096 * 10**6,
        publishes_edges: bool = False,
    ) -> None:
        """boot_session: new at each start of the process.   entropy: 32 secret random bytes, likewise.

        memory_bytes: limit on bodies of others that are under way or wait for the next commit.
        publishes_edges: whether the neighbours are told whom this site trusts.
        """
        self.state = State(
            me=me,
            spec=spec,
            run=run_id(spec),
            agreement=canonical(spec),
            schedule=schedule(spec),
            consortium=consortium,
            boot_session=boot_session,
            entropy=entropy,
            memory_bytes=memory_bytes,
            publishes_edges=publishes_edges,
        )

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event; returns what is to be done, in order.  Total: never raises."""
        state = self.state
        state.now = now
        match event:
            case Started():
                self._start(event)
            case _ if state.phase is Phase.IDLE:
                pass  # a driver that has not started its peer has nothing to tell it
            case Received():
                reception.received(state, event)
            case Offered():
                reception.offered(state, event)
            case Trained() if state.phase is Phase.RUNNING and event.round == state.round:
                if state.trained is None:
                    state.trained = checked(event, len(state.mass.model))
            case Worked() if state.phase is Phase.RUNNING and event.round == state.round:
                exchanges.worked(state, event)
            case Evaluated():
                self._evaluated(event)
            case Validated():
                take_losses(state, event)
            case Faulted():
                reception.failed(state, event)
            case Connected():
                reception.connected(state, event.peer)
            case Disconnected():
                reception.disconnected(state, event.peer)
            case Commanded():
                self._command(event)
            case _:
                pass  # an answer to a question of an earlier round
        self._advance()
        return self._take()

    def expire(self, now: float) -> list[Effect]:
        """`deadline` has passed."""
        state = self.state
        state.now = now
        if state.tick is not None and now >= state.tick and state.phase is not Phase.FINISHED:
            roster.tick(state)
            repeats.say_again(state)
            edges.publish(state, again=True)
        self._advance()
        return self._take()

    @property
    def deadline(self) -> float | None:
        """When `expire` is to be called, unless an event comes first."""
        state = self.state
        if state.phase in (Phase.IDLE, Phase.FINISHED):
            return None
        due, tick = state.deadline, state.tick
        if due is not None and state.trained is None and state.now >= due:
            due += state.spec.run.deadline_s
        if (turn := exchanges.turn_at(state)) is not None:
            due = turn if due is None else min(due, turn)
        return tick if due is None or (tick is not None and tick < due) else due

    def view(self) -> PeerView:
        """What can be shown of this peer now."""
        return view_of(self.state, self.wanted())

    def wanted(self) -> tuple[PeerId, ...]:
        """The members this peer wants a connection to, by PeerId."""
        return () if self.state.phase is Phase.IDLE else plans.wanted(self.state)

    def knows(self, peer: PeerId) -> bool:
        """Whether `peer` is a member that this site talks to: what a transport's gate asks."""
        return self.state.consortium.standing(peer, self.state.now) == "member"

    def model(self) -> Vector:
        """The de-biased model now, (d,) float32."""
        return self.state.mass.z()

    # --- the life of a run -----------------------------------------------------------------------------

    def _take(self) -> list[Effect]:
        state = self.state
        if state.facts:
            state.emit(Note(facts=tuple(state.facts)))
            state.facts = []
        effects, state.effects = state.effects, []
        return effects

    def _start(self, event: Started) -> None:
        state = self.state
        if state.phase is not Phase.IDLE:
            return
        state.statistics, k = event.statistics, len(event.statistics)
        open_account(state, event)
        exchanges.open_exchange(state, event)
        state.schema_hash = hashlib.sha256(exchanges.schema(state, event) + k.to_bytes(4, "big")).digest()
        if event.snapshot is None or not recovery.is_own(state, event.snapshot):
            if event.snapshot is not None:
                recovery.inherit(state, event.snapshot)
            state.mass = state.mass_of(event.parameters, k)
            state.nominal = float(event.samples) if state.spec.run.weights == "samples" else 1.0
            first = b"" if plans.is_apart(state) else event.parameters.tobytes()
            state.initial_digest = hashlib.sha256(first + state.schema_hash).digest()
            state.incarnation = greeting.fresh_incarnation(state)
        else:
            recovery.restore(state, event, k)
            epochs.begin(state)
        state.tick = state.now + state.spec.run.deadline_s / repeats.RESENDS_PER_DEADLINE
        if state.finished:
            state.phase = Phase.FINISHED
            state.emit(Finish(reason=state.finished))
            return
        state.commit()
        if state.begun:
            self._join()
        else:
            state.phase = Phase.WAITING

    def _join(self) -> None:
        state = self.state
        state.begun = True
        if plans.is_state(state) and state.mass.w == 0:
            # Models that travel as states have no mass to wait for: the first mix brings this one along.
            state.mass.enter(state.nominal, state.statistics)
        state.phase, state.reason = Phase.JOINING, "listening for where the others are"
        state.settle_until = state.now + min(_JOIN_S, state.spec.run.deadline_s)
        state.deadline = state.settle_until

    def _advance(self) -> None:
        state = self.state
        while True:
            before = (state.phase, state.round)
            if state.revoked and state.phase is not Phase.FINISHED:
                self._finish("revoked")
            if state.leaving and state.phase not in (Phase.LEAVING, Phase.FINISHED):
                departure.begin(state)
            match state.phase:
                case Phase.WAITING:
                    self._wait()
                case Phase.JOINING:
                    others = [p for p in plans.wanted(state) if not state.neighbours[p].up]
                    if not others or state.now >= state.settle_until:
                        state.round = min(
                            max(state.round, state.neighbours.round_of_others(state.voices())),
                            state.schedule.total,
                        )
                        self._next()
                case Phase.RUNNING:
                    self._run()
                case Phase.PAUSED:
                    rounds.settle_now(state)
                    self._resume()
                case Phase.DRAINING:
                    self._drain()
                case Phase.LEAVING:
                    if departure.is_over(state):
                        self._finish("left")
            if (state.phase, state.round) == before:
                return

    def _wait(self) -> None:
        """Begin when enough members are here, or join when the others have gone ahead.

        In a network too large for everybody to meet, enough are those this peer is to be connected to.  The
        first that counts enough begins and tells those it counted, who then begin, too.  Who has left was
        here and might have gone a moment after the start: nobody waits for another in its place.
        """
        state = self.state
        up = [state.neighbours[p] for p in state.neighbours.up() if p not in state.left]
        wanted = plans.wanted(state)
        have, want = 1 + len(up), max(1, state.spec.run.members_at_start - len(state.left))
        want = min(want, 1 + len(wanted)) if len(state.members()) >= want else want
        state.reason = f"{have} of the {want} members that start the run are here"
        claims = [one for one in up if one.begun]
        if 2 * len(claims) <= len(up):
            # Nobody, or a few that may be wrong or lie, say that the run has begun.
            state.deadline = None
            if have >= want:
                self._enter(have)
            return
        if state.deadline is None:
            state.deadline = state.now + min(_JOIN_S, state.spec.run.deadline_s)
        if have < want and state.now < state.deadline:
            # Who began knew where the others are: a moment, and they are connected here, too.
            return
        if 2 * sum(one.counted for one in claims) > len(claims):
            self._enter(have)
        else:
            # The run began without this node, or it lost its disk: no mass until it is given some.
            state.fact("joining a run that has begun")
            self._join()
            state.commit()

    def _enter(self, members: int) -> None:
        state = self.state
        state.mass.enter(state.nominal, state.statistics)
        state.links.entered = state.nominal
        state.begun = True
        state.starters = {p: state.neighbours[p].incarnation for p in state.neighbours.up()}
        state.fact("run began", members=members)
        state.commit()
        for peer in state.neighbours.connected():
            state.greet(peer)
        self._next()

    def _next(self) -> None:
        state = self.state
        roster.expire(state)
        epochs.begin(state)
        if state.round >= state.schedule.total:
            state.phase, state.reason = Phase.DRAINING, "every share is to find its place"
            state.deadline = state.settle_until = state.now + state.spec.run.deadline_s
            for peer in state.neighbours.connected():
                state.greet(peer)
        elif reason := cause_to_pause(state):
            state.phase, state.reason, state.deadline = Phase.PAUSED, reason, None
            state.fact("paused", "warning", reason=reason)
        else:
            rounds.begin(state)

    def _run(self) -> None:
        state = self.state
        exchanges.advance(state)
        if not rounds.is_ready(state) or is_validating(state):
            return
        assert state.deadline is not None
        if state.now >= state.deadline:
            rounds.end_of_wait(state)
        rounds.step(state)
        self._next()

    def _resume(self) -> None:
        state = self.state
        if not cause_to_pause(state):
            state.low_rounds = 0
            state.fact("resumed")
            state.round = min(
                state.neighbours.next_round(state.round - 1, state.voices()), state.schedule.total
            )
            self._next()

    def _drain(self) -> None:
        state = self.state
        rounds.settle_now(state)
        if state.now >= state.settle_until or rounds.is_settled(state):
            state.phase, state.reason, state.deadline = Phase.JUDGING, "the last evaluation", None
            state.emit(Evaluate(round=state.round, parameters=state.mass.z(), statistics=state.pooled))

    def _evaluated(self, event: Evaluated) -> None:
        state = self.state
        state.metrics = dict(event.metrics)
        final = state.phase is Phase.JUDGING and event.round == state.round
        state.fact("evaluated", round=event.round, final=final, metrics=dict(event.metrics))
        if final:
            self._finish("done")

    def _finish(self, reason: str) -> None:
        state = self.state
        state.phase, state.finished, state.reason, state.deadline = Phase.FINISHED, reason, "", None
        state.fact("run finished", reason=reason, metrics=dict(state.metrics))
        state.commit()
        code = "left" if reason == "left" else "finished"
        for peer in state.neighbours.connected():
            state.send(peer, Kind.NOTICE, Notice(code=code))
        state.emit(Finish(reason=reason))

    def _command(self, event: Commanded) -> None:
        state, arguments = self.state, event.arguments
        match event.verb:
            case "leave":
                state.leaving = True
                state.commit()
            case "pause":
                state.held = True
                state.commit()
            case "resume":
                state.held, state.learner_faults = False, 0
                state.commit()
            case "roster":
                roster.learn(state, arguments["roster"])
            case "dial":
                peer = PeerId(str(arguments.get("peer", "")))
                state.emit(Dial(peer=peer, addresses=tuple(arguments.get("addresses", ()))))
            case _:
                roster.command(state, event)
