"""A Byzantine peer: an honest one, with somebody between it and the network who rewrites what goes out.

Theory of operation.  The peer inside trains, mixes, keeps its books and speaks the protocol; whatever it asks
its driver for passes through here.  A body (SHARE or STATE) is replaced by one forged for its receiver, and
everything that must fit it is made to: size, digest, weight, and the round statement, with a commitment to
each forged body, on a chain of its own.  So only the content is a lie, unless the attack is on the protocol
(protocol_lies.py).  What is said again is said as it was.

What the attacker sees is what `sees` tells of other peers' models: in a world, everything; without it, the
newest body that each of them sent here, as in a daemon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np

from p2pfl import plans
from p2pfl.events import Effect, Event, Header, Kind, Message, Received, Send, Statement, Train, Vector
from p2pfl.gossip import push_sum
from p2pfl.gossip.links import WINDOW
from p2pfl.gossip.mixing import Floats
from p2pfl.gossip.push_sum import PushSumState
from p2pfl.gossip.topology import Plan
from p2pfl.ids import PeerId
from p2pfl.mass import body_bytes, pack, unpack
from p2pfl.participant import Participant
from p2pfl.state import State
from p2pfl.trust import audit
from p2pfl.view import PeerView
from p2pfl.work import Worked

from . import protocol_lies
from .attacks import FORGE, PROTOCOL_KINDS, AttackOptions, Sight, forge
from .false_knowledge import false_result
from .placement import fiedler, slowest

__all__ = ["ByzantinePeer"]

_Edge = tuple[PeerId, Kind]


class ByzantinePeer:
    """A Peer whose words are forged on the way out.  Handling stays total."""

    def __init__(
        self,
        inner: Participant,
        attack: AttackOptions,
        *,
        is_byzantine: Callable[[PeerId], bool],
        sees: Callable[[PeerId], Vector | None] | None = None,
        victim: PeerId | None = None,
    ) -> None:
        """is_byzantine: who is with the attackers.   sees: a peer's model, None where it is not known.

        victim: whom an eclipse is for; the others are told no lies then.
        """
        self._inner, self._attack, self._victim = inner, attack, victim
        self._is_byzantine, self._sees = is_byzantine, sees or self._last_heard
        self._heard: dict[PeerId, Vector] = {}
        # The last messages with a body on each edge, as they went out.
        self._sent: dict[_Edge, list[Message]] = {}
        # The contents of the last round's statement: one, and an equivocator's second.
        self._stories: list[bytes] = []
        self._head: audit.Head | None = None
        # What the last fit began with.
        self._before: Vector | None = None
        self._spectrum: tuple[Plan, float, Floats] | None = None

    # --- the interface of a Peer -------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state of the peer inside."""
        return self._inner.state

    @property
    def deadline(self) -> float | None:
        """When `expire` is to be called, unless an event comes first."""
        return self._inner.deadline

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event; returns what is to be done, forged."""
        self._listen(event)
        if isinstance(event, Worked) and event.result is not None and self._has_begun(self.state.round):
            event = replace(event, result=false_result(self._attack, event.result))
        return self._rewritten(self._inner.handle(event, now))

    def expire(self, now: float) -> list[Effect]:
        """`deadline` has passed."""
        return self._rewritten(self._inner.expire(now))

    def view(self) -> PeerView:
        """What can be shown of the peer inside."""
        return self._inner.view()

    def wanted(self) -> tuple[PeerId, ...]:
        """The members it wants a connection to."""
        return self._inner.wanted()

    def knows(self, peer: PeerId) -> bool:
        """Whether `peer` is a member that it talks to."""
        return self._inner.knows(peer)

    def model(self) -> Vector:
        """The model of the peer inside."""
        return self._inner.model()

    # --- what it sees ------------------------------------------------------------------------------------

    def _listen(self, event: Event) -> None:
        if not (isinstance(event, Received) and _is_model(event.message)):
            return
        header, body, mass = event.message.header, event.message.body, self.state.mass
        assert isinstance(body, np.ndarray)
        if body.nbytes == body_bytes(len(mass.model), mass.k):
            self._heard[event.peer] = _model_in(unpack(body, _weight(header), mass.k))

    def _last_heard(self, peer: PeerId) -> Vector | None:
        return self._heard.get(peer)

    def _sight(self, target: PeerId, number: int, own: Vector) -> Sight:
        """What is known when a body for `target` is forged in round `number`."""
        state = self.state
        plan, members = plans.plan_of(state, number)
        i = members.index(target)
        heard = plan.in_neighbours(i)
        seen = [(j, self._sees(members[j])) for j in heard if not self._is_byzantine(members[j])]
        others = [(j, model) for j, model in seen if model is not None]
        itself = self._sees(target)
        weights: Floats | None = None
        if plans.is_state(state) and state.spec.trust.aggregator.kind == "none":
            row = plan.row(i)
            weights = np.array([row[i], *(row[j] for j, _ in others)])
        return Sight(
            honest=np.stack([own if itself is None else itself, *(model for _, model in others)]),
            own=own,
            before=own if self._before is None else self._before,
            n=1 + len(heard),
            byzantine=len(heard) - len(seen),
            round=number - state.schedule.opening,
            rng=np.random.default_rng([*state.seed(FORGE)[:3], number, i]),
            weights=weights,
            slowest=self._slowest(plan, members, i, own) if self._attack.kind == "spectral" else None,
        )

    def _slowest(self, plan: Plan, members: tuple[PeerId, ...], i: int, own: Vector) -> Vector:
        honest = [j for j, name in enumerate(members) if not self._is_byzantine(name)]
        seen = [self._sees(members[j]) for j in honest]
        models = [own if model is None else model for model in seen]
        if self._spectrum is None or self._spectrum[0].graph is not plan.graph:
            self._spectrum = (plan, *fiedler(plan, honest))
        _, mu, e = self._spectrum
        return slowest(mu, e, np.stack(models), honest.index(i))

    # --- what it says ------------------------------------------------------------------------------------

    def _rewritten(self, effects: list[Effect]) -> list[Effect]:
        said: list[Effect] = []
        bodies: list[Send] = []
        statements: list[tuple[Send, Statement]] = []
        for effect in effects:
            body = effect.message.body if isinstance(effect, Send) else None
            new = body if isinstance(body, Statement) and body.content not in self._stories else None
            if statements and (
                (isinstance(effect, Send) and _is_model(effect.message))
                or (new and new.content != statements[0][1].content)
            ):
                # Another round begins: a peer that was behind takes several steps at once.
                said += self._restated(statements, bodies)
                bodies, statements = [], []
            if isinstance(effect, Send) and _is_model(effect.message):
                messages = [
                    Send(peer=effect.peer, message=m) for m in self._body(effect.peer, effect.message)
                ]
                said += messages
                bodies += messages
            elif isinstance(effect, Send) and new is not None:
                statements.append((effect, new))
            else:
                said.append(effect)
        if statements:
            said += self._restated(statements, bodies)
        # Only now: a peer asks for its next fit in the same breath in which it sends what the last one gave.
        for effect in effects:
            if isinstance(effect, Train):
                self._before = effect.parameters
        return said

    def _body(self, peer: PeerId, message: Message) -> list[Message]:
        """What goes out for one message with a body: what went out before, if it did, or a forgery."""
        header = message.header
        before = self._sent.setdefault((peer, header.kind), [])
        again = [old for old in before if old.header.edge_seq == header.edge_seq]
        if again:
            return again
        said = message
        if self._has_begun(header.round):
            lie = self._forged(peer, message)
            if lie is None:
                return []
            said = lie
        messages = [said, *before] if self._attack.kind == "replay" else [said]
        self._sent[(peer, header.kind)] = [*before, said][-WINDOW:]
        return messages

    def _forged(self, peer: PeerId, message: Message) -> Message | None:
        header, body = message.header, message.body
        assert isinstance(body, np.ndarray)
        k = self.state.mass.k
        if self._is_byzantine(peer) or peer not in self.state.members():
            return message
        if self._attack.kind == "eclipse" and peer != self._victim:
            return message
        if self._attack.kind in PROTOCOL_KINDS:
            return protocol_lies.forged(self._attack, message, k=k, position=self._position(peer))
        part = unpack(body, _weight(header), k)
        own = _model_in(part)
        vector = forge(self._attack, self._sight(peer, header.round, own))
        if vector is None or vector is own:
            return None if vector is None else message
        return protocol_lies.with_body(message, pack(_numerator(vector, part)))

    def _restated(self, statements: list[tuple[Send, Statement]], bodies: list[Send]) -> list[Send]:
        """The round's statement, committing to what went out; the next one will name it as its `prev`."""
        said: dict[PeerId, Header] = {}
        for send in bodies:
            said.setdefault(send.peer, send.message.header)
        salts = {send.peer: word.salt for send, word in statements if send.peer in said and word.salt}
        commitments = [
            audit.commit(salt, peer, said[peer].edge_seq, said[peer].digest, said[peer].weights)
            for peer, salt in salts.items()
        ]
        stated, _ = audit.read(statements[0][1].content)
        if self._head is not None and self._head.number + 1 == stated.number:
            # The peer inside has not seen what became of its last one, where it takes two steps at once.
            stated = replace(stated, prev=self._head.hash)
        stated = replace(stated, commitments=tuple(sorted(commitments)))
        self._stories = protocol_lies.stories(self._attack, stated, self._stories)
        self.state.head = self._head = audit.head_of(self._stories[0])
        result = []
        for send, _ in statements:
            story = self._stories[protocol_lies.version(self._position(send.peer)) % len(self._stories)]
            body = Statement(content=story, salt=salts.get(send.peer, b""))
            result.append(Send(peer=send.peer, message=msgspec.structs.replace(send.message, body=body)))
        # What the peer says again is what was said.
        self.state.last_words = [*result, *(s for s in bodies if s.message.header.kind is Kind.STATE)]
        return result

    def _has_begun(self, number: int) -> bool:
        return number - self.state.schedule.opening >= max(0, self._attack.starts_at)

    def _position(self, peer: PeerId) -> int:
        return self.state.members().index(peer) if peer in self.state.members() else 0


def _is_model(message: Message) -> bool:
    return message.header.kind in (Kind.SHARE, Kind.STATE) and isinstance(message.body, np.ndarray)


def _weight(header: Header) -> float:
    return header.weights[0] if header.kind is Kind.SHARE and header.weights else 1.0


def _model_in(part: PushSumState) -> Vector:
    model: Vector = push_sum.debias(part)[0]
    return model


def _numerator(model: Vector, part: PushSumState) -> PushSumState:
    """`part` with another model in it, of the same weight."""
    with np.errstate(all="ignore"):
        return PushSumState(x=(model[None] * part.w[:, None]).astype(np.float32), w=part.w, s=part.s)
