"""A population split over workers has the bits of one that is not, and only what crosses shards travels."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from fleets import TOPOLOGIES, UNEVEN, agreement, fleet, ran
from hands import OwnHands
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import ConfigError, LocalError
from p2pfl.learn.options import PartitionOptions
from p2pfl.simulations import memory
from p2pfl.simulations.halo import bounds, halo, loans, local, turned
from p2pfl.simulations.kernels import links, load
from p2pfl.simulations.shard import Shard

DRAWN = PartitionOptions(kind="drawn", rows=6, classes=2)


@given(st.integers(2, 60), st.integers(1, 6), st.data())
def test_a_graph_of_shifts_stays_one_on_every_shard_s_ring(n: int, shards: int, data: Any) -> None:
    offsets = data.draw(st.lists(st.integers(1, n - 1), min_size=1, max_size=6, unique=True).map(sorted))
    whole = links(own=0.5, offsets=np.array(offsets), weights=0.1)
    edges = bounds(n, [1.0] * shards, 4096)
    for lo, hi in pairwise(edges):
        heard = halo(whole, lo, hi, n)
        assert len(heard.rows) <= n - (hi - lo)
        assert not set(heard.rows.tolist()) & set(range(lo, hi)) or hi == lo
        ring = np.concatenate([np.arange(lo, hi), heard.rows])
        own = local(whole, heard, lo, hi)
        for offset, here in zip(offsets, own.offsets.tolist(), strict=True):
            for i in range(hi - lo):
                assert ring[(i - here) % len(ring)] == (lo + i - offset) % n


@given(st.integers(2, 40), st.integers(1, 5), st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_what_is_lent_is_what_is_heard_and_edges_find_it(n: int, shards: int, seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    degrees = rng.integers(0, min(n, 5), n)
    senders = np.concatenate([np.sort(rng.choice(n, k, replace=False)) for k in degrees] or [np.zeros(0)])
    starts = np.concatenate([[0], np.cumsum(degrees)])
    whole = links(own=np.full(n, 0.5), starts=starts, senders=senders, weights=rng.random(len(senders)))
    edges = bounds(n, [1.0] * shards, 4096)
    for lo, hi in pairwise(edges):
        heard = halo(whole, lo, hi, n)
        lent = loans(heard, edges, most)
        assert [one.at for one in lent] == np.cumsum([0, *(one.count for one in lent)])[:-1].tolist()
        for one in lent:
            rows = np.arange(one.first, one.first + one.count) if one.rows is None else one.rows
            assert one.count <= most
            assert (edges[one.lender] + rows).tolist() == heard.rows[one.at : one.at + one.count].tolist()
        ring, h = np.concatenate([np.arange(lo, hi), heard.rows]), len(heard.rows)
        for shift in {0, h}:
            here = turned(local(whole, heard, lo, hi), shift, len(ring))
            rolled = np.roll(ring, shift)
            for i in range(hi - lo):
                mine = slice(here.starts[shift + i], here.starts[shift + i + 1])
                theirs = slice(starts[lo + i], starts[lo + i + 1])
                assert rolled[here.senders[mine]].tolist() == senders[theirs].tolist()
                assert here.weights[mine].tolist() == whole.weights[theirs].tolist()


def test_shards_begin_at_whole_blocks_and_follow_speeds() -> None:
    assert bounds(100_000, [1, 1], 4096) == [0, 12 * 4096, 100_000]
    assert bounds(100_000, [3, 1], 4096) == [0, 18 * 4096, 100_000]
    assert bounds(10, [1, 1, 1], 4096) == [0, 3, 7, 10]
    assert bounds(2, [1, 1, 1, 1], 4096)[-1] == 2


@pytest.mark.parametrize("averaging", ["push-sum", "d-psgd"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_split_has_the_bits_of_one_process(topology: str, averaging: str) -> None:
    if averaging == "d-psgd" and topology == "directed ring":
        averaging = "push-sum"
    n = 24
    spec = agreement(
        n,
        gossip={"topology": TOPOLOGIES[topology], "averaging": {"kind": averaging}},
        learner={"batch_size": 4},
    )
    one = ran(fleet(n, spec, load(), options=DRAWN))
    for shards in (2, 3, 5):
        many = ran(fleet(n, spec, load(), options=DRAWN, shards=shards))
        np.testing.assert_array_equal(many.models(np.arange(n)), one.models(np.arange(n)))
        np.testing.assert_array_equal(many.w, one.w)
        assert [said["loss"] for said in many.per_round] == [said["loss"] for said in one.per_round]
        mean = one.mean_model()
        np.testing.assert_allclose(many.mean_model(), mean, rtol=1e-12)
        assert many.consensus_distance(mean) == pytest.approx(one.consensus_distance(mean), rel=1e-9)


@pytest.mark.parametrize("weights", ["uniform", "samples"])
def test_weights_of_an_uneven_digraph_cross_shards(weights: str) -> None:
    spec = agreement(8, run={"weights": weights}, gossip={"topology": UNEVEN})
    skew = PartitionOptions(kind="quantity", alpha=1.0)
    one, many = (
        ran(fleet(8, spec, load(), options=skew)),
        ran(fleet(8, spec, load(), options=skew, shards=3)),
    )
    np.testing.assert_array_equal(many.models(np.arange(8)), one.models(np.arange(8)))
    assert many.mass() == one.mass()


def test_a_ring_of_shards_lends_a_row_at_each_end_and_a_shift_no_more_than_it_crosses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Shard, "speed", lambda *_: 1.0)
    hands = OwnHands()
    spec = agreement(40, gossip={"topology": {"kind": "ring"}})
    population = fleet(40, spec, load(), options=DRAWN, shards=4, hands=hands)
    population.step()
    assert hands.lent == []
    population.step()
    assert sum(hands.lent) == 4 * 2

    hands = OwnHands()
    spec = agreement(32, gossip={"topology": {"kind": "one-peer-exponential"}})
    population = fleet(32, spec, load(), options=DRAWN, shards=2, hands=hands)
    crossed = []
    for _ in range(6):
        hands.lent.clear()
        population.step()
        crossed.append(sum(hands.lent))
    # Shifts by 1, 2, 4, 8 and 16 cross both borders of two shards of 16.
    assert crossed == [0, 2, 4, 8, 16, 32]


def test_a_round_that_lacks_a_row_is_not_taken() -> None:
    hands = OwnHands()
    population = fleet(12, agreement(12), load(), options=DRAWN, shards=2, hands=hands)
    population.step()
    call = hands.call
    hands.call = lambda worker, method, *given: None if method == "put" else call(worker, method, *given)  # type: ignore[method-assign]
    with pytest.raises(LocalError, match="a shard has 0 of the"):
        population.step()


def test_faster_workers_get_more_peers_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([300.0, 100.0])
    monkeypatch.setattr(Shard, "speed", lambda *_: next(speeds))
    spec = agreement(16, gossip={"topology": TOPOLOGIES["random graph"]})
    many = ran(fleet(16, spec, load(), options=DRAWN, shards=2))
    assert [worker.held.shape[0] for worker in many.matrix._workers] == [12, 4]  # type: ignore[attr-defined]
    one = ran(fleet(16, spec, load(), options=DRAWN))
    np.testing.assert_array_equal(many.models(np.arange(16)), one.models(np.arange(16)))


def test_what_a_machine_has_no_memory_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**28)
    with pytest.raises(ConfigError, match="2 shards of 8 peers with 21 parameters each need"):
        fleet(8, agreement(8), load(), options=DRAWN, shards=2)
