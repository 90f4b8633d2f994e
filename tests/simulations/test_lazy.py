"""Of a pool only those that have trained have a state, and the active of a round are a fleet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fleets import agreement, blobs, fleet, pool, ran

from p2pfl.errors import ConfigError
from p2pfl.learn.options import PartitionOptions
from p2pfl.learn.philox import ACTIVE, chosen
from p2pfl.simulations.plain import Plain
from p2pfl.simulations.scenario import load
from p2pfl.simulations.trial import run_trial

DRAWN = PartitionOptions(kind="drawn", rows=9, classes=2)


def test_a_pool_in_which_all_are_active_is_a_fleet() -> None:
    for resume in ("own", "handed"):
        spec = agreement(12, gossip={"topology": {"kind": "exponential"}})
        ours, theirs = ran(pool(12, spec, active=12, resume=resume)), fleet(12, spec, Plain(), options=DRAWN)
        while not theirs.is_over:
            theirs.step()
        if resume == "handed":
            theirs.finish()
        everybody = np.arange(12)
        np.testing.assert_allclose(ours.models(everybody), theirs.models(everybody), rtol=0, atol=1e-7)
        np.testing.assert_allclose(ours.mean_model(), theirs.mean_model(), rtol=0, atol=1e-7)


def test_only_those_that_have_trained_have_a_state() -> None:
    spec = agreement(10_000, run={"closing_rounds": 0})
    one = pool(10_000, spec, active=8, resume="own")
    came: set[int] = set()
    before = one.models(np.arange(10_000))
    assert (before == before[0]).all()
    while not one.is_over:
        active = chosen(spec.run.seed, ACTIVE, one.round, 10_000, 8)
        one.step()
        came |= set(active.tolist())
        assert one.trained == len(came) == one.per_round[-1]["trained_peers"]
    has_moved = (one.models(np.arange(10_000)) != before[0]).any(axis=1)
    assert set(np.flatnonzero(has_moved).tolist()) == came == set(one.judged().tolist())


def test_an_own_model_waits_until_its_peer_is_active_again() -> None:
    spec = agreement(6, run={"rounds": 40}, gossip={"topology": {"kind": "ring"}})
    one = pool(6, spec, active=2, resume="own")
    while not one.is_over:
        before = one.models(np.arange(6))
        one.step()
        idle = np.setdiff1d(np.arange(6), one.active)
        assert one.models(idle).tobytes() == before[idle].tobytes()
    mass = one.mass()
    assert mass is not None
    assert mass["error"] < 1e-12
    assert one.book(np.arange(6))[0]["entered"] == 1.0


def test_handed_models_go_on_where_the_last_peer_ended() -> None:
    spec = agreement(1000, run={"rounds": 1, "closing_rounds": 1}, gossip={"averaging": {"kind": "d-psgd"}})
    one = pool(1000, spec, active=4, resume="handed")
    one.step()
    first, models = one.active, one.models(one.active)
    one.step()
    # A closing round mixes what the peers before ended with, and they keep what they had.
    mixed = one.models(one.active)
    np.testing.assert_allclose(mixed.mean(axis=0), models.mean(axis=0), atol=1e-6)
    assert np.ptp(mixed, axis=0).max() < np.ptp(models, axis=0).max()
    stayed = np.setdiff1d(first, one.active)
    np.testing.assert_array_equal(one.models(stayed), models[np.isin(first, stayed)])
    assert one.bytes_sent() == (2 * 8 + 4) * one._live.body_bytes()


def test_models_that_are_handed_on_learn_from_everybody() -> None:
    run = {"rounds": 60, "closing_rounds": 10}
    learner = {"local_steps": 1, "optimizer": {"lr": 0.3, "momentum": 0.0}}
    spec = agreement(5000, run=run, learner=learner)
    dataset = blobs(rows=300)
    accuracy = []
    for resume in ("handed", "own"):
        one = ran(pool(5000, spec, active=8, resume=resume, dataset=dataset))
        W, b = np.split(one.mean_model(), [18])
        accuracy.append(np.mean((dataset.x_train @ W.reshape(3, 6).T + b).argmax(axis=1) == dataset.y_train))
    assert accuracy[0] > 0.9
    assert accuracy[0] >= accuracy[1]


def test_those_that_are_chosen_differ_and_are_as_likely() -> None:
    for n, m in ((50, 20), (5000, 20), (7, 7)):
        counts = np.zeros(n)
        for number in range(60):
            some = chosen(3, ACTIVE, number, n, m)
            assert len(np.unique(some)) == m
            assert (np.diff(some) > 0).all()
            counts[some] += 1
        assert counts.sum() == 60 * m
        halves = counts[: n // 2].sum() / counts.sum()
        assert halves == pytest.approx((n // 2) / n, abs=0.06)
    with pytest.raises(ValueError, match="8 different numbers of 7"):
        chosen(0, ACTIVE, 0, 7, 8)


def test_settings_of_a_pool_that_make_no_sense_are_refused() -> None:
    for settings, named in (
        (["simulation.active=2000000"], "active beyond simulation.peers"),
        (["run.weights=samples"], "samples"),
        (["simulation.kernels=exact", "simulation.peers=2000"], "active, resume and device are for kernels"),
    ):
        with pytest.raises(ConfigError, match=named):
            load("lazy-million", settings=settings)


@pytest.mark.slow
def test_a_pool_of_a_million_takes_rounds_of_its_active_peers() -> None:
    events: list[dict[str, Any]] = []
    verdict = run_trial(
        load("lazy-million", rounds=5, settings=["simulation.active=100", "run.closing_rounds=2"]),
        events=events,
    )
    assert verdict["peers"] == 1_000_000
    assert verdict["trained_peers"] == pytest.approx(700, abs=5)
    assert verdict["sampled"] == len(verdict["per_peer"]) == 100
    assert events[0]["graph"]["peers"] == list(range(100))
    assert {event["peers"] for event in events if event["event"] == "round"} == {100}
