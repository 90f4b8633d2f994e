"""Exchange of class prototypes: FedProto without a server.

Phase A: fit, with embeddings drawn to the centres of the last round, and tell the neighbours the mean
embedding of each class.   Phase B: the centres are the geometric medians of what was heard and the own means;
the learner has nothing to do.  Models may differ in everything but the width of the embedding and the
classes.
Source: Tan et al. 2022, arXiv:2105.00243 (FedProto).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from p2pfl.ids import PeerId
from p2pfl.knowledge import bodies
from p2pfl.knowledge.bodies import Body
from p2pfl.knowledge.centres import class_means, combine
from p2pfl.knowledge.exchange import Heading, Offer, Phase, Reason
from p2pfl.knowledge.options import ExchangeOptions
from p2pfl.knowledge.packets import PacketKind, Prototypes, prototypes_bytes
from p2pfl.work import Expected, Fit, Fitted, Job, Pull, Result, Summarise, Summarised

__all__ = ["ProtoState", "ProtoExchange"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtoState:
    """Where a site stands.   heard: by peer, the round and its prototypes.   pull: for the next fit."""

    round: int = -1
    phase: Phase = Phase.A
    hears: frozenset[PeerId] = frozenset()
    tells: frozenset[PeerId] = frozenset()
    done: frozenset[type] = frozenset()
    own: Prototypes | None = None
    heard: Mapping[PeerId, tuple[int, Prototypes]] = field(default_factory=dict)
    pull: Pull | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtoExchange:
    """Mean embeddings of classes."""

    options: ExchangeOptions
    expected: Expected
    me: PeerId

    def start(self) -> ProtoState:
        """No centres yet: the first fit has no pull."""
        return ProtoState()

    def begin(
        self, state: ProtoState, round_: int, *, hears: frozenset[PeerId], tells: frozenset[PeerId]
    ) -> ProtoState:
        """Phase A; packets that came early are kept."""
        early = {peer: said for peer, said in state.heard.items() if said[0] >= round_ and peer in hears}
        return ProtoState(round=round_, hears=hears, tells=tells, heard=early, pull=state.pull)

    def jobs(self, state: ProtoState) -> tuple[Job, ...]:
        """Fit and Summarise; phase B has none."""
        if state.phase is Phase.B:
            return ()
        wanted: tuple[tuple[type, Job], ...] = ((Fitted, Fit(pull=state.pull)), (Summarised, Summarise()))
        return tuple(job for made, job in wanted if made not in state.done)

    def made(self, state: ProtoState, result: Result) -> ProtoState:
        """Embeddings become class means, of the classes with enough samples."""
        state = replace(state, done=state.done | {type(result)})
        if not isinstance(result, Summarised):
            return state
        least = self.options["least_count"]
        own = class_means(result.embeddings, result.labels, classes=self.expected.classes, least=least)
        return replace(state, own=own)

    def offers(self, state: ProtoState) -> tuple[Offer, ...]:
        """The own means to everyone who is told; nothing when no class has enough samples."""
        if state.own is None or not state.tells:
            return ()
        to = tuple(sorted(state.tells))
        return (Offer(recipients=to, kind=PacketKind.PROTOTYPES, round=state.round, packet=state.own),)

    def verdict(self, state: ProtoState, heading: Heading) -> Reason | None:
        """One packet a round from whom one hears, of this round or a later one."""
        if heading.kind is not PacketKind.PROTOTYPES:
            return "kind"
        if heading.sender not in state.hears:
            return "not-accepted"
        if heading.round < state.round or (state.phase is Phase.B and heading.round == state.round):
            return "round"
        if heading.sender in state.heard and heading.round <= state.heard[heading.sender][0]:
            return "repeated"
        most = prototypes_bytes(self.expected.classes, width=self.expected.width)
        return "size" if heading.size > most else None

    def absorb(self, state: ProtoState, heading: Heading, body: Body) -> ProtoState:
        """The sender's class means."""
        said = bodies.decode_prototypes(body, classes=self.expected.classes, width=self.expected.width)
        return replace(state, heard={**state.heard, heading.sender: (heading.round, said)})

    def awaited(self, state: ProtoState) -> frozenset[PeerId]:
        """In phase A, those whose packet of this round is missing."""
        return state.hears - state.heard.keys() if state.phase is Phase.A else frozenset()

    def turn(self, state: ProtoState) -> ProtoState:
        """Phase B: the centres for the next fit.  A class that nobody has keeps the centre it had."""
        said = {peer: prototypes for peer, (_, prototypes) in state.heard.items()}
        if state.own is not None:
            said[self.me] = state.own
        if not said:
            return replace(state, phase=Phase.B)
        centres, is_known = combine(
            [said[peer] for peer in sorted(said)],
            classes=self.expected.classes,
            width=self.expected.width,
            least=self.options["least_count"],
        )
        if state.pull is not None:
            is_kept = state.pull.is_known & ~is_known
            centres[is_kept] = state.pull.centres[is_kept]
            is_known = is_known | is_kept
        pull = Pull(centres=centres, is_known=is_known, strength=self.options["strength"])
        return replace(state, phase=Phase.B, pull=pull)

    def peer_gone(self, state: ProtoState, peer: PeerId) -> ProtoState:
        """What it said does not count in this round."""
        heard = {other: said for other, said in state.heard.items() if other != peer}
        return replace(state, hears=state.hears - {peer}, tells=state.tells - {peer}, heard=heard)
