"""Features for soft labels: the right sample, the right hub, and whom nobody believes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from exchanging import Site, Sites
from poisoners import bad_answer, flipped_labels

from p2pfl.ids import PeerId, RunId
from p2pfl.knowledge import bodies
from p2pfl.knowledge.beliefs import LOGIT_FLOOR, cross_entropy, log_softmax
from p2pfl.knowledge.cache import without
from p2pfl.knowledge.exchange import Heading
from p2pfl.knowledge.hub import HubExchange
from p2pfl.knowledge.options import ExchangeOptions
from p2pfl.knowledge.packets import (
    Coding,
    PacketKind,
    SoftLabels,
    features_bytes,
    hidden_of,
    hub_model_bytes,
    soft_labels_bytes,
)
from p2pfl.knowledge.ranking import Capability, rank
from p2pfl.knowledge.samples import sample_ids
from p2pfl.work import (
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
    Samples,
)

K, D, N = 4, 6, 30
RUN = RunId("11" * 32)
SPLIT = b"\x05" * 32
EXPECTED = Expected(classes=K, width=D, split=SPLIT, model=bytes([1]) * 32, model_values=5)
HUBS = [PeerId("hub-1"), PeerId("hub-2")]
EDGES = [PeerId(f"edge-{i}") for i in range(6)]


class Model:
    """An edge whose hidden values tell the class but whose head does not see it, and a hub that does."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(K, size=N)
        self.hidden = np.hstack([np.eye(K)[self.labels], rng.normal(size=(N, D - K))]).astype(np.float32)
        self.logits = rng.normal(size=(N, K))
        self.ids = sample_ids(bytes([seed]) * 32, RUN, N)
        self.is_lying = False
        self.fit = Fit()
        self.learn: Learn | None = None
        self.mixed: list[Mix] = []
        self.weights = np.full(5, seed, np.float32)

    def __call__(self, job: Job) -> Result:
        match job:
            case Fit():
                self.fit = job
                return Fitted()
            case Extract():
                labels = (self.labels + 1) % K if self.is_lying else self.labels
                is_held_out = np.arange(N) % 3 == 0
                return Extracted(
                    ids=self.ids,
                    hidden=self.hidden,
                    logits=self.logits,
                    labels=labels,
                    is_held_out=is_held_out,
                )
            case Judge():
                losses = {peer: cross_entropy(self.answer(f), f.labels) for peer, f in job.features.items()}
                return Judged(losses=losses)
            case Learn():
                self.learn = job
                everyone = {**job.features, **job.only_answer}
                logits = {peer: self.answer(f) for peer, f in everyone.items()}
                return Learned(logits=logits, model=self.weights)
            case Mix():
                self.mixed.append(job)
                return Mixed()
        raise AssertionError(job)

    def answer(self, features: Any) -> np.ndarray:
        hidden = features.values() if isinstance(features, Samples) else hidden_of(features)
        return log_softmax(5 * hidden[:, :K])


def sites(hubs: list[PeerId] = HUBS, last: int | None = None, **options: Any) -> tuple[Sites, Any]:
    chosen = ExchangeOptions(kind="hub", share_features=True, **options)
    models = {peer: Model(i) for i, peer in enumerate([*hubs, *EDGES])}
    network = Sites(
        {
            peer: Site(
                exchange=HubExchange(options=chosen, expected=EXPECTED, me=peer, run=RUN, last=last),
                learner=model,
            )
            for peer, model in models.items()
        }
    )
    for site in network.sites.values():
        for hub in hubs:
            assert isinstance(site.exchange, HubExchange)
            site.state = site.exchange.announced(site.state, hub, capability())
    return network, models


def capability(model: int = 1, capacity: float = 1.0, split: bytes = SPLIT) -> Capability:
    return Capability(capacity=capacity, model=bytes([model]) * 32, split=split)


def hub_of(edge: PeerId, hubs: list[PeerId] = HUBS) -> PeerId:
    return rank(edge, RUN, dict.fromkeys(hubs, 1.0))[0]


def edges_of(hub: PeerId) -> list[PeerId]:
    return [edge for edge in EDGES if hub_of(edge) == hub]


def test_every_edge_learns_from_its_own_samples_labels_in_the_next_round() -> None:
    network, models = sites()
    missed = network.round(0)
    assert set(missed.values()) == {frozenset()}
    assert all(models[edge].fit.teacher is None for edge in EDGES)
    network.round(1)
    for edge in EDGES:
        teacher = models[edge].fit.teacher
        assert teacher is not None
        assert (teacher.alpha, teacher.temperature) == (1.0, 3.0)
        # The soft label that came back under a sample's id is that sample's.
        place = {int(name): row for row, name in enumerate(models[edge].ids)}
        rows = [place[int(name)] for name in teacher.ids]
        assert len(rows) == N
        assert (np.argmax(teacher.log_p, axis=1) == models[edge].labels[rows]).all()


def test_bytes_are_those_of_the_formula_and_a_hub_s_own_features_stay_at_home() -> None:
    network, _ = sites()
    network.round(0)
    up = features_bytes(N, width=D, classes=K, coding=Coding.INT8)
    down, across = soft_labels_bytes(N, classes=K), hub_model_bytes(5)
    by_hubs = {hub: len(edges_of(hub)) * down + across for hub in HUBS}
    assert network.sent == dict.fromkeys(EDGES, up) | by_hubs
    for hub in HUBS:
        assert {g.sender for g in network.sites[hub].state.cache.groups} == {hub, *edges_of(hub)}
        assert network.sites[hub].state.taught is not None


def test_when_a_hub_dies_between_the_phases_its_edges_upload_to_the_standby_at_once() -> None:
    network, models = sites()
    network.round(0)
    dead, standby = HUBS
    moved = edges_of(dead)
    missed = network.round(1, middle=lambda: network.gone(dead))
    assert missed == {peer: frozenset() for peer in [standby, *EDGES]} | {dead: frozenset()}
    cached = {g.sender for g in network.sites[standby].state.cache.groups}
    assert cached == {standby, *EDGES}
    network.round(2)
    for edge in EDGES:
        teacher = models[edge].fit.teacher
        assert teacher is not None
        assert teacher.alpha == pytest.approx(0.7 if edge in moved else 1.0)
    network.round(3)
    assert all(models[edge].fit.teacher.alpha == 1.0 for edge in EDGES)


def test_without_any_hub_edges_go_on_alone_and_old_labels_fade_and_end() -> None:
    network, models = sites(staleness=2)
    network.round(0)
    for hub in HUBS:
        network.gone(hub)
    alphas = []
    for number in range(1, 5):
        assert set(network.round(number).values()) == {frozenset()}
        teacher = models[EDGES[0]].fit.teacher
        alphas.append(None if teacher is None else round(teacher.alpha, 6))
    assert alphas == [1.0, 0.7, 0.49, None]
    assert set(network.sent.values()) == {0}


def test_a_lost_upload_is_missed_and_its_hub_goes_on_without_it() -> None:
    network, models = sites()
    edge = EDGES[0]
    hub = hub_of(edge)
    network.cut = {(edge, hub)}
    missed = network.round(0)
    assert missed[hub] == {edge}
    assert missed[edge] == {hub}
    learned = models[hub].learn
    assert learned is not None
    assert edge not in learned.features


def test_an_asynchronous_hub_waits_for_nobody_and_learns_from_what_is_there() -> None:
    network, models = sites(asynchronous=True)
    edge = edges_of(HUBS[0])[0]
    network.cut = {(edge, HUBS[0])}
    assert set(network.round(0).values()) == {frozenset()}
    learned = models[HUBS[0]].learn
    assert learned is not None
    assert learned.features.keys() == {HUBS[0], *edges_of(HUBS[0])} - {edge}


def test_senders_of_wrong_labels_are_answered_and_not_learned_from() -> None:
    network, models = sites([HUBS[0]])
    liars = set(EDGES[:2])
    for liar in liars:
        models[liar].is_lying = True
    network.round(0)
    learned = models[HUBS[0]].learn
    assert learned is not None
    assert learned.only_answer.keys() == liars
    assert learned.features.keys() == {HUBS[0], *EDGES} - liars


def test_a_hub_whose_model_judges_nobody_learns_from_itself_alone() -> None:
    network, _ = sites([HUBS[0]])
    hub = network.sites[HUBS[0]]
    network.round(0)
    state = replace(hub.state, done=frozenset({Judged}), losses=dict.fromkeys([HUBS[0], *EDGES], np.nan))
    (job,) = hub.exchange.jobs(state)
    assert isinstance(job, Learn)
    assert job.features.keys() == {HUBS[0]}
    without_own = replace(state, cache=without(state.cache, HUBS[0]))
    assert hub.exchange.jobs(without_own) == ()


def test_a_hub_that_answers_with_other_samples_labels_is_not_listened_to() -> None:
    network, _ = sites([HUBS[0]])
    network.round(0)
    edge = network.sites[EDGES[0]]
    upload = edge.state.upload.features
    honest = SoftLabels(
        ids=upload.ids, z=log_softmax(5 * hidden_of(upload)[:, :K], LOGIT_FLOOR).astype(np.float16)
    )
    for soft, is_heard in ((bad_answer(honest), False), (honest, True)):
        heading = Heading(sender=HUBS[0], round=1, kind=PacketKind.SOFT_LABELS, size=100)
        fresh = replace(edge.state, taught=None)
        state = edge.exchange.absorb(fresh, heading, bodies.encode(soft))
        assert (state.taught is not None) == is_heard
        assert state.heard == 1


def test_only_held_out_labels_judge_a_teacher() -> None:
    network, models = sites([HUBS[0]])
    model = models[EDGES[0]]
    is_fitted = np.arange(N) % 3 != 0
    model.logits = np.where(is_fitted[:, None], 50 * np.eye(K)[model.labels], 0.0)
    network.round(0)
    assert network.sites[EDGES[0]].state.taught is not None


def test_frozen_features_travel_once_and_again_to_a_new_hub() -> None:
    network, models = sites(freeze_after=1)
    up = features_bytes(N, width=D, classes=K, coding=Coding.INT8)
    for number, sent in ((0, up), (1, up), (2, 0), (9, 0)):
        network.round(number)
        assert {network.sent[edge] for edge in EDGES} == {sent}
        assert models[EDGES[0]].fit.is_frozen == (number >= 1)
    assert all(network.sites[edge].state.heard == 9 for edge in EDGES)
    network.gone(HUBS[0])
    network.round(10)
    assert {edge for edge in EDGES if network.sent[edge]} == set(edges_of(HUBS[0]))


def test_a_sender_never_counts_for_more_than_the_agreed_samples() -> None:
    network, models = sites([HUBS[0]], most_samples=12)
    network.round(0)
    network.round(1)
    learned = models[HUBS[0]].learn
    assert learned is not None
    assert {given.labels.size for given in learned.features.values()} == {12}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "kind"),
        ({"kind": PacketKind.SOFT_LABELS}, None),
        ({"kind": PacketKind.SOFT_LABELS, "sender": HUBS[0]}, "not-accepted"),
        ({"kind": PacketKind.SOFT_LABELS, "round": 1}, "repeated"),
        ({"kind": PacketKind.SOFT_LABELS, "round": -5}, "round"),
        ({"kind": PacketKind.SOFT_LABELS, "size": 10_000}, "size"),
        ({"kind": PacketKind.PROBE}, "kind"),
    ],
)
def test_an_edge_fetches_only_answers_of_the_hub_it_told(change: dict[str, Any], reason: str | None) -> None:
    network, _ = sites()
    edge = edges_of(HUBS[1])[0]
    for number in range(2):
        network.round(number)
    site = network.sites[edge]
    usual: dict[str, Any] = {"sender": HUBS[1], "round": 2, "kind": PacketKind.FEATURES, "size": 100}
    assert site.exchange.verdict(site.state, Heading(**(usual | change))) == reason


def test_hubs_of_one_model_and_split_are_a_tier() -> None:
    hubs = [PeerId(f"h{i}") for i in range(4)]
    everyone = frozenset(hubs)
    for tier, expected in (("weights", ("h2",)), ("probe", ("h1", "h2")), ("none", ())):
        chosen = ExchangeOptions(kind="hub", share_features=True, tier=tier)  # type: ignore[arg-type]
        exchange = HubExchange(options=chosen, expected=EXPECTED, me=hubs[0], run=RUN)
        state = exchange.start()
        for hub, model in zip(hubs, (1, 2, 1, 1), strict=True):
            state = exchange.announced(state, hub, capability(model, capacity=float(hub != "h3")))
        state = exchange.begin(state, 0, hears=everyone - {hubs[0]}, tells=everyone - {hubs[0]})
        assert exchange.partners(state) == expected


def test_hubs_begin_a_round_with_the_mean_of_what_they_learned_in_the_last() -> None:
    network, models = sites()
    network.round(0)
    assert not models[HUBS[0]].mixed
    network.round(1)
    (job,) = models[HUBS[0]].mixed
    assert not job.is_adopted
    np.testing.assert_array_equal(job.models[HUBS[1]], models[HUBS[1]].weights)
    assert job.models.keys() == {HUBS[1]}
    assert not any(models[edge].mixed for edge in EDGES)


def test_a_hub_waits_for_the_model_of_another_but_not_in_the_last_round() -> None:
    network, models = sites(last=1)
    network.cut.add((HUBS[1], HUBS[0]))
    missed = network.round(0)
    assert missed[HUBS[0]] == {HUBS[1]}
    assert missed[HUBS[1]] == frozenset()
    assert network.round(1) == dict.fromkeys(models, frozenset())
    assert not models[HUBS[0]].mixed
    assert len(models[HUBS[1]].mixed) == 1


def test_in_the_last_round_an_edge_gets_the_model_of_its_hub() -> None:
    network, models = sites(last=1)
    network.round(0)
    assert network.round(1) == dict.fromkeys(models, frozenset())
    for edge in EDGES:
        (job,) = models[edge].mixed
        assert job.is_adopted
        np.testing.assert_array_equal(job.models[hub_of(edge)], models[hub_of(edge)].weights)


def test_a_model_of_the_last_round_may_come_a_round_early() -> None:
    network, _ = sites(last=1)
    network.round(0)
    edge, hub = network.sites[EDGES[0]], hub_of(EDGES[0])
    said = Heading(sender=hub, round=1, kind=PacketKind.HUB_MODEL, size=36)
    assert edge.exchange.verdict(edge.state, said) is None


def test_hubs_that_do_not_deliver_keep_their_models() -> None:
    network, models = sites(last=0, deliver=False)
    network.round(0)
    assert not any(models[edge].mixed for edge in EDGES)


def test_an_edge_without_a_place_for_it_refuses_a_hub_s_model() -> None:
    network, models = sites(last=0)
    small = network.sites[EDGES[0]]
    assert isinstance(small.exchange, HubExchange)
    small.exchange = replace(small.exchange, expected=replace(EXPECTED, model_values=0))
    assert network.round(0) == dict.fromkeys(models, frozenset())
    assert small.refused == ["kind"]


def test_an_edge_waits_for_no_model_of_another_kind_than_its_own() -> None:
    network, models = sites(last=0)
    other = network.sites[EDGES[0]]
    assert isinstance(other.exchange, HubExchange)
    other.exchange = replace(other.exchange, expected=replace(EXPECTED, model=bytes(32)))
    assert network.round(0) == dict.fromkeys(models, frozenset())
    assert other.refused == ["not-accepted"]
    assert not models[EDGES[0]].mixed


@pytest.mark.parametrize("no_hub", [capability(split=bytes(32)), capability(capacity=0.0)])
def test_a_hub_of_another_split_or_without_capacity_is_none(no_hub: Capability) -> None:
    edge = edges_of(HUBS[0])[0]
    network, _ = sites()
    network.round(0)
    for site in network.sites.values():
        assert isinstance(site.exchange, HubExchange)
        site.state = site.exchange.announced(site.state, HUBS[0], no_hub)
    exchange = network.sites[edge].exchange
    assert isinstance(exchange, HubExchange)
    assert exchange.hub(network.sites[edge].state) == HUBS[1]
    network.round(1)
    assert edge in {group.sender for group in network.sites[HUBS[1]].state.cache.groups}


def test_features_go_only_to_hubs_that_may_have_them() -> None:
    network, _ = sites()
    edge = edges_of(HUBS[0])[0]
    site = network.sites[edge]
    state = site.exchange.begin(site.state, 0, hears=frozenset(HUBS), tells=frozenset({HUBS[1]}))
    for job in site.exchange.jobs(state):
        result = site.learner(job)
        assert result is not None
        state = site.exchange.made(state, result)
    assert [offer.recipients for offer in site.exchange.offers(state)] == [(HUBS[1],)]


def test_flipped_labels_are_what_the_hub_model_is_worst_at() -> None:
    network, models = sites([HUBS[0]])
    network.round(0)
    sent = network.sites[EDGES[0]].state.upload.features
    losses = [cross_entropy(models[HUBS[0]].answer(f), f.labels) for f in (sent, flipped_labels(sent))]
    assert losses[1] > losses[0] + 1
