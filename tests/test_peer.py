"""What a peer does, seen from outside: in small worlds, and event by event."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from tiny_learner import TinyLearner, stepwise, tiny
from worlds import agreement, facts, tiny_world

from p2pfl.errors import LocalError
from p2pfl.events import Metrics, Vector
from p2pfl.learn.learner import Site, Update
from p2pfl.simulations.world import World
from p2pfl.trust import certificates

_END_S = 5000.0


def _models(world: World) -> np.ndarray:
    return np.stack([world.peer(i).model() for i in range(len(world.machines)) if world.machines[i].is_up])


def test_a_run_ends_on_one_model_and_all_its_mass() -> None:
    world = tiny_world(5)
    assert world.run(until_s=_END_S)
    assert {machine.finished for machine in world.machines} == {"done"}
    assert world.mass().sum == pytest.approx(5, abs=1e-12)
    assert np.ptp(_models(world), axis=0).max() < 0.2


def test_one_peer_alone_trains_and_finishes() -> None:
    world = tiny_world(1)
    assert world.run(until_s=_END_S)
    assert len(facts(world, 0, "round committed")) == 8
    assert world.mass().sum == 1


def test_without_training_everybody_ends_on_the_mean_of_the_first_models() -> None:
    @dataclass
    class Constant:
        value: float

        def parameters(self) -> Vector:
            return np.zeros(3, np.float32)

        def fit(self, parameters: Vector, rng: np.random.Generator) -> Update:
            # One step to its own value in round 0, nothing after.
            moved = np.full(3, self.value, np.float32) if not parameters.any() else parameters
            return Update(parameters=moved, samples=1)

        def evaluate(self, parameters: Vector) -> Metrics:
            return {}

    world = tiny_world(
        4,
        factory=lambda site: Constant(float(site.data) + 1),
        spec=agreement(4, rounds=1, closing_rounds=40),
    )
    assert world.run(until_s=_END_S)
    # The capped step moves each x by w(0) dz = value, and mixing keeps the sum: (1 + 2 + 3 + 4) / 4.
    np.testing.assert_allclose(_models(world), 2.5, rtol=1e-5)


def test_weights_by_samples_give_the_weighted_mean() -> None:
    def factory(site: Site) -> TinyLearner:
        number = float(site.data)
        return TinyLearner(np.full(3, number, np.float32), rate=1.0, rows=int(10 * (number + 1)))

    world = tiny_world(4, factory=factory, spec=agreement(4, rounds=1, closing_rounds=60, weights="samples"))
    assert world.run(until_s=_END_S)
    assert world.mass().sum == pytest.approx(100, rel=1e-12)
    expected = (0 * 10 + 1 * 20 + 2 * 30 + 3 * 40) / 100
    np.testing.assert_allclose(_models(world), expected, rtol=1e-5)


def test_d_psgd_reaches_consensus_and_reports_no_mass_in_flight() -> None:
    spec = agreement(
        4,
        rounds=10,
        closing_rounds=40,
        gossip={"averaging": {"kind": "d-psgd"}, "topology": {"kind": "ring"}},
    )
    world = tiny_world(4, spec=spec)
    assert world.run(until_s=_END_S)
    assert np.ptp(_models(world), axis=0).max() < 1e-4
    assert all(world.peer(i).view().in_flight == 0 for i in range(4))


def test_a_silent_neighbour_does_not_stall_the_round() -> None:
    world = tiny_world(4, spec=agreement(4, rounds=6, deadline_s=8.0))
    world.run(until_s=2.5)
    silent = world.machines[3]
    # Connected, and never saying anything again.
    silent.life += 1
    while world.now < _END_S and not all(m.finished for m in world.machines[:3]):
        world.step()
    rounds = facts(world, 0, "round committed")
    assert len(rounds) == 8
    seconds = [fact.fields["seconds"] for fact in rounds]
    # Waited for once to the deadline in training; each closing round is given its full time.
    assert sum(s > 2 for s in seconds[:6]) <= 2
    assert max(seconds) <= 8.0 + 1e-6
    assert facts(world, 0, "neighbour late")


def test_a_late_joiner_comes_in_without_mass_and_ends_with_the_others() -> None:
    world = tiny_world(4, spec=agreement(3, rounds=12), starts_at_s=[0, 0, 0, 5.5])
    assert world.run(until_s=_END_S)
    assert facts(world, 3, "joining a run that has begun")
    assert world.peer(3).view().entered == 0
    assert world.peer(3).view().w > 0.1
    assert world.mass().sum == pytest.approx(3, abs=1e-9)


def test_a_crashed_peer_comes_back_to_the_round_of_the_others() -> None:
    world = tiny_world(4, spec=agreement(4, rounds=20))
    world.run(until_s=4.5)
    world.crash(2)
    world.boot_at(14.0, 2)
    assert world.run(until_s=_END_S)
    numbers = [fact.fields["round"] for fact in facts(world, 2, "round committed")]
    assert numbers == sorted(set(numbers))
    skipped = [b - a for a, b in pairwise(numbers) if b - a > 1]
    assert skipped
    assert world.mass().error < 1e-12
    assert {machine.finished for machine in world.machines} == {"done"}


def test_a_lost_disk_is_written_off_and_the_peer_gets_new_mass() -> None:
    world = tiny_world(4, spec=agreement(4, rounds=20))
    world.run(until_s=6.5)
    world.lose_disk(1)
    world.boot_at(8.0, 1)
    assert world.run(until_s=_END_S)
    audit = world.mass()
    assert audit.error < 1e-12
    assert audit.expected != pytest.approx(4)
    assert world.peer(1).view().w > 0
    assert facts(world, 0, "neighbour began anew")


def test_a_restored_backup_begins_anew() -> None:
    world = tiny_world(4, spec=agreement(4, rounds=20))
    world.run(until_s=3.5)
    backup = world.machines[1].disk
    world.run(until_s=9.5)
    world.restore(1, backup)
    world.boot_at(10.0, 1)
    assert world.run(until_s=_END_S)
    assert facts(world, 1, "began anew")
    assert world.mass().error < 1e-12


def test_a_leaver_hands_its_mass_over() -> None:
    world = tiny_world(4, spec=agreement(4, rounds=20))
    world.run(until_s=5.5)
    world.command(2, "leave")
    assert world.run(until_s=_END_S)
    assert world.machines[2].finished == "left"
    assert world.peer(2).view().w == 0
    held = sum(world.peer(i).view().w for i in (0, 1, 3))
    assert held == pytest.approx(4, abs=1e-9)
    assert world.mass().sum == pytest.approx(world.mass().expected, abs=1e-9)
    assert world.names[2] not in world.peer(0).view().members


def test_a_leaver_without_an_heir_waits_for_one() -> None:
    world = tiny_world(2, spec=agreement(2, rounds=50, quorum=0.0))
    world.run(until_s=3.5)
    world.crash(1)
    world.run(until_s=3.6)
    world.command(0, "leave")
    world.run(until_s=12.0)
    assert not world.machines[0].finished
    assert "out-neighbour" in world.peer(0).view().reason
    world.boot(1)
    world.run(until_s=60.0)
    assert facts(world, 0, "run finished")[0].fields["reason"] == "left"


def test_a_banned_peer_is_cut_off_and_no_mass_is_lost() -> None:
    world = tiny_world(4, spec=agreement(4, rounds=20))
    world.run(until_s=4.5)
    world.command(0, "ban", peer=world.names[1])
    world.step()
    assert world.run(until_s=_END_S)
    assert not world.network.session(0, 1)
    assert world.mass().sum == pytest.approx(4, abs=1e-9)


def test_a_revoked_peer_ends_and_its_frames_are_refused() -> None:
    world = tiny_world(4, spec=agreement(4, rounds=20))
    world.run(until_s=4.5)
    subject = world.names[3]
    run = world.peer(0).state.run
    votes = [
        certificates.issue_revocation(machine.identity, run=run, subject=subject, reason="lost key", now=4)
        for machine in world.machines[:3]
    ]
    revocation = certificates.join_revocations(certificates.join_revocations(votes[0], votes[1]), votes[2])
    world.command(0, "ban", peer=subject, revocation=certificates.encode_revocation(revocation))
    assert world.run(until_s=_END_S)
    assert world.machines[3].finished == "revoked"
    for i in range(3):
        assert world.machines[i].finished == "done"
        assert subject not in world.peer(i).view().members
    assert world.mass().error < 1e-12


def test_below_quorum_a_run_pauses_with_the_reason_and_goes_on_by_itself() -> None:
    world = tiny_world(4, spec=agreement(4, rounds=30, deadline_s=4.0, quorum=0.6))
    world.run(until_s=3.5)
    for i in (1, 2, 3):
        world.crash(i)
    world.run(until_s=40.0)
    view = world.peer(0).view()
    assert view.phase == "paused"
    assert "0 of 2 neighbours are heard" in view.reason
    for i in (1, 2, 3):
        world.boot(i)
    assert world.run(until_s=_END_S)
    assert facts(world, 0, "resumed")
    assert world.mass().sum == pytest.approx(4, abs=1e-9)


def test_a_site_that_pauses_holds_until_it_resumes() -> None:
    world = tiny_world(2, spec=agreement(2, rounds=10))
    world.run(until_s=2.5)
    world.command(0, "pause")
    world.run(until_s=200.0)
    assert world.peer(0).view().phase == "paused"
    assert world.peer(0).view().reason == "paused by this site"
    world.command(0, "resume")
    assert world.run(until_s=_END_S)


@dataclass
class _Failing:
    """A learner that fails in its first `failures` fits."""

    failures: int
    fits: list[int] = field(default_factory=list)

    def parameters(self) -> Vector:
        return np.zeros(3, np.float32)

    def fit(self, parameters: Vector, rng: np.random.Generator) -> Update:
        self.fits.append(1)
        if len(self.fits) <= self.failures:
            raise ValueError("no rows today")
        return Update(parameters=parameters + np.float32(1), samples=1)

    def evaluate(self, parameters: Vector) -> Metrics:
        raise ValueError("no test rows")


def test_a_learner_that_fails_once_costs_one_step() -> None:
    world = tiny_world(
        2, factory=lambda site: _Failing(1 if site.data == "0" else 0), spec=agreement(2, rounds=8)
    )
    assert world.run(until_s=_END_S)
    [fact] = facts(world, 0, "learner failed")
    assert "no rows today" in fact.fields["fault"]
    assert world.mass().sum == pytest.approx(2)


def test_a_learner_that_keeps_failing_pauses_its_peer_until_someone_looks() -> None:
    world = tiny_world(
        2, factory=lambda site: _Failing(5 if site.data == "0" else 0), spec=agreement(2, rounds=20)
    )
    world.run(until_s=60.0)
    view = world.peer(0).view()
    assert view.phase == "paused"
    assert "learner failed 3 times" in view.reason
    world.command(0, "resume")
    world.run(until_s=61.0 + 3 * 8)
    world.command(0, "resume")
    assert world.run(until_s=_END_S)


@dataclass
class _Counting:
    """Keeps a count of its fits as state."""

    count: int = 0
    restored: list[bytes] = field(default_factory=list)

    def parameters(self) -> Vector:
        return np.zeros(3, np.float32)

    def fit(self, parameters: Vector, rng: np.random.Generator) -> Update:
        self.count += 1
        return Update(parameters=parameters, samples=1, metrics={"count": self.count})

    def evaluate(self, parameters: Vector) -> Metrics:
        return {}

    def state(self) -> bytes:
        return self.count.to_bytes(4, "big")

    def restore(self, state: bytes) -> None:
        self.count = int.from_bytes(state, "big")


def test_learner_state_survives_a_crash() -> None:
    world = tiny_world(2, factory=lambda _: _Counting(), spec=agreement(2, rounds=12))
    world.run(until_s=4.5)
    world.crash(0)
    world.boot_at(4.6, 0)
    assert world.run(until_s=_END_S)
    counts = [f.fields["metrics"]["count"] for f in facts(world, 0, "round committed") if f.fields["metrics"]]
    assert counts == [float(i + 1) for i in range(len(counts))]


def test_partial_work_is_used_when_the_deadline_comes_first() -> None:
    spec = agreement(2, rounds=4, deadline_s=2.0)
    world = tiny_world(2, spec=spec, fit_s=[1.0, 6.0], factory=stepwise)
    assert world.run(until_s=_END_S)
    assert all(fact.fields["seconds"] <= 2.0 + 1e-9 for fact in facts(world, 0, "round committed"))
    assert world.mass().sum == pytest.approx(2)


def test_a_share_setting_takes_an_edge_out_of_the_plan_and_back() -> None:
    world = tiny_world(3, spec=agreement(3, rounds=30))
    world.run(until_s=3.5)
    world.command(1, "set", peer=world.names[0], accept="deny")
    world.run(until_s=9.5)
    assert not world.peer(0).state.links.edge_to(world.names[1]).accepting
    before = world.peer(0).state.links.edge_to(world.names[1]).sent
    world.run(until_s=12.5)
    assert world.peer(0).state.links.edge_to(world.names[1]).sent == before
    world.command(1, "set", peer=world.names[0], accept="normal")
    assert world.run(until_s=_END_S)
    assert world.peer(0).state.links.edge_to(world.names[1]).sent > before
    assert world.mass().sum == pytest.approx(3, abs=1e-9)


def test_sites_whose_agreements_differ_are_told_which_keys() -> None:
    world = tiny_world(2)
    other = agreement(2, rounds=7)
    world.machines[1].spec = other
    world.run(until_s=60.0)
    assert any(
        "run.rounds" in fact.fields["text"] for i in (0, 1) for fact in facts(world, i, "run mismatch")
    )
    assert all(world.peer(i).view().phase == "waiting" for i in (0, 1))


def test_sites_whose_first_models_differ_do_not_mix() -> None:
    @dataclass
    class Random(TinyLearner):
        def parameters(self) -> Vector:
            return self.target

    world = tiny_world(2, factory=lambda site: Random(tiny(site).target + 1))
    world.run(until_s=30.0)
    assert facts(world, 0, "first model differs")
    assert world.peer(0).view().phase == "waiting"


def test_the_same_seed_gives_the_same_run_bit_for_bit() -> None:
    traces = []
    for _ in range(2):
        world = tiny_world(4, spec=agreement(4, seed=3))
        world.run(until_s=3.5)
        world.crash(1)
        world.boot_at(5.0, 1)
        assert world.run(until_s=_END_S)
        committed = [facts(world, i, "round committed") for i in range(4)]
        traces.append(
            [(f.fields["model"], f.fields["statement"], f.fields["w"]) for row in committed for f in row]
        )
    assert traces[0] == traces[1]


def test_real_keys_and_frames_give_the_same_run_as_none() -> None:
    models = []
    for crypto in (False, True):
        world = tiny_world(3, spec=agreement(3, rounds=4), crypto=crypto)
        assert world.run(until_s=_END_S)
        models.append(_models(world))
        assert world.mass().sum == pytest.approx(3)
    np.testing.assert_array_equal(models[0], models[1])


@pytest.mark.slow
def test_seventy_peers_that_cannot_all_meet_begin_together() -> None:
    world = tiny_world(70, spec=agreement(70, rounds=2, closing_rounds=1))
    assert world.run(until_s=_END_S)
    assert world.mass().sum == pytest.approx(70, abs=1e-9)


def test_a_machine_that_is_down_has_no_peer() -> None:
    world = tiny_world(2)
    with pytest.raises(LocalError, match="boot it first"):
        world.peer(0)
