from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier, SGDRegressor
from sklearn.neural_network import MLPClassifier

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.learn.data import Dataset, load
from p2pfl.learn.learner import Learner
from p2pfl.learn.sklearn_learner import SklearnLearner


def _rng(seed: int = 0) -> Any:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def digits() -> Any:
    return load("sklearn:digits")


@pytest.fixture(scope="module")
def cancer() -> Any:
    d = load("sklearn:breast_cancer")
    mean, std = d.x_train.mean(0), d.x_train.std(0)
    return ((d.x_train - mean) / std, d.y_train, (d.x_test - mean) / std, d.y_test)


def _make(estimator: Any, rows: Any, **options: Any) -> Any:
    return SklearnLearner(estimator, *rows, **options)


def _rows(dataset: Any) -> Any:
    return dataset.x_train, dataset.y_train, dataset.x_test, dataset.y_test


def test_a_linear_model_starts_at_zero_and_learns(digits: Dataset) -> None:
    learner = _make(SGDClassifier(loss="log_loss"), _rows(digits), local_steps=150)
    assert isinstance(learner, Learner)
    start = learner.parameters()
    assert start.shape == (650,)
    assert not start.any()
    update = learner.fit(start, _rng())
    assert update.samples == 150 * 32
    assert learner.evaluate(update.parameters)["accuracy"] > 0.9


@pytest.mark.parametrize(
    "make",
    [
        lambda: SGDClassifier(loss="log_loss"),
        lambda: LogisticRegression(warm_start=True, max_iter=3),
        lambda: MLPClassifier((16,), learning_rate_init=0.01),
    ],
)
def test_two_classes_learn_and_repeat_with_the_rng(cancer: Any, make: Any) -> None:
    first, second = (_make(make(), cancer, local_steps=60, seed=4) for _ in range(2))
    start = first.parameters()
    assert start.tobytes() == second.parameters().tobytes()
    theta = first.fit(start, _rng(1)).parameters
    assert theta.tobytes() == second.fit(start, _rng(1)).parameters.tobytes()
    measured = first.evaluate(theta)
    assert set(measured) == {"loss", "accuracy", "auc"}
    assert measured["auc"] > 0.95
    assert measured == second.evaluate(theta)


def test_sites_with_other_rows_and_fewer_classes_start_equal(digits: Dataset) -> None:
    some = digits.y_train < 4
    few = (digits.x_train[some], digits.y_train[some], digits.x_test, digits.y_test)
    for make in (SGDClassifier, lambda: MLPClassifier((8,))):
        a, b = (_make(make(), rows, classes=range(10), seed=2) for rows in (few, _rows(digits)))
        assert a.parameters().tobytes() == b.parameters().tobytes()
        assert a.schema_hash() == b.schema_hash()
        assert np.isfinite(a.fit(a.parameters(), _rng()).parameters).all()


def test_a_hinge_loss_gives_auc_and_no_loss(cancer: Any) -> None:
    learner = _make(SGDClassifier(), cancer)
    assert set(learner.evaluate(learner.fit(learner.parameters(), _rng()).parameters)) == {"accuracy", "auc"}


def test_a_regressor_is_measured_by_its_squared_error() -> None:
    x = _rng().normal(size=(200, 3))
    y = x @ [1.0, -2.0, 0.5] + 3
    learner = SklearnLearner(SGDRegressor(), x[:150], y[:150], x[150:], y[150:], local_steps=100)
    before = learner.evaluate(learner.parameters())["loss"]
    assert learner.evaluate(learner.fit(learner.parameters(), _rng()).parameters)["loss"] < before / 50


def test_labels_may_be_text(cancer: Any) -> None:
    x, y, xt, yt = cancer
    words = np.array(["benign", "malignant"])
    learner = SklearnLearner(SGDClassifier(loss="log_loss"), x, words[y], xt, words[yt], local_steps=40)
    measured = learner.evaluate(learner.fit(learner.parameters(), _rng()).parameters)
    assert measured["auc"] > 0.95
    assert measured["accuracy"] > 0.9


def test_the_step_count_survives_a_restart(cancer: Any) -> None:
    learner, other = (_make(SGDClassifier(), cancer, local_steps=10) for _ in range(2))
    middle = learner.fit(learner.parameters(), _rng(1)).parameters
    state = learner.state()
    end = learner.fit(middle, _rng(2)).parameters
    assert other.fit(middle, _rng(2)).parameters.tobytes() != end.tobytes()
    other.restore(state)
    assert other.fit(middle, _rng(2)).parameters.tobytes() == end.tobytes()


def test_a_private_layer_stays_and_is_saved(digits: Dataset) -> None:
    share = ["coefs_.0", "intercepts_.0"]
    learner, other = (_make(MLPClassifier((8,)), _rows(digits), share=share) for _ in range(2))
    theta = learner.fit(learner.parameters(), _rng()).parameters
    assert len(theta) == 64 * 8 + 8
    assert other.evaluate(theta) != learner.evaluate(theta)
    other.restore(learner.state())
    assert other.evaluate(theta) == learner.evaluate(theta)
    with pytest.raises(LearnerError, match="the model changed"):
        _make(MLPClassifier((8,)), _rows(digits)).restore(learner.state())


def test_a_fit_that_is_told_to_stop_returns_its_partial_work(cancer: Any) -> None:
    learner = _make(SGDClassifier(), cancer, local_steps=10)
    calls = iter([False, True])
    learner.should_stop = lambda: next(calls)
    assert learner.fit(learner.parameters(), _rng()).samples == 32


def test_estimators_that_cannot_go_on_from_given_parameters_are_refused(cancer: Any) -> None:
    with pytest.raises(ConfigError, match="set warm_start=True, or use SGDClassifier"):
        _make(LogisticRegression(), cancer)
    with pytest.raises(ConfigError, match="starts anew at every fit"):
        _make(RidgeClassifier(), cancer)
    with pytest.raises(ConfigError, match="average=False"):
        _make(SGDClassifier(average=True), cancer)


def test_a_class_that_is_missing_at_home_is_an_error_for_estimators_without_partial_fit(
    digits: Dataset,
) -> None:
    some = digits.y_train < 4
    rows = (digits.x_train[some], digits.y_train[some], digits.x_test, digits.y_test)
    learner = _make(LogisticRegression(warm_start=True, max_iter=2), rows, classes=range(10))
    with pytest.raises(LearnerError, match="a site's rows must hold every class"):
        learner.fit(learner.parameters(), _rng())
    assert "accuracy" in learner.evaluate(learner.parameters())


def test_a_round_that_diverged_can_be_tried_again(cancer: Any) -> None:
    learner = _make(MLPClassifier((4,), solver="sgd"), cancer, share=["coefs_.0"])
    start, state = learner.parameters(), learner.state()
    with pytest.raises(LearnerError):
        learner.fit(np.full_like(start, 1e38), _rng())
    assert learner.state() == state
    learner.fit(start, _rng())


def test_labels_outside_the_agreement_are_refused(cancer: Any) -> None:
    with pytest.raises(ConfigError, match=r"labels \[0\] are not in classes \[1, 2\]"):
        _make(SGDClassifier(), cancer, classes=[1, 2])


def test_a_model_is_validated_on_training_rows_where_it_has_a_loss(cancer: Any) -> None:
    learner = _make(MLPClassifier((16,), learning_rate_init=0.01), cancer, local_steps=60)
    start = learner.parameters()
    trained = learner.fit(start, _rng()).parameters
    assert learner.validate(trained, _rng(1)) == learner.validate(trained, _rng(1))
    assert learner.validate(trained, _rng(1)) < learner.validate(start, _rng(1)) / 4
    linear = _make(SGDClassifier(loss="log_loss"), cancer)
    assert linear.validate(linear.parameters(), _rng()) == pytest.approx(np.log(2))
    hinge = _make(SGDClassifier(), cancer)
    assert np.isnan(hinge.validate(hinge.parameters(), _rng()))
    x = _rng().normal(size=(200, 3))
    regressor = SklearnLearner(SGDRegressor(), x, x @ [1.0, -2.0, 0.5], x, x[:, 0])
    assert regressor.validate(regressor.parameters(), _rng()) == pytest.approx(5.25, rel=0.3)
