"""Jobs on a hub's model, and what becomes of user code that fails in any job."""

from typing import Any

import numpy as np
import pytest
import torch
from lessons import digits, done, options, recorded, shop, work
from sklearn.neural_network import MLPClassifier

from p2pfl.ids import PeerId
from p2pfl.learn.distill import log_softmax
from p2pfl.learn.learner import Learner, Site
from p2pfl.learn.lessons import mean_of
from p2pfl.learn.sklearn_learner import SklearnLearner
from p2pfl.work import (
    Answer,
    Distill,
    Expected,
    Extract,
    Judge,
    Judged,
    Learn,
    Learned,
    Mix,
    Samples,
)

GKT = options(model={"kind": "gkt"}, roles={"hub": {"capacity": 2.0}, "edge": {}}, optimizer={"lr": 0.02})
A, B = PeerId("a"), PeerId("b")


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _samples(n: int, first: float = 0.0, **other: Any) -> Samples:
    hidden = np.arange(2 * n, dtype=np.float32).reshape(n, 2) + np.float32(first)
    whole: dict[str, Any] = {"hidden": hidden, "z": np.zeros((n, 3)), "labels": np.arange(n) % 3}
    return Samples(**(whole | other))


def test_a_hub_learns_all_senders_in_one_set_and_answers_each_in_its_order() -> None:
    bench, learner = recorded()
    coded = _samples(2, hidden=np.array([[1, 2], [3, 4]], np.int8), scales=np.array([0.5, 2.0], np.float32))
    job = Learn(
        features={B: _samples(4), A: coded},
        only_answer={PeerId("c"): _samples(3)},
        alpha=0.3,
        temperature=2.0,
    )
    worked = done(bench, job, np.zeros(2, np.float32))
    hidden, labels, targets, how = learner.asked[0]
    np.testing.assert_array_equal(hidden[:2], [[0.5, 1.0], [6.0, 8.0]])
    np.testing.assert_array_equal(hidden[2:], _samples(4).hidden)
    np.testing.assert_array_equal(labels, [0, 1, 0, 1, 2, 0])
    np.testing.assert_allclose(targets, 1 / 3)
    assert how == {"alpha": 0.3, "temperature": 2.0}
    assert isinstance(worked.result, Learned)
    assert {peer: z.shape for peer, z in worked.result.logits.items()} == {
        A: (2, 3),
        B: (4, 3),
        PeerId("c"): (3, 3),
    }
    np.testing.assert_array_equal(worked.result.logits[B][:, :2], _samples(4).hidden)
    assert worked.metrics == {"hub_train_loss": 1.0}
    assert worked.parameters is None


def test_a_sender_is_judged_by_the_cross_entropy_of_its_labels() -> None:
    bench, _ = recorded()
    found: Any = done(bench, Judge(features={A: _samples(4), B: _samples(0)}), np.zeros(2, np.float32)).result
    assert isinstance(found, Judged)
    z = np.concatenate([_samples(4).hidden, _samples(4).hidden[:, :1]], axis=1)
    expected = -log_softmax(z)[np.arange(4), _samples(4).labels].mean()
    assert found.losses[A] == pytest.approx(expected)
    assert np.isnan(found.losses[B])


@pytest.mark.parametrize(
    "bad",
    [
        {"labels": np.array([0, 1, 3])},
        {"hidden": np.zeros((3, 5), np.float32)},
        {"hidden": np.full((3, 2), np.inf, np.float32)},
        {"z": np.zeros((3, 4))},
    ],
)
def test_features_that_do_not_fit_the_hub_are_a_fault(bad: Any) -> None:
    bench, learner = recorded()
    job = Learn(features={A: _samples(3, **bad)}, only_answer={}, alpha=1.0, temperature=3.0)
    worked = bench.work(work(job, np.zeros(2, np.float32)))
    assert worked.result is None
    assert worked.fault
    assert learner.asked == []


def test_hubs_mix_to_the_same_bits_in_whatever_order_and_adopt_only_one() -> None:
    rng = np.random.default_rng(0)
    models = [(rng.normal(size=100) * 10.0**k).astype(np.float32) for k in (-6, 0, 6)]
    np.testing.assert_array_equal(mean_of(models), mean_of(models[::-1]))
    np.testing.assert_allclose(mean_of(models), np.mean(models, axis=0, dtype=np.float64), rtol=1e-6)
    bench, learner = recorded()
    learner.hub = np.full(4, 2.0, np.float32)
    given = {A: np.full(4, 4.0, np.float32), B: np.full(4, 9.0, np.float32)}
    done(bench, Mix(models=given), np.zeros(2, np.float32))
    np.testing.assert_array_equal(learner.hub, np.full(4, 5.0))
    done(bench, Mix(models={B: given[B]}, is_adopted=True), np.zeros(2, np.float32))
    np.testing.assert_array_equal(learner.hub, np.full(4, 9.0))
    for wrong in (
        Mix(models={}),
        Mix(models=given, is_adopted=True),
        Mix(models={A: np.zeros(3, np.float32)}),
    ):
        assert bench.work(work(wrong, np.zeros(2, np.float32))).fault


def test_what_user_code_gives_is_checked_before_it_leaves() -> None:
    bench, learner = recorded()
    wrong: Any = {
        "answer": lambda *_: np.zeros((1, 3)),
        "features": lambda *_: np.full((20, 2), np.nan),
        "own_rows": lambda: (np.zeros((20, 2)), np.full(20, 7)),
    }
    for name, function in wrong.items():
        bench, learner = recorded()
        setattr(learner, name, function)
        worked = bench.work(work(Extract(most=100), np.zeros(2, np.float32)))
        assert worked.result is None
        assert worked.fault.startswith("LearnerError") or name in worked.fault


def test_an_exit_in_user_code_is_a_fault_and_the_next_job_goes_on() -> None:
    bench, found = recorded()
    learner: Any = found

    def leave(*_: Any) -> Any:
        raise SystemExit(3)

    learner.features = leave
    assert "exit(3)" in bench.work(work(Extract(most=5), np.zeros(2, np.float32))).fault
    del learner.features
    assert bench.work(work(Extract(most=5), np.zeros(2, np.float32))).fault == ""


def test_a_deadline_leaves_partial_work() -> None:
    looks = iter(range(100))
    bench = shop("hub", GKT, role="hub", should_stop=lambda: next(looks) >= 2)
    start = bench.ready().parameters
    x: Any = done(bench, Extract(most=60), start).result
    job = Learn(
        features={A: Samples(hidden=x.hidden, z=x.logits, labels=x.labels)},
        only_answer={},
        alpha=1.0,
        temperature=3.0,
    )
    found: Any = done(bench, job, start).result
    assert next(looks) == 3
    assert found.logits[A].shape == (60, 10)


def test_a_probe_run_takes_any_classifier_that_answers_and_distils() -> None:
    d = digits()

    def factory(site: Site) -> Learner:
        return SklearnLearner(MLPClassifier((16,)), d.x_train, d.y_train, d.x_test, d.y_test, range(10))

    bench = shop("probe", factory=factory)
    ready = bench.ready()
    assert ready.expected == Expected(classes=10)
    found: Any = done(bench, Answer(), ready.parameters).result
    p = np.exp(log_softmax(found.logits))
    job = Distill(p=p, is_used=np.ones(40, bool), alpha=1.0, temperature=3.0, epochs=2)
    assert done(bench, job, ready.parameters).parameters is not None
