"""Exchange of features for soft labels: FedGKT without a server.

An edge fits its extractor and small head, towards the soft labels of its hub where it has some (phase A),
and uploads features, predictions and labels of its samples.  A hub waits for its edges, or takes what is
there, judges the senders, trains its model on all of them mixed, and answers each sample with a soft label
(phase B).  A peer may be both: it is its own hub, and its features do not travel.

An edge's hub is the first in its ranking (ranking.py) of the hubs that it may tell.  When that one is gone
the next is the first: `offers` then names it, in either phase, and the edge keeps the soft labels it had.  A
soft label is for a sample id; it is listened to only when the hub's labels fit the edge's own held-out ones
better than its own head does, and the less the older it is.

Hubs tell each other what they have learned, see tier.py.  In the last round a hub tells its edges its model,
too, of which those that have a place for it keep it, so as to classify without asking anyone.

Source: He et al. 2020, arXiv:2007.14513 (FedGKT), eq. 8 to 11.  There is one server, which waits for all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from p2pfl.ids import PeerId, RunId
from p2pfl.knowledge import bodies, tier
from p2pfl.knowledge.bodies import Body
from p2pfl.knowledge.cache import Cache, Group, fresh, put, without
from p2pfl.knowledge.exchange import Heading, Offer, Phase, Reason
from p2pfl.knowledge.guard import is_better, suspects
from p2pfl.knowledge.hub_state import HubState
from p2pfl.knowledge.material import answer, material, samples, teacher, upload_of
from p2pfl.knowledge.options import ExchangeOptions, ProbeOptions
from p2pfl.knowledge.packets import (
    Coding,
    Features,
    HubModel,
    Packet,
    PacketKind,
    SoftLabels,
    features_bytes,
    hub_model_bytes,
    soft_labels_bytes,
)
from p2pfl.knowledge.ranking import Capability, rank
from p2pfl.knowledge.samples import rows_of
from p2pfl.work import (
    Answer,
    Answered,
    Distilled,
    Expected,
    Extract,
    Extracted,
    Fit,
    Fitted,
    Job,
    Judge,
    Judged,
    Learn,
    Learned,
    Mix,
    Mixed,
    Result,
)

__all__ = ["HubExchange"]

_CODINGS = {"int8": Coding.INT8, "float32": Coding.FLOAT32}
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class HubExchange:
    """Features for soft labels.

    last: the last round of training, None where nobody knows.   probe: of hubs that exchange predictions.
    """

    options: ExchangeOptions
    expected: Expected
    me: PeerId
    run: RunId
    last: int | None = None
    probe: ProbeOptions | None = None

    def start(self) -> HubState:
        """No hub known, nothing cached."""
        return HubState(cache=Cache(most_bytes=self.options["cache_mb"] * _MIB))

    def announced(self, state: HubState, peer: PeerId, capability: Capability) -> HubState:
        """`peer`, or this peer itself, is a hub of `capability`.  Capacity 0, or another split, is none."""
        hubs = {other: hub for other, hub in state.hubs.items() if other != peer}
        if capability.capacity > 0 and capability.split == self.expected.split:
            hubs[peer] = capability
        return replace(state, hubs=hubs)

    def hub(self, state: HubState) -> PeerId | None:
        """Whose soft labels this peer's samples get: its own, or those of the first hub it may tell."""
        capacities = {peer: hub.capacity for peer, hub in state.hubs.items()}
        if self.me in capacities:
            return self.me
        ranked = rank(self.me, self.run, {peer: capacities[peer] for peer in capacities.keys() & state.tells})
        return ranked[0] if ranked else None

    def partners(self, state: HubState) -> tuple[PeerId, ...]:
        """The other hubs here that this hub exchanges with."""
        return tier.partners(state, self.me, self.options["tier"])

    def begin(
        self, state: HubState, round_: int, *, hears: frozenset[PeerId], tells: frozenset[PeerId]
    ) -> HubState:
        """Phase A; features and soft labels that are too old are let go."""
        staleness = self.options["staleness"]
        cache = fresh(state.cache, round_, staleness=staleness, frozen_from=self.options["freeze_after"])
        is_fresh = state.taught is not None and round_ - 1 - state.taught[0] <= staleness
        return replace(
            state,
            round=round_,
            phase=Phase.A,
            hears=hears,
            tells=tells,
            done=frozenset(),
            taught=state.taught if is_fresh else None,
            cache=cache,
            losses={},
            answers={},
            model=None,
            models={peer: m for peer, m in state.models.items() if round_ - m.version <= staleness},
            beliefs={peer: b for peer, b in state.beliefs.items() if round_ - b.round <= staleness},
        )

    def jobs(self, state: HubState) -> tuple[Job, ...]:
        """Mix or Distill on a hub of a tier, Fit and, unless frozen features are up, Extract; then, on a hub,
        Judge, Learn and Answer for the tier, and at the end on an edge Mix, to keep the hub's model.
        """
        if state.phase is Phase.A:
            wanted: list[tuple[type, Job]] = []
            others = self.partners(state)
            if models := tier.models(state, others):
                wanted.append((Mixed, Mix(models=models)))
            if (lesson := tier.lesson(state, others, self.options)) is not None:
                wanted.append((Distilled, lesson))
            wanted.append((Fitted, self._fit(state)))
            if state.upload is None or not self._is_frozen(state.upload.features.version):
                wanted.append((Extracted, Extract(most=self.options["most_samples"])))
            return tuple(job for made, job in wanted if made not in state.done)
        if not self._is_hub(state):
            kept = self._delivered(state)
            return (Mix(models=kept, is_adopted=True),) if kept and not state.is_kept else ()
        if Learned in state.done:
            is_asked = self.probe is not None and Answered not in state.done and self.partners(state)
            return (Answer(is_of_hub=True),) if is_asked else ()
        found = self._material(state)
        if not found:
            return ()
        if Judged not in state.done:
            return (Judge(features={peer: samples(parts) for peer, parts in found.items()}),)
        suspected = suspects(state.losses) - {self.me}
        if found.keys() <= suspected:
            return ()
        return (
            Learn(
                features={peer: samples(parts) for peer, parts in found.items() if peer not in suspected},
                only_answer={peer: samples(parts) for peer, parts in found.items() if peer in suspected},
                alpha=self.options["alpha"],
                temperature=self.options["temperature"],
            ),
        )

    def made(self, state: HubState, result: Result) -> HubState:
        """Features become the upload, a hub's predictions its answers."""
        state = replace(state, done=state.done | {type(result)})
        match result:
            case Extracted():
                frozen_from = self.options["freeze_after"]
                upload = upload_of(
                    result,
                    expected=self.expected,
                    coding=self._coding,
                    most=self.options["most_samples"],
                    version=state.round if frozen_from is None else min(state.round, frozen_from),
                )
                return replace(state, upload=upload, sent={})
            case Judged():
                return replace(state, losses=result.losses)
            case Learned():
                answers = {
                    peer: answer(
                        parts, result.logits[peer], classes=self.expected.classes, round_=state.round
                    )
                    for peer, parts in self._material(state).items()
                    if peer in result.logits
                }
                state = replace(state, answers=answers, model=result.model)
                return self._taught(state, answers[self.me]) if self.me in answers else state
            case Answered() if self.probe is not None:
                return tier.believed(state, result, self.probe, self.expected.classes)
            case Mixed() if state.phase is Phase.B:
                return replace(state, is_kept=True)
            case _:
                return state

    def offers(self, state: HubState) -> tuple[Offer, ...]:
        """Features to the hub; a hub's answers, each to its sender, and its model to whom it is for."""
        found = []
        hub, answers = self.hub(state), state.answers

        def offer(kind: PacketKind, packet: Packet, *recipients: PeerId) -> None:
            found.append(Offer(recipients=recipients, kind=kind, round=state.round, packet=packet))

        if state.upload is not None and hub is not None and self._is_due(state, hub):
            offer(PacketKind.FEATURES, state.upload.features, hub)
        for peer in sorted(answers.keys() & (state.hears | state.tells)):
            offer(PacketKind.SOFT_LABELS, answers[peer], peer)
        others = self.partners(state)
        said = None if self.probe is None else tier.packet(state, self.probe)
        if said is not None and others:
            offer(PacketKind.PROBE, said, *others)
        to = set(others) if self.probe is None else set()
        if self._is_last(state):
            to |= {peer for peer in answers.keys() & state.hears if peer not in state.hubs}
        if state.model is not None and to:
            offer(PacketKind.HUB_MODEL, HubModel(values=state.model, version=state.round), *sorted(to))
        return tuple(found)

    def verdict(self, state: HubState, heading: Heading) -> Reason | None:
        """Features when this is a hub, once a round; soft labels from a hub that got the features."""
        if heading.kind is PacketKind.FEATURES and self._is_hub(state):
            is_known = heading.sender in state.hears
            newest_round = state.cache.round_of(heading.sender)
            most = min(self._features_bytes(self.options["most_samples"]), state.cache.most_bytes)
        elif heading.kind is PacketKind.SOFT_LABELS and state.upload is not None:
            is_known = heading.sender in self._marked(state).sent
            newest_round = state.heard
            most = soft_labels_bytes(state.upload.features.ids.size, classes=self.expected.classes)
        elif heading.kind is PacketKind.HUB_MODEL and self.expected.model_values:
            partners = self.partners(state)
            # A hub may be in the last round before its edge is.
            is_kept = self.options["deliver"] and heading.round == self.last
            is_mine = is_kept and heading.sender == self._hub_to_keep(state)
            is_known = is_mine or (self.probe is None and heading.sender in partners)
            model = state.models.get(heading.sender)
            newest_round = -1 if model is None else model.version
            most = hub_model_bytes(self.expected.model_values)
        elif heading.kind is PacketKind.PROBE and self.probe is not None and self._is_hub(state):
            is_known = heading.sender in self.partners(state)
            held = state.beliefs.get(heading.sender)
            newest_round = -1 if held is None else held.round
            most = tier.most_bytes(self.probe, self.expected.classes)
        else:
            return "kind"
        if not is_known:
            return "not-accepted"
        if not state.round - self.options["staleness"] <= heading.round <= state.round + 1:
            return "round"
        if heading.round <= newest_round:
            return "repeated"
        return "size" if heading.size > most else None

    def absorb(self, state: HubState, heading: Heading, body: Body) -> HubState:
        """Features into the cache; soft labels, if they are any good, for the next fit."""
        K = self.expected.classes
        if heading.kind is PacketKind.FEATURES:
            most = self.options["most_samples"]
            features = bodies.decode_features(
                body, classes=K, width=self.expected.width, most=most, coding=self._coding
            )
            return replace(
                state, cache=put(state.cache, self._group(heading.sender, heading.round, features))
            )
        if heading.kind is PacketKind.HUB_MODEL:
            said = bodies.decode_hub_model(body, values=self.expected.model_values)
            said = replace(said, version=heading.round)
            return replace(state, models={**state.models, heading.sender: said})
        if heading.kind is PacketKind.PROBE:
            assert self.probe is not None
            return tier.heard(state, heading, body, self.probe, K)
        assert state.upload is not None
        soft = bodies.decode_soft_labels(body, classes=K, most=state.upload.features.ids.size)
        return self._taught(replace(state, heard=heading.round), soft, heading.round)

    def awaited(self, state: HubState) -> frozenset[PeerId]:
        """In phase A a hub's edges, in phase B an edge's hub and a hub's tier; nobody when asynchronous."""
        if self.options["asynchronous"]:
            return frozenset()
        if state.phase is Phase.B:
            if Learned in state.done and state.round != self.last:
                return tier.untold(state, self.partners(state))
            hub = self.hub(state)
            if hub is None or hub == self.me or hub not in state.sent:
                return frozenset()
            is_owed = self._is_last(state) and hub == self._hub_to_keep(state) and not self._delivered(state)
            return frozenset({hub}) if is_owed or state.heard < state.round else frozenset()
        if not self._is_hub(state):
            return frozenset()
        hubs = {peer: c.capacity for peer, c in state.hubs.items() if peer in state.hears | {self.me}}
        mine = {edge for edge in state.hears if edge not in hubs and rank(edge, self.run, hubs)[0] == self.me}
        return frozenset(edge for edge in mine if self._is_missing(state, edge))

    def turn(self, state: HubState) -> HubState:
        """Phase B; a hub's own features join the others, without travelling."""
        state = replace(self._marked(state), phase=Phase.B)
        if state.upload is not None and self.hub(state) == self.me:
            own = self._group(self.me, state.round, state.upload.features)
            state = replace(state, cache=put(state.cache, own))
        return state

    def peer_gone(self, state: HubState, peer: PeerId) -> HubState:
        """Its features go; its edges' next hub is the one behind it in their ranking."""
        return replace(
            state,
            hears=state.hears - {peer},
            tells=state.tells - {peer},
            sent={hub: round_ for hub, round_ in state.sent.items() if hub != peer},
            cache=without(state.cache, peer),
            models={hub: model for hub, model in state.models.items() if hub != peer},
            beliefs={hub: belief for hub, belief in state.beliefs.items() if hub != peer},
        )

    # --- hubs' models --------------------------------------------------------------------------------

    def _is_last(self, state: HubState) -> bool:
        return self.last is not None and state.round == self.last and bool(self.options["deliver"])

    def _hub_to_keep(self, state: HubState) -> PeerId | None:
        """The hub of this site, where the site has a place for a model of its kind."""
        hub = self.hub(state)
        is_kept = self.expected.model_values and hub in state.hubs
        return hub if is_kept and hub and state.hubs[hub].model == self.expected.model else None

    def _delivered(self, state: HubState) -> dict[PeerId, NDArray[np.float32]]:
        """The model of this edge's hub, in the last round."""
        hub = self.hub(state)
        if hub is None or not self._is_last(state) or hub not in state.models:
            return {}
        return {hub: said.values} if (said := state.models[hub]).version == state.round else {}

    # --- as an edge ----------------------------------------------------------------------------------

    def _fit(self, state: HubState) -> Fit:
        return Fit(teacher=teacher(state, self.options), is_frozen=self._is_frozen(state.round))

    def _taught(self, state: HubState, soft: SoftLabels, round_: int | None = None) -> HubState:
        """`soft` for the next fit, when it beats the own head; else what there was.  Raises RemoteError."""
        assert state.upload is not None
        own = state.upload.features
        rows = rows_of(own.ids, soft.ids)
        judged = state.upload.is_held_out[rows]
        if not state.upload.is_held_out.any():
            judged = np.ones(rows.size, np.bool_)
        rows = rows[judged]
        if not is_better(soft.z[judged], own.z[rows], own.labels[rows]):
            return state
        return replace(state, taught=(state.round if round_ is None else round_, soft))

    def _marked(self, state: HubState) -> HubState:
        """`state` in which the hub has been offered the upload."""
        hub = self.hub(state)
        if state.upload is None or hub is None or hub == self.me or hub in state.sent:
            return state
        return replace(state, sent={**state.sent, hub: state.round})

    def _is_due(self, state: HubState, hub: PeerId) -> bool:
        # Frozen features are offered in one round only, but for a standby: in the round in which the hub was
        # lost, and in the next.
        return hub != self.me and state.sent.get(hub, state.round) == state.round

    def _is_frozen(self, round_: int) -> bool:
        frozen_from = self.options["freeze_after"]
        return frozen_from is not None and round_ >= frozen_from

    # --- as a hub ------------------------------------------------------------------------------------

    def _is_hub(self, state: HubState) -> bool:
        return self.hub(state) == self.me

    def _is_missing(self, state: HubState, edge: PeerId) -> bool:
        """Whether `edge` still owes features.  One that sends none for `staleness` rounds owes none."""
        newest_round = state.cache.round_of(edge)
        if newest_round < 0:
            return bool(state.round <= self.options["staleness"])
        held = [g for g in state.cache.groups if g.sender == edge]
        return newest_round < state.round and not any(self._is_frozen(g.features.version) for g in held)

    def _material(self, state: HubState) -> dict[PeerId, tuple[Features, ...]]:
        return material(state.cache, self.options["most_samples"])

    def _group(self, sender: PeerId, round_: int, features: Features) -> Group:
        size = self._features_bytes(features.ids.size)
        return Group(sender=sender, round=round_, features=features, size=size)

    def _features_bytes(self, n: int) -> int:
        return features_bytes(
            n, width=self.expected.width, classes=self.expected.classes, coding=self._coding
        )

    @property
    def _coding(self) -> Coding:
        return _CODINGS[self.options["coding"]]
