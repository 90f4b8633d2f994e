"""Peers on clocks of their own: slots, in numpy, tell what a queue of single events tells."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from gossipers import course, gossip, oracle_of

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.gossip.options import TopologyOptions
from p2pfl.simulations.churn import ChurnOptions
from p2pfl.simulations.plain_push import PlainPushes
from p2pfl.simulations.push_gossip import expected_places
from p2pfl.simulations.scenario import load
from p2pfl.simulations.slot_calendar import Calendar
from p2pfl.simulations.slots import Batch, Course, contacts, downtimes, is_down

TOPOLOGIES: dict[str, dict[str, Any]] = {
    "complete": {"kind": "complete"},
    "exponential": {"kind": "exponential"},
    "one-peer-exponential": {"kind": "one-peer-exponential"},
    "star": {"kind": "star"},
    "random graph": {"kind": "random-regular", "degree": 4},
    "one way": {"kind": "explicit", "directed": True, "edges": [[i, i + 1] for i in range(12)]},
}
_FOR_EVER = 1 << 62


def batches(plan: Course, places: int = 50, most: int = 20) -> list[Batch]:
    """All of a schedule."""
    calendar, found = Calendar(plan, places), []
    while (batch := calendar.until(_FOR_EVER, most)) is not None:
        found.append(batch)
    return found


@pytest.mark.parametrize("crashes", [0, 9])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_slots_give_the_bits_of_a_queue_of_events(topology: str, crashes: int) -> None:
    plan = course(13, crashes=crashes, topology=TOPOLOGIES[topology])
    population = gossip(plan, Calendar(plan, 4), PlainPushes())
    while not population.is_over:
        population.step()
        mass = population.mass()
        assert mass["error"] == 0.0
    population.finish()
    told = oracle_of(population, plan)
    assert np.stack([peer.x for peer in told.peers]).tobytes() == population.held.tobytes()
    assert [peer.w for peer in told.peers] == population.w.tolist()
    assert population.ticks == len(told.ticks) > 50
    assert population.events == len(told.ticks) + told.arrivals
    ticks = [
        (int(peer), int(number), int(steps), int(size))
        for batch in batches(plan)
        for peer, number, steps, size in zip(
            batch.peers, batch.numbers, batch.steps, np.diff(batch.first), strict=True
        )
    ]
    assert ticks == [tick[1:] for tick in told.ticks]


@pytest.mark.slow
def test_a_slow_peer_learns_less_often_and_at_a_deadline_in_fewer_steps() -> None:
    slow = course(4, fit_s=(1.0, 5.0), rounds=20, closing=0, steps=20, loss=0.0)
    hurried = course(4, fit_s=(1.0, 5.0), rounds=20, closing=0, steps=20, loss=0.0, deadline_s=1.0)
    for plan, ticks, steps in ((slow, 4, 20), (hurried, 20, 4)):
        peers, taken = (
            np.concatenate(c) for c in zip(*((b.peers, b.steps) for b in batches(plan)), strict=True)
        )
        normal, late = (taken[peers == i].tolist() for i in (0, 1))
        assert normal == [20] * 20
        assert late == [steps] * ticks
    population = gossip(hurried, Calendar(hurried, 50), PlainPushes(), learner={"local_steps": 20})
    while not population.is_over:
        population.step()
    population.finish()
    told = oracle_of(population, hurried)
    assert np.stack([peer.x for peer in told.peers]).tobytes() == population.held.tobytes()


def test_what_is_read_in_a_slot_was_sent_in_an_earlier_one_and_no_peer_is_in_it_twice() -> None:
    plan = course(40, crashes=30, topology={"kind": "complete"}, latency=(30_000, 400_000))
    sent_at: dict[int, int] = {}
    slot = taken = 0
    for batch in batches(plan, places=10):
        for start, end in pairwise(batch.slots.tolist()):
            slot += 1
            assert len(set(batch.peers[start:end].tolist())) == end - start
            for place in batch.places[batch.first[start] : batch.first[end]].tolist():
                assert sent_at.pop(place) < slot
                taken += 1
            for place in batch.out[start:end].tolist():
                assert place not in sent_at
                sent_at[place] = slot
    assert taken > 100
    assert slot > 50


def test_when_every_share_is_lost_everybody_has_its_own_back() -> None:
    plan = course(6, loss=1.0, rounds=5, fit_s=1.0)
    population = gossip(plan, Calendar(plan, 4), PlainPushes(), weights="samples")
    while not population.is_over:
        population.step()
    assert population.lost == population.bodies > 20
    population.finish()
    assert population.w.tolist() == [9.0] * 6
    assert population.consensus_distance(population.mean_model()) > 1e-3


@pytest.mark.slow
def test_mixing_alone_moves_no_mass_in_or_out_and_brings_models_together() -> None:
    plan = course(32, rounds=3, closing=60, loss=0.3, topology={"kind": "complete"})
    population = gossip(plan, Calendar(plan, 4), PlainPushes())
    for _ in range(3):
        population.step()
    places = population.share_w > 0
    before = population.held.sum(axis=0, dtype=np.float64) + population.shares[places].sum(axis=0)
    apart = population.consensus_distance(population.mean_model())
    while not population.is_over:
        population.step()
    population.finish()
    np.testing.assert_allclose(population.held.sum(axis=0, dtype=np.float64), before, rtol=0, atol=1e-4)
    assert population.consensus_distance(population.mean_model()) < 0.01 * apart
    assert not population.share_w.any()


def test_nobody_ticks_while_it_is_down_and_nothing_arrives_there() -> None:
    plan = course(30, crashes=60, rounds=6, loss=0.0)
    first, down = plan.clocks.down_first, plan.clocks.down
    assert len(down) > 20
    calm = course(30, crashes=0, rounds=6, loss=0.0)
    found, undisturbed = batches(plan), batches(calm)
    assert sum(len(b.peers) for b in found) < sum(len(b.peers) for b in undisturbed)
    assert sum(b.lost for b in found) > 0
    assert sum(b.lost for b in undisturbed) == 0
    for i in range(30):
        gone = down[first[i] : first[i + 1]]
        assert (gone[:, 0] < gone[:, 1]).all()
        assert (gone[1:, 0] > gone[:-1, 1]).all()
    middle = (down[:, 0] + down[:, 1]) // 2
    whose = np.repeat(np.arange(30), np.diff(first))
    assert is_down(plan.clocks, whose, middle).all()
    assert is_down(plan.clocks, whose, down[:, 0]).all()
    assert not is_down(plan.clocks, whose, down[:, 1]).any()
    assert not is_down(plan.clocks, whose, down[:, 0] - 1).any()


def test_downtimes_follow_from_the_seed_and_touching_ones_are_one() -> None:
    options = ChurnOptions(crashes=200, down_s=(1.0, 5.0), start_s=2.0)
    first, down = downtimes(options, 10, 30.0, 5)
    again, other = downtimes(options, 10, 30.0, 5)[1], downtimes(options, 10, 30.0, 6)[1]
    assert down.tobytes() == again.tobytes() != other.tobytes()
    assert len(down) == first[-1] < 200
    assert down[:, 0].min() >= 2_000_000
    assert downtimes(ChurnOptions(), 10, 30.0, 5)[0].tolist() == [0] * 11


def test_a_run_in_pieces_is_the_run_at_once() -> None:
    plan = course(20, crashes=8)
    whole = batches(plan, places=2, most=10**6)
    assert len(whole) == 1
    pieces = batches(plan, places=500, most=1)
    for column in ("peers", "numbers", "steps"):
        joined = np.concatenate([getattr(piece, column) for piece in pieces])
        assert joined.tolist() == getattr(whole[0], column).tolist()
    assert sum(piece.events for piece in pieces) == whole[0].events


@pytest.mark.slow
def test_places_are_as_many_as_shares_at_a_time_and_grow() -> None:
    plan = course(200, topology={"kind": "complete"}, rounds=20)
    small = Calendar(plan, 1)
    while small.until(_FOR_EVER, 100) is not None:
        pass
    most = small.places
    enough = Calendar(plan, expected_places(plan))
    while enough.until(_FOR_EVER, 100) is not None:
        pass
    assert enough.places == expected_places(plan) < 200 * 20
    assert most > 200


def test_every_fit_that_diverges_ends_the_run_and_one_counts_as_failed() -> None:
    plan = course(6, rounds=3, fit_s=1.0)
    population = gossip(plan, Calendar(plan, 50), PlainPushes())
    x = population.rows.x.copy()
    x[population.rows.table[2]] = np.inf
    population.rows = population.rows._replace(x=x)
    while not population.is_over:
        population.step()
    assert population.faults[2] == 3
    assert np.isfinite(population.models(np.arange(6))).all()
    broken = gossip(plan, Calendar(plan, 50), PlainPushes())
    broken.rows = broken.rows._replace(x=np.full_like(broken.rows.x, np.inf))
    with pytest.raises(LearnerError, match="every fit of round 0 diverged; lower"):
        broken.step()


def test_topologies_without_edges_to_choose_from_are_refused() -> None:
    with pytest.raises(ConfigError, match=r'drawn anew every round.*use "complete"'):
        contacts(TopologyOptions(kind="random-matching"), 8, 0)
    with pytest.raises(ConfigError, match="always half"):
        contacts(TopologyOptions(kind="base", degree=2), 6, 0)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("simulation.network.latency_s=0.0", "latency_s below a microsecond"),
        ("simulation.network.latency_s=[0.1, 5000.0]", "above 4,000 s"),
        ("simulation.network.duplication=0.1", "duplication"),
        ("simulation.network.bandwidth_mbit_s=8", "bandwidth_mbit_s"),
        ("simulation.churn.lost_disks=1", "churn but crashes"),
        ("simulation.access={far={peers=1}}", "simulation.access"),
        ("simulation.active=10", "simulation.active"),
        ("gossip.averaging.kind=d-psgd", "averaging but push-sum"),
        ("gossip.topology={kind='el-local', degree=2}", "drawn anew"),
    ],
)
def test_settings_that_an_asynchronous_schedule_lacks_are_refused_by_name(setting: str, named: str) -> None:
    with pytest.raises(ConfigError, match=rf"has no .*{named}.*; use --engine world"):
        load("asynchronous", peers=64, settings=[setting])


def test_an_asynchronous_schedule_is_for_fused_kernels() -> None:
    with pytest.raises(ConfigError, match=r'schedule "asynchronous" is for engine = "population", kernels'):
        load("digits", settings=["simulation.schedule=asynchronous"])


def test_a_run_longer_than_its_clock_is_refused() -> None:
    with pytest.raises(ConfigError, match="virtual seconds"):
        course(4, rounds=1_000_000)
