"""Features for soft labels: the right sample, the right hub, and whom nobody believes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hub_sites import EDGES, HUBS, D, K, N, capability, edges_of, hub_of, sites
from poisoners import bad_answer, flipped_labels

from p2pfl.knowledge import bodies
from p2pfl.knowledge.beliefs import LOGIT_FLOOR, cross_entropy, log_softmax
from p2pfl.knowledge.cache import without
from p2pfl.knowledge.exchange import Heading
from p2pfl.knowledge.hub import HubExchange
from p2pfl.knowledge.packets import (
    Coding,
    PacketKind,
    SoftLabels,
    features_bytes,
    hidden_of,
    hub_model_bytes,
    soft_labels_bytes,
)
from p2pfl.knowledge.ranking import Capability
from p2pfl.work import (
    Judged,
    Learn,
)


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
