"""A hub's model: mixed in its tier, and given to its edges at the end."""

from dataclasses import replace

import numpy as np
from hub_sites import EDGES, EXPECTED, HUBS, RUN, capability, hub_of, sites

from p2pfl.ids import PeerId
from p2pfl.knowledge.exchange import Heading
from p2pfl.knowledge.hub import HubExchange
from p2pfl.knowledge.options import ExchangeOptions
from p2pfl.knowledge.packets import (
    PacketKind,
)


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
