"""A fused population takes the rounds of population.py; here with the kernels in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fleets import TOPOLOGIES, UNEVEN, agreement, blobs, exact, fleet, ran

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.learn.options import PartitionOptions
from p2pfl.simulations import memory
from p2pfl.simulations.fleet_trial import sampled
from p2pfl.simulations.matrix import Gang, needed_bytes
from p2pfl.simulations.plain import Plain
from p2pfl.simulations.scenario import load
from p2pfl.simulations.trial import run_trial


@pytest.mark.parametrize("averaging", ["push-sum", "d-psgd"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_full_batch_rounds_are_those_of_exact_kernels(topology: str, averaging: str) -> None:
    gossip = {"topology": TOPOLOGIES[topology], "averaging": {"kind": averaging}}
    spec = agreement(8, gossip=gossip)
    ours, theirs = ran(fleet(8, spec, Plain())), exact(8, spec)
    np.testing.assert_allclose(ours.models(np.arange(8)), theirs.models(), rtol=0, atol=1e-6)
    assert ours.bodies == theirs.sent_bodies.sum()
    losses = [[said["loss"] for said in one.per_round[:5]] for one in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert [said["stage"] for said in ours.per_round] == [said["stage"] for said in theirs.per_round]


@pytest.mark.parametrize("weights", ["uniform", "samples"])
def test_weights_of_an_uneven_digraph_are_push_sum_s(weights: str) -> None:
    spec = agreement(8, gossip={"topology": UNEVEN}, run={"weights": weights})
    options = PartitionOptions(kind="quantity", alpha=1.0)
    ours, theirs = ran(fleet(8, spec, Plain(), options=options)), exact(8, spec, options=options)
    np.testing.assert_allclose(ours.w, theirs.held.w, rtol=1e-12)
    np.testing.assert_allclose(ours.models(np.arange(8)), theirs.models(), rtol=0, atol=1e-6)
    mass = ours.mass()
    assert mass is not None
    assert mass["error"] <= 1e-12


def test_an_mlp_and_two_classes_are_trained_alike() -> None:
    learner = {"model": {"kind": "mlp", "hidden": [5, 4]}}
    spec = agreement(4, learner=learner)
    models = ran(fleet(4, spec, Plain())).models(np.arange(4))
    np.testing.assert_allclose(models, exact(4, spec).models(), rtol=0, atol=1e-6)
    two, spec = blobs(classes=2), agreement(4)
    models = ran(fleet(4, spec, Plain(), dataset=two)).models(np.arange(4))
    assert models.shape == (4, 7)
    np.testing.assert_allclose(models, exact(4, spec, two).models(), rtol=0, atol=1e-6)


def test_one_peer_exponential_closing_rounds_bring_everybody_to_the_mean_model() -> None:
    gossip = {"topology": {"kind": "one-peer-exponential"}, "averaging": {"kind": "d-psgd"}}
    enough, short = (
        agreement(16, gossip=gossip, run={"closing_rounds": closing}, learner={"batch_size": 2})
        for closing in (4, 3)
    )
    for spec, is_one in ((enough, True), (short, False)):
        population = ran(fleet(16, spec, Plain()))
        assert (population.consensus_distance(population.mean_model()) < 1e-6) == is_one


def test_mean_and_consensus_distance_are_over_all_peers() -> None:
    population = ran(fleet(8, agreement(8, gossip={"topology": UNEVEN}), Plain()))
    models = population.models(np.arange(8)).astype(np.float64)
    mean = population.mean_model()
    np.testing.assert_allclose(mean, models.mean(axis=0), atol=1e-7)
    distance = np.sqrt(((models - models.mean(axis=0)) ** 2).sum(axis=1).mean())
    assert population.consensus_distance(mean) == pytest.approx(distance, rel=1e-6)


def test_a_fit_that_diverges_counts_as_failed_and_its_peer_goes_on_mixing() -> None:
    dataset = blobs()
    dataset.x_train[0] = np.inf
    spec = agreement(4, run={"rounds": 3, "closing_rounds": 0})
    population = ran(fleet(4, spec, Plain(), dataset=dataset))
    assert sorted(population.faults.tolist()) == [0, 0, 0, 3]
    assert np.isfinite(population.models(np.arange(4))).all()
    dataset.x_train[:] = np.inf
    with pytest.raises(LearnerError, match="every fit of round 0 diverged; lower"):
        ran(fleet(4, spec, Plain(), dataset=dataset))


def test_what_does_not_fit_in_memory_is_refused_before_it_is_allocated(monkeypatch: Any) -> None:
    assert needed_bytes(2**20, 650, 16) < 8e9
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**29)
    with pytest.raises(ConfigError, match=r"4 peers with 21 parameters each need 0\.5 GB"):
        fleet(4, agreement(4), Plain())


def test_threads_cover_every_row_once_and_answer_in_order() -> None:
    for threads, n in ((1, 5), (3, 1000), (2, 10_000)):
        covered = [i for lo, hi in Gang(threads).each(n, lambda lo, hi: (lo, hi)) for i in range(lo, hi)]
        assert covered == list(range(n))


def test_a_sample_is_everybody_or_256_different_peers_that_the_seed_decides() -> None:
    assert sampled(np.array([3, 7]), 0).tolist() == [3, 7]
    peers = np.arange(2**20)
    first, again, other = (sampled(peers, seed) for seed in (1, 1, 2))
    assert len(np.unique(first)) == len(first) == 256
    assert (np.diff(first) > 0).all()
    assert first.tolist() == again.tolist() != other.tolist()
    assert len(np.unique(sampled(np.arange(257), 0))) == 256


def test_settings_that_fused_kernels_lack_are_refused_by_name() -> None:
    for setting, named in (
        ("simulation.engine=world", "simulation.engine 'world'"),
        ("simulation.control=alone", "simulation.control"),
        ("learner.standardise=site", "learner.standardise"),
        ("simulation.baselines=true", "simulation.baselines"),
        ('gossip.averaging={kind="push-pull"}', "push-pull"),
    ):
        with pytest.raises(ConfigError, match=f"fused kernels have no .*{named}.*; use simulation.kernels"):
            load("million", peers=16, settings=[setting])
    with pytest.raises(ConfigError, match=r"at most 4096; set engine = .*kernels = \"fused\""):
        load("digits", peers=5000)
    assert load("million").simulation.peers == 2**20


@pytest.mark.slow
def test_more_peers_than_rows_have_to_draw_them() -> None:
    with pytest.raises(ConfigError, match='use kind = "drawn"'):
        run_trial(load("million", peers=2000, settings=['simulation.partition={kind="iid"}']))


@pytest.mark.slow
def test_a_verdict_has_the_keys_of_other_engines() -> None:
    settings = ["simulation.partition.rows=4", "simulation.consensus_every=2"]
    facts: list[Any] = []
    events: list[dict[str, Any]] = []
    fused = run_trial(
        load("million", peers=8, rounds=3, settings=[*settings, "simulation.measure_every=0"]),
        listener=lambda *said: facts.append(said),
        events=events,
    )
    other = run_trial(load("million", peers=8, rounds=3, settings=[*settings, "simulation.kernels=exact"]))
    assert set(other) <= set(fused)
    assert set(other["per_peer"][0]) <= set(fused["per_peer"][0])
    assert fused["peers"] == fused["sampled"] == len(fused["per_peer"]) == 8
    assert fused["bytes_sent"] == other["bytes_sent"]
    measured = [said["round"] for said in fused["per_round"] if "metric" in said]
    assert measured == [1, 2, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21]
    assert fused["trained"]["metric"] == fused["per_round"][2]["metric"]
    assert fused["metric"]["mean"] == pytest.approx(fused["mean_model"])
    assert sum(fact.event == "round committed" for _, _, fact in facts) == 23
    rounds = [event for event in events if event["event"] == "round"]
    assert [event["event"] for event in events] == ["run began", *["round"] * 23, "run finished"]
    assert [said["round"] for said in rounds if "metric" in said] == measured
    assert rounds[0]["loss"]["min"] <= rounds[0]["loss"]["mean"] <= rounds[0]["loss"]["max"]
