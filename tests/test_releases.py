"""Noise before anything leaves, and an account that never holds less than what left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import agreement, facts, tiny_world

from p2pfl import rounds
from p2pfl.consortium import Consortium
from p2pfl.errors import ConfigError, StoreError
from p2pfl.events import Commit, Effect, Started, Train, Trained
from p2pfl.learn.factory import resolve
from p2pfl.learn.probes import digest_of, read
from p2pfl.peer import Peer
from p2pfl.release import Release
from p2pfl.run import RunSpec, run_id
from p2pfl.simulations.machine import founded_by, identities
from p2pfl.simulations.world import World
from p2pfl.trust import privacy
from p2pfl.trust.privacy import Account, epsilon_of, spend

PROBE = {"source": "sklearn:iris#0-30", "digest": digest_of(read("sklearn:iris#0-30")), "samples": 30}


def noisy_agreement(n: int, *, clip: float = 0.5, sigma: float = 1.0, **options: Any) -> RunSpec:
    """`n` members with noise; `options` of [run], and `kind` and `max_epsilon` of the noise."""
    table: dict[str, Any] = {"kind": options.pop("kind", "gaussian"), "clip": clip, "noise_multiplier": sigma}
    if (most := options.pop("max_epsilon", None)) is not None:
        table["max_epsilon"] = most
    trust = {"privacy": table, "reputation": options.pop("reputation", {})}
    return agreement(n, trust=trust, **options)


def fits(world: World, index: int) -> int:
    """The training rounds that a machine committed."""
    return sum(f.fields["stage"] == "training" for f in facts(world, index, "round committed"))


def account_on_disk(world: World, index: int) -> Account:
    disk = world.machines[index].disk
    if disk is None:
        return Account()
    return privacy.decode(disk.account) if disk.account else Account()


def releases(account: Account) -> int:
    return sum(entry.steps for entry in account.spent)


def alone(spec: RunSpec, entropy: bytes = b"\1" * 32) -> Peer:
    (me,) = identities(1, 0)
    founders = founded_by(run_id(spec), [me.peer_id])
    return Peer(
        me=me.peer_id,
        spec=spec,
        consortium=Consortium(founders, verify=lambda *_: True),
        boot_session=1,
        entropy=entropy,
    )


def started(**more: Any) -> Started:
    return Started(
        snapshot=None,
        parameters=np.zeros(400, np.float32),
        samples=1,
        schema_hash=bytes(32),
        statistics=np.zeros(0),
        **({"account": privacy.encode(Account(data_set="rows"))} | more),
    )


def committed(effects: list[Effect]) -> Account:
    """The account of the last Commit among `effects`."""
    return privacy.decode([e for e in effects if isinstance(e, Commit)][-1].snapshot.account)


def test_how_far_a_fit_moved_the_model_is_cut_before_it_leaves() -> None:
    # Almost no noise, and sites that all want to go 0.1 * 5 in each of three directions.
    world = tiny_world(2, spec=noisy_agreement(2, clip=0.01, sigma=1e-4, rounds=1), aims=[5, 5])
    assert world.run(until_s=100)
    for model in (world.peer(i).model() for i in (0, 1)):
        assert float(np.linalg.norm(model)) == pytest.approx(0.01, rel=1e-2)


def test_with_nothing_learned_what_leaves_is_noise_of_the_stated_deviation() -> None:
    peer = alone(noisy_agreement(1, clip=2.0, sigma=1.5, rounds=2))
    peer.handle(started(), 0.0)
    peer.handle(Trained(round=0, parameters=np.zeros(400, np.float32)), 1.0)
    model = peer.model()
    assert float(model.std()) == pytest.approx(3.0, rel=0.15)
    assert float(model.mean()) == pytest.approx(0.0, abs=0.6)
    # The next round has noise of its own.
    peer.handle(Trained(round=1, parameters=model), 2.0)
    again = peer.model() - model
    assert abs(float(np.corrcoef(again, model)[0, 1])) < 0.25


def test_the_noise_comes_from_the_process_s_secret_and_from_nothing_that_members_know() -> None:
    spec = noisy_agreement(1, rounds=1)
    models = []
    for entropy in (b"\1" * 32, b"\1" * 32, b"\2" * 32):
        peer = alone(spec, entropy)
        peer.handle(started(), 0.0)
        peer.handle(Trained(round=0, parameters=np.zeros(400, np.float32)), 1.0)
        models.append(peer.model())
    assert np.array_equal(models[0], models[1])
    assert abs(float(np.corrcoef(models[0], models[2])[0, 1])) < 0.25


def test_with_the_same_noise_another_contribution_differs_by_no_more_than_twice_the_clip() -> None:
    models = []
    for parameters in (np.full(400, 9.0, np.float32), np.full(400, -3e38, np.float32)):
        peer = alone(noisy_agreement(1, clip=0.5, rounds=1))
        peer.handle(started(), 0.0)
        peer.handle(Trained(round=0, parameters=parameters), 1.0)
        models.append(peer.model())
    assert float(np.linalg.norm(models[0] - models[1])) == pytest.approx(1.0, rel=1e-4)


def test_a_result_that_cannot_be_cut_is_a_fault_and_nothing_of_it_leaves() -> None:
    peer = alone(noisy_agreement(1, rounds=2))
    peer.handle(started(), 0.0)
    effects = peer.handle(Trained(round=0, parameters=np.full(400, np.nan, np.float32)), 1.0)
    said = [f for e in effects if isinstance(e, Commit) for f in e.facts if f.event == "learner failed"]
    assert [f.fields["fault"] for f in said] == ["an update that is not finite cannot be clipped"]
    assert not peer.model().any()


def test_every_training_round_is_paid_for_and_its_row_says_what_it_came_to() -> None:
    world = tiny_world(3, spec=noisy_agreement(3, sigma=2.0, rounds=5))
    assert world.run(until_s=100)
    for i in range(3):
        assert account_on_disk(world, i) == Account(
            data_set=f"source {i}", spent=(Release(sigma=2.0, q=1.0, steps=5),)
        )
        told = [f.fields["epsilon"] for f in facts(world, i, "round committed")]
        by_rounds = [epsilon_of(spend(Account(), sigma=2.0, steps=n), 1e-5) for n in (1, 2, 3, 4, 5)]
        assert told == [*by_rounds, by_rounds[-1], by_rounds[-1]]
        peer = world.peer(i)
        assert peer.view().epsilon == by_rounds[-1]


def test_without_privacy_there_is_no_account() -> None:
    world = tiny_world(2, spec=agreement(2, rounds=2))
    assert world.run(until_s=100)
    assert account_on_disk(world, 0) == Account()
    assert {f.fields["epsilon"] for f in facts(world, 0, "round committed")} == {None}


@pytest.mark.slow
@given(at_s=st.floats(0.5, 8.0), effects=st.integers(0, 12), down_s=st.floats(0.5, 5.0))
@settings(max_examples=25, deadline=None)
def test_whatever_crashes_the_account_holds_every_fit_that_was_committed(
    at_s: float, effects: int, down_s: float
) -> None:
    world = tiny_world(3, spec=noisy_agreement(3, rounds=6))
    world.run(until_s=at_s)
    world.crash_between(1, effects)
    world.run(until_s=at_s + 1.5)
    world.crash(1)
    assert releases(account_on_disk(world, 1)) >= fits(world, 1)
    world.run(until_s=at_s + 1.5 + down_s)
    world.boot(1)
    assert world.run(until_s=300)
    assert releases(account_on_disk(world, 1)) >= fits(world, 1)


def test_at_the_budget_a_site_trains_no_more_and_the_run_ends_with_a_model() -> None:
    most = epsilon_of(spend(Account(), sigma=2.0, steps=3), 1e-5)
    world = tiny_world(3, spec=noisy_agreement(3, sigma=2.0, rounds=6, max_epsilon=most))
    assert world.run(until_s=200)
    for i in range(3):
        (said,) = facts(world, i, "privacy budget spent")
        assert (said.fields["round"], said.fields["epsilon"]) == (3, pytest.approx(most))
        assert releases(account_on_disk(world, i)) == 3
        assert fits(world, i) == 6
        assert not facts(world, i, "learner failed")
        assert world.machines[i].finished == "done"


def test_an_earlier_run_on_the_same_rows_has_spent_from_the_same_budget() -> None:
    most = epsilon_of(spend(Account(), sigma=1.0, steps=3), 1e-5)
    earlier = privacy.encode(spend(Account(data_set="rows"), sigma=1.0, steps=2))
    peer = alone(noisy_agreement(1, rounds=6, max_epsilon=most))
    first = peer.handle(started(account=earlier), 0.0)
    assert [type(e) for e in first if isinstance(e, Train)] == [Train]
    second = peer.handle(Trained(round=0, parameters=np.zeros(400, np.float32)), 1.0)
    assert committed(second) == spend(Account(data_set="rows"), sigma=1.0, steps=3)
    assert not [e for e in second if isinstance(e, Train)]
    assert peer.view().budget_is_spent


def test_a_fit_of_which_the_learner_noises_the_steps_costs_what_the_learner_says() -> None:
    release = Release(sigma=1.5, q=0.1, steps=20)
    peer = alone(noisy_agreement(1, kind="dp-sgd", rounds=3))
    (train,) = (e for e in peer.handle(started(release=release), 0.0) if isinstance(e, Train))
    # Members know the run's seed: what noise comes of must be another one, and the process's own.
    assert train.seed != peer.state.seed(rounds.FIT)
    other = alone(noisy_agreement(1, kind="dp-sgd", rounds=3), entropy=b"\2" * 32)
    assert train.seed != next(
        e.seed for e in other.handle(started(release=release), 0.0) if isinstance(e, Train)
    )
    end = np.full(400, 9.0, np.float32)
    effects = peer.handle(Trained(round=0, parameters=end), 1.0)
    # The peer adds nothing of its own, and the next fit is paid for, too.
    assert np.array_equal(peer.model(), end)
    assert peer.state.account.spent == (Release(sigma=1.5, q=0.1, steps=40),)
    assert committed(effects).spent == (release,)


def test_an_account_that_cannot_be_read_starts_nothing() -> None:
    with pytest.raises(StoreError, match="privacy account"):
        alone(noisy_agreement(1)).handle(started(account=b"\xc1"), 0.0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"run": {"weights": "samples"}}, "numbers of rows"),
        ({"learner": {"standardise": "federation"}}, "sums that trust.privacy 'gaussian' does not"),
        ({"gossip": {"averaging": {"kind": "push-pull"}}}, "last gradient"),
        ({"kind": "dp-sgd", "learner": {"standardise": "site"}}, "lets each row change all others"),
        ({"reputation": {"kind": "beta"}}, "measures models on a site's rows"),
        ({"knowledge": {"exchange": {"kind": "proto"}}}, "single rows"),
        ({"knowledge": {"exchange": {"kind": "probe"}, "probe": PROBE}}, "single rows"),
        ({"kind": "dp-sgd", "knowledge": {"exchange": {"kind": "proxy"}}}, "single rows"),
        (
            {"kind": "dp-sgd", "knowledge": {"exchange": {"kind": "probe", "keep": 0.9}, "probe": PROBE}},
            "keep below 1",
        ),
    ],
)
def test_what_would_leave_beside_the_noise_is_refused(more: dict[str, Any], message: str) -> None:
    options = {**more.pop("run", {}), **more}
    with pytest.raises(ConfigError, match=message):
        noisy_agreement(2, max_epsilon=8.0, **options)


def test_a_run_of_real_steps_has_spent_what_opacus_says() -> None:
    accountants = pytest.importorskip("opacus.accountants", reason="the extra `dp` is not installed")
    table = {
        "learner": {
            "model": {"kind": "logistic"},
            "data": {"source": "sklearn:digits"},
            "local_steps": 4,
            "batch_size": 64,
        }
    }
    spec = noisy_agreement(2, kind="dp-sgd", clip=1.0, sigma=1.2, rounds=3, **table)
    world = tiny_world(2, spec=spec, factory=resolve(spec.learner), aims=["sklearn:digits"] * 2)
    assert world.run(until_s=200)
    account = account_on_disk(world, 0)
    assert account.data_set.startswith("rows ")
    ((sigma, q, steps),) = [(one.sigma, one.q, one.steps) for one in account.spent]
    assert (sigma, steps) == (1.2, 12)
    theirs = accountants.RDPAccountant()
    for _ in range(12):
        theirs.step(noise_multiplier=1.2, sample_rate=q)
    told = facts(world, 0, "round committed")[-1].fields["epsilon"]
    assert told == pytest.approx(theirs.get_epsilon(1e-5), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("after", [None, 1, 2, 3, 5])
def test_predictions_of_a_fit_never_leave_before_it_is_paid_for(after: int | None) -> None:
    pytest.importorskip("opacus", reason="the extra `dp` is not installed")
    table = {
        "learner": {
            "model": {"kind": "logistic"},
            "data": {"source": "sklearn:iris#30-150"},
            "local_steps": 2,
            "batch_size": 16,
        },
        "gossip": {"topology": {"kind": "complete"}, "averaging": {"kind": "none"}},
        "knowledge": {"exchange": {"kind": "probe"}, "probe": PROBE},
    }
    spec = noisy_agreement(2, kind="dp-sgd", clip=1.0, sigma=1.2, rounds=4, closing_rounds=0, **table)
    world = tiny_world(2, spec=spec, factory=resolve(spec.learner), aims=["sklearn:iris#30-150"] * 2)
    if after is not None:
        # Between any two effects of its second round.
        world.at(1.5, 0, lambda: world.crash_between(0, after))
        world.boot_at(4.0, 0)
    said: set[int] = set()
    while not all(machine.finished for machine in world.machines) and world.now < 200:
        world.step()
        peer = world.machines[0].peer
        if isinstance(peer, Peer) and peer.state.knowing is not None:
            said |= {word.message.header.round for word in peer.state.knowing.words}
        # Two steps a fit; more where a fit was lost after it was paid for.
        assert releases(account_on_disk(world, 0)) >= 2 * len(said)
    assert len(said) >= 3
    assert all(machine.finished == "done" for machine in world.machines)
    assert releases(account_on_disk(world, 1)) == 2 * 4
    assert not facts(world, 1, "knowledge job failed")
    assert facts(world, 1, "round committed")[-1].fields["epsilon"] > 0
