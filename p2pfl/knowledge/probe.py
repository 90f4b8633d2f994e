"""Exchange of predictions on a probe set that every site holds: FedMD without a server.

Phase A: fit on the own samples, predict on the probe set, tell the neighbours.   Phase B: combine what was
heard with the own predictions, and distil.  Models may differ in everything but the classes.

To those who were told in the last round a difference to that packet travels, to all others everything; every
`whole_every`th round everything to all, for one whose last packet was lost on the way and who cannot follow.
Source: Li and Wang 2019, arXiv:1910.03581; for graphs, Ravikumar et al. 2023, arXiv:2304.04326 (IDKD).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from p2pfl.errors import LocalError
from p2pfl.ids import PeerId
from p2pfl.knowledge import bodies
from p2pfl.knowledge.beliefs import log_softmax
from p2pfl.knowledge.bodies import Body
from p2pfl.knowledge.consensus import Held, applied, combine, in_distribution, threshold, whole, written
from p2pfl.knowledge.exchange import Heading, Offer, Phase, Reason
from p2pfl.knowledge.options import ExchangeOptions, ProbeOptions
from p2pfl.knowledge.packets import Coding, PacketKind, Probe, probe_bytes
from p2pfl.work import Answer, Answered, Distill, Distilled, Expected, Fit, Fitted, Job, Result

__all__ = ["ProbeState", "ProbeExchange"]

_CODINGS = {"int8": Coding.INT8, "float16": Coding.FLOAT16}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeState:
    """Where a site stands.

    done: the jobs of this round that have their results.   own: what those who heard the last packet hold of
    me.   told: who they are, of the last round.   packet: this round's, once it is made.   heard: each
    neighbour's predictions, as of its last packet.
    """

    round: int = -1
    phase: Phase = Phase.A
    hears: frozenset[PeerId] = frozenset()
    tells: frozenset[PeerId] = frozenset()
    done: frozenset[type] = frozenset()
    own: Held | None = None
    told: frozenset[PeerId] = frozenset()
    packet: Probe | None = None
    heard: Mapping[PeerId, Held] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeExchange:
    """Predictions on a probe set."""

    options: ExchangeOptions
    probe: ProbeOptions
    expected: Expected
    me: PeerId

    def start(self) -> ProbeState:
        """Nothing heard, nothing told."""
        return ProbeState()

    def begin(
        self, state: ProbeState, round_: int, *, hears: frozenset[PeerId], tells: frozenset[PeerId]
    ) -> ProbeState:
        """Phase A; who is not in `hears` is forgotten, and comes back with a whole packet."""
        return ProbeState(
            round=round_,
            hears=hears,
            tells=tells,
            own=state.own,
            told=state.told if state.packet is None else state.tells,
            heard={peer: held for peer, held in state.heard.items() if peer in hears},
        )

    def jobs(self, state: ProbeState) -> tuple[Job, ...]:
        """Fit and Answer; then Distill, when any neighbour was heard in this round."""
        if state.phase is Phase.A:
            wanted: tuple[tuple[type, Job], ...] = ((Fitted, Fit()), (Answered, Answer()))
            return tuple(job for made, job in wanted if made not in state.done)
        heard = {peer: state.heard[peer] for peer in self._in_time(state)}
        if Distilled in state.done or not heard:
            return ()
        if state.own is not None and Answered in state.done:
            heard[self.me] = state.own
        p, is_used = combine(
            [heard[peer] for peer in sorted(heard)], self.options["combine"], self.options["sharpen"]
        )
        if not is_used.any():
            return ()
        return (
            Distill(
                p=p,
                is_used=is_used,
                alpha=self.options["alpha"],
                temperature=self.options["temperature"],
                epochs=self.options["epochs"],
            ),
        )

    def made(self, state: ProbeState, result: Result) -> ProbeState:
        """Predictions become the round's packet."""
        state = replace(state, done=state.done | {type(result)})
        if not isinstance(result, Answered):
            return state
        log_p = log_softmax(result.logits)
        if log_p.shape != (self.probe.samples, self.expected.classes):
            raise LocalError(
                f"predictions of shape {log_p.shape} on a probe set of {self.probe.samples} samples and"
                f" {self.expected.classes} classes; check knowledge.probe and the learner's classes"
            )
        least = threshold(np.asarray(result.confidence), self.options["keep"])
        is_whole = state.own is None or state.round % self.options["whole_every"] == 0
        packet, own = written(
            log_p,
            in_distribution(log_p, least),
            digest=bytes.fromhex(self.probe.digest),
            coding=self._coding,
            round_=state.round,
            before=None if is_whole else state.own,
            tolerance=self.options["tolerance"],
        )
        return replace(state, packet=packet, own=own)

    def offers(self, state: ProbeState) -> tuple[Offer, ...]:
        """The round's packet to those who heard the last one, and all of it to the others."""
        if state.packet is None or state.own is None:
            return ()
        groups = (
            (state.packet, state.tells & state.told),
            (whole(state.own, digest=state.packet.digest, coding=self._coding), state.tells - state.told),
        )
        return tuple(
            Offer(
                recipients=tuple(sorted(peers)),
                kind=PacketKind.PROBE,
                round=state.round,
                packet=packet,
            )
            for packet, peers in groups
            if peers
        )

    def verdict(self, state: ProbeState, heading: Heading) -> Reason | None:
        """One packet a round from whom one hears, a round old at most, no larger than all and a mask."""
        if heading.kind is not PacketKind.PROBE:
            return "kind"
        if heading.sender not in state.hears:
            return "not-accepted"
        if heading.round < state.round - 1:
            return "round"
        held = state.heard.get(heading.sender)
        if held is not None and heading.round <= held.round:
            return "repeated"
        n, K = self.probe.samples, self.expected.classes
        most = probe_bytes(n, rows=n, classes=K, coding=self._coding, is_delta=True)
        return "size" if heading.size > most else None

    def absorb(self, state: ProbeState, heading: Heading, body: Body) -> ProbeState:
        """The sender's predictions as they now stand."""
        packet = bodies.decode_probe(
            body,
            digest=bytes.fromhex(self.probe.digest),
            classes=self.expected.classes,
            samples=self.probe.samples,
            coding=self._coding,
        )
        now = applied(state.heard.get(heading.sender), packet, heading.round)
        return replace(state, heard={**state.heard, heading.sender: now})

    def awaited(self, state: ProbeState) -> frozenset[PeerId]:
        """In phase A, those whose packet of this round is missing."""
        return state.hears - self._in_time(state) if state.phase is Phase.A else frozenset()

    def turn(self, state: ProbeState) -> ProbeState:
        """Phase B."""
        return replace(state, phase=Phase.B)

    def peer_gone(self, state: ProbeState, peer: PeerId) -> ProbeState:
        """What it said is forgotten; when it comes back both sides begin with a whole packet."""
        return replace(
            state,
            hears=state.hears - {peer},
            tells=state.tells - {peer},
            told=state.told - {peer},
            heard={other: held for other, held in state.heard.items() if other != peer},
        )

    def _in_time(self, state: ProbeState) -> frozenset[PeerId]:
        return frozenset(peer for peer, held in state.heard.items() if held.round >= state.round)

    @property
    def _coding(self) -> Coding:
        return _CODINGS[self.options["coding"]]
