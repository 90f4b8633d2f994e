from typing import Any

import numpy as np
import pytest
import torch

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.learn.data import Dataset, load, part
from p2pfl.learn.learner import Learner
from p2pfl.learn.numpy_learner import NumpyLearner
from p2pfl.learn.options import ModelOptions, OptimizerOptions
from p2pfl.learn.perceptron import initial
from p2pfl.learn.schedule import rate_factor
from p2pfl.learn.standardise import sums

MLP = ModelOptions(kind="mlp", hidden=(8,))


@pytest.fixture(scope="module")
def digits() -> Any:
    return load("sklearn:digits")


@pytest.fixture(scope="module")
def cancer() -> Any:
    return load("sklearn:breast_cancer")


def _rng(seed: int = 0) -> Any:
    return np.random.default_rng(seed)


def test_it_is_a_learner_whose_size_is_that_of_the_formulas(digits: Dataset, cancer: Any) -> None:
    assert isinstance(NumpyLearner(digits), Learner)
    assert len(NumpyLearner(digits).parameters()) == 10 * 65
    assert len(NumpyLearner(cancer).parameters()) == 31
    assert len(NumpyLearner(digits, model=ModelOptions(kind="mlp", hidden=(64,))).parameters()) == 4810


def test_a_perceptron_learns_the_digits(digits: Dataset) -> None:
    learner = NumpyLearner(digits, model=ModelOptions(kind="mlp", hidden=(64,)), local_steps=1500)
    update = learner.fit(learner.parameters(), _rng())
    assert update.samples == 1500 * 32
    assert learner.evaluate(update.parameters)["accuracy"] > 0.965


def test_logistic_regression_reaches_the_optimum_of_its_convex_loss(cancer: Any) -> None:
    from sklearn.linear_model import LogisticRegression

    learner = NumpyLearner(
        cancer,
        standardise="site",
        local_steps=3000,
        batch_size=1000,
        optimizer=OptimizerOptions(lr=0.5, weight_decay=0.1, momentum=0.9),
    )
    n = learner.samples()
    learner.fit(learner.parameters(), _rng())
    x = (cancer.x_train - cancer.x_train.mean(0)) / cancer.x_train.std(0)
    # Their intercept is not penalised and ours is, so a column of ones takes its place.
    theirs = LogisticRegression(C=1 / (0.1 * n), fit_intercept=False, tol=1e-10, max_iter=5000)
    theirs.fit(np.hstack([x, np.ones((n, 1))]), cancer.y_train)
    np.testing.assert_allclose(learner.parameters(), theirs.coef_[0], atol=2e-4)


def test_steps_are_those_of_torch_sgd_with_momentum_and_weight_decay(digits: Dataset) -> None:
    options = OptimizerOptions(lr=0.05, momentum=0.9, weight_decay=0.01)
    learner = NumpyLearner(digits, model=MLP, optimizer=options, local_steps=7, batch_size=2000)
    theta = learner.parameters()
    net = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10)).double()
    torch.nn.utils.vector_to_parameters(torch.tensor(theta, dtype=torch.float64), net.parameters())
    sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    x, y = torch.tensor(digits.x_train, dtype=torch.float64), torch.tensor(digits.y_train)
    for _ in range(7):
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        sgd.step()
    expected = torch.nn.utils.parameters_to_vector(net.parameters()).detach().numpy()
    np.testing.assert_allclose(learner.fit(theta, _rng()).parameters, expected, atol=1e-6)


def test_two_fits_give_the_same_bits_and_another_rng_others(digits: Dataset) -> None:
    first, second = (NumpyLearner(digits, model=MLP, local_steps=20, seed=3) for _ in range(2))
    start = first.parameters()
    assert start.tobytes() == second.parameters().tobytes()
    one = first.fit(start, _rng(1)).parameters
    assert one.tobytes() == second.fit(start, _rng(1)).parameters.tobytes()
    assert one.tobytes() == first.fit(start, _rng(1)).parameters.tobytes()
    assert one.tobytes() != first.fit(start, _rng(2)).parameters.tobytes()


def test_all_sites_start_from_the_model_of_the_runs_seed(digits: Dataset) -> None:
    a = NumpyLearner(part(digits, np.arange(50)), model=MLP, seed=9)
    b = NumpyLearner(part(digits, np.arange(50, 400)), model=MLP, seed=9)
    assert a.parameters().tobytes() == b.parameters().tobytes()
    assert NumpyLearner(digits, model=MLP, seed=8).parameters().tobytes() != a.parameters().tobytes()
    assert a.parameters().tobytes() == initial((64, 8, 10), np.random.default_rng([9, 1])).tobytes()


def test_momentum_starts_anew_unless_it_is_kept_and_then_survives_a_restart(digits: Dataset) -> None:
    kept = OptimizerOptions(reset=False)
    learner, fresh = (NumpyLearner(digits, optimizer=kept, local_steps=5) for _ in range(2))
    start = learner.parameters()
    middle = learner.fit(start, _rng(1)).parameters
    state = learner.state()
    end = learner.fit(middle, _rng(2)).parameters
    assert fresh.fit(middle, _rng(2)).parameters.tobytes() != end.tobytes()
    fresh.restore(state)
    assert fresh.fit(middle, _rng(2)).parameters.tobytes() == end.tobytes()
    assert NumpyLearner(digits).state() == b""


def test_a_private_head_stays_and_is_saved(digits: Dataset) -> None:
    learner, other = (NumpyLearner(digits, model=MLP, share=("layer1.*",), local_steps=30) for _ in range(2))
    start = learner.parameters()
    assert len(start) == 64 * 8 + 8
    update = learner.fit(start, _rng())
    measured = learner.evaluate(update.parameters)
    assert other.evaluate(update.parameters) != measured
    other.restore(learner.state())
    assert other.evaluate(update.parameters) == measured


def test_state_of_another_model_is_refused(digits: Dataset) -> None:
    small = NumpyLearner(digits, model=MLP, share=("layer1.*",))
    large = NumpyLearner(digits, model=ModelOptions(kind="mlp", hidden=(9,)), share=("layer1.*",))
    with pytest.raises(LearnerError, match="the model changed since it was saved"):
        large.restore(small.state())
    with pytest.raises(LearnerError, match="the model changed"):
        small.restore(b"")


def test_a_fit_that_is_told_to_stop_returns_its_partial_work(digits: Dataset) -> None:
    learner = NumpyLearner(digits, local_steps=50, batch_size=10)
    calls = iter([False] * 3 + [True])
    learner.should_stop = lambda: next(calls)
    update = learner.fit(learner.parameters(), _rng())
    assert update.samples == 30
    learner.should_stop = lambda: True
    untouched = learner.fit(update.parameters, _rng())
    assert untouched.samples == 0
    assert untouched.parameters.tobytes() == update.parameters.tobytes()


def test_without_local_steps_a_fit_is_one_epoch(digits: Dataset) -> None:
    learner = NumpyLearner(part(digits, np.arange(70)), batch_size=32)
    assert learner.fit(learner.parameters(), _rng()).samples == 96


def test_the_cosine_rate_falls_to_its_final_share() -> None:
    options = OptimizerOptions(schedule="cosine", final=0.1)
    assert [rate_factor(options, p) for p in (0.0, 0.5, 1.0, 2.0)] == pytest.approx([1, 0.55, 0.1, 0.1])
    assert rate_factor(OptimizerOptions(), 0.7) == 1.0


def test_the_schedule_follows_the_runs_progress(digits: Dataset) -> None:
    options = OptimizerOptions(schedule="cosine", final=0.0)
    learner = NumpyLearner(digits, optimizer=options, local_steps=3)
    learner.progress = lambda: 1.0
    start = learner.parameters()
    assert learner.fit(start, _rng()).parameters.tobytes() == start.tobytes()


def test_federated_standardisation_is_that_of_the_pooled_rows(cancer: Any) -> None:
    sites = [part(cancer, np.arange(i, len(cancer.y_train), 3)) for i in range(3)]
    learners = [NumpyLearner(site, standardise="federation") for site in sites]
    with pytest.raises(LearnerError, match="call standardise"):
        learners[0].fit(learners[0].parameters(), _rng())
    pooled = np.sum([learner.statistics() for learner in learners], axis=0)
    np.testing.assert_allclose(pooled, sums(cancer.x_train), rtol=1e-12)
    for learner in learners:
        learner.standardise(pooled)
    whole = NumpyLearner(cancer, standardise="site")
    theta = whole.fit(whole.parameters(), _rng()).parameters
    assert learners[1].evaluate(theta)["loss"] == pytest.approx(whole.evaluate(theta)["loss"], rel=1e-4)
    np.testing.assert_allclose(
        learners[1].predict(cancer.x_test), whole.predict(cancer.x_test), rtol=1e-3, atol=1e-6
    )


def test_two_classes_are_measured_by_auc_where_both_occur(cancer: Any) -> None:
    learner = NumpyLearner(cancer, standardise="site")
    assert set(learner.evaluate(learner.parameters())) == {"loss", "accuracy", "auc"}
    one_class = part(cancer, np.arange(100), np.flatnonzero(cancer.y_test == 1))
    assert "auc" not in NumpyLearner(one_class, standardise="site").evaluate(learner.parameters())


def test_divergence_is_an_error_that_names_the_rate(cancer: Any) -> None:
    learner = NumpyLearner(cancer, model=MLP, optimizer=OptimizerOptions(lr=1e38), local_steps=50)
    with pytest.raises(LearnerError, match=r"diverged at learning rate 1e\+38"):
        learner.fit(learner.parameters(), _rng())


def test_a_round_that_diverged_can_be_tried_again(digits: Dataset) -> None:
    kept = OptimizerOptions(reset=False)
    learner = NumpyLearner(digits, model=MLP, share=("layer1.*",), optimizer=kept, local_steps=5)
    start = learner.parameters()
    learner.fit(start, _rng())
    state = learner.state()
    with pytest.raises(LearnerError, match="diverged"):
        learner.fit(np.full_like(start, 3e38), _rng())
    assert learner.state() == state


def test_a_vector_of_another_model_is_refused(digits: Dataset) -> None:
    learner = NumpyLearner(digits)
    for call in (learner.evaluate, lambda theta: learner.fit(theta, _rng())):
        with pytest.raises(LearnerError, match="this model has 650"):
            call(np.zeros(651, np.float32))


def test_the_schema_hash_tells_models_columns_and_class_orders_apart(digits: Dataset) -> None:
    def site(**changes: Any) -> Any:
        x = np.zeros((4, 2), np.float32)
        y = np.array([0, 1, 0, 1])
        given = {"features": ("a", "b"), "classes": ("no", "yes")} | changes
        return NumpyLearner(
            Dataset(x_train=x, y_train=y, x_test=x, y_test=y, n_classes=2, **given)
        ).schema_hash()

    assert site() == site()
    assert len({site(), site(features=("b", "a")), site(classes=("yes", "no")), bytes(32)}) == 4
    assert NumpyLearner(digits).schema_hash() != NumpyLearner(digits, model=MLP).schema_hash()


def test_a_cnn_is_sent_to_torch(digits: Dataset) -> None:
    with pytest.raises(ConfigError, match="needs torch"):
        NumpyLearner(digits, model=ModelOptions(kind="cnn"))


def test_read_only_rows_and_parameters_serve(digits: Dataset) -> None:
    for array in (digits.x_train, digits.y_train):
        array.flags.writeable = False
    learner = NumpyLearner(digits, local_steps=2)
    theta = learner.parameters()
    theta.flags.writeable = False
    learner.fit(theta, _rng())
    for array in (digits.x_train, digits.y_train):
        array.flags.writeable = True


def test_a_model_is_validated_on_training_rows_that_the_rng_draws(digits: Dataset) -> None:
    few = part(digits, np.arange(100))
    learner = NumpyLearner(few, model=ModelOptions(kind="mlp"), local_steps=60)
    start = learner.parameters()
    # Fewer rows than are drawn: all of them, in any order.
    assert learner.validate(start, _rng(1)) == pytest.approx(learner.validate(start, _rng(2)))
    trained = learner.fit(start, _rng()).parameters
    assert learner.validate(trained, _rng()) < learner.validate(start, _rng()) / 5
    whole = NumpyLearner(digits, model=ModelOptions(kind="mlp"), local_steps=1)
    assert whole.validate(trained, _rng(1)) == whole.validate(trained, _rng(1))
    assert whole.validate(trained, _rng(1)) != whole.validate(trained, _rng(2))
    with np.errstate(all="ignore"):
        assert whole.validate(np.full_like(start, 3e38), _rng()) == np.inf
