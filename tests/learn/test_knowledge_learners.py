"""What every built-in learner can do with knowledge, and how each fails."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, SGDClassifier, SGDRegressor
from sklearn.neural_network import MLPClassifier
from torch import nn

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.learn.data import load
from p2pfl.learn.distill import log_softmax
from p2pfl.learn.learner import Answers, Distills, DpSgd, Embeds, Near
from p2pfl.learn.numpy_learner import NumpyLearner
from p2pfl.learn.options import ModelOptions, OptimizerOptions
from p2pfl.learn.sklearn_learner import SklearnLearner
from p2pfl.learn.torch_learner import TorchLearner
from p2pfl.learn.torch_models import TensorBatches, module_learner

MLP = ModelOptions(kind="mlp", hidden=(16, 12))


@pytest.fixture(scope="module")
def digits() -> Any:
    return load("sklearn:digits")


@pytest.fixture(scope="module")
def teacher(digits: Any) -> Any:
    """Beliefs of 600 digits by a model that knows them, and their classes."""
    learner = NumpyLearner(digits, model=ModelOptions(kind="mlp", hidden=(64,)), local_steps=600)
    parameters = learner.fit(learner.parameters(), _rng()).parameters
    x = digits.x_train[:600]
    return x, np.exp(log_softmax(learner.answer(parameters, x))), digits.y_train[:600]


def _rng(seed: int = 0) -> Any:
    return np.random.default_rng(seed)


def _sklearn(estimator: Any, d: Any) -> Any:
    return SklearnLearner(estimator, d.x_train, d.y_train, d.x_test, d.y_test)


def _make(kind: str, digits: Any) -> Any:
    if kind == "logistic":
        return NumpyLearner(digits)
    if kind == "mlp":
        return NumpyLearner(digits, model=MLP, optimizer=OptimizerOptions(lr=0.05))
    if kind == "cnn":
        return module_learner(digits, model=ModelOptions(kind="cnn"), optimizer=OptimizerOptions(lr=0.05))
    if kind == "sgd":
        return _sklearn(SGDClassifier(loss="log_loss"), digits)
    return _sklearn(MLPClassifier((32,), learning_rate_init=0.01), digits)


KINDS = ("logistic", "mlp", "cnn", "sgd", "sklearn-mlp")


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_learner_can_do_shows_in_its_protocols(kind: str, digits: Any) -> None:
    learner = _make(kind, digits)
    able = [isinstance(learner, protocol) for protocol in (Answers, Distills, Embeds, Near)]
    assert able == [True, True, *[not isinstance(learner, SklearnLearner)] * 2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_never_saw_a_label_learns_from_beliefs(kind: str, digits: Any, teacher: Any) -> None:
    student = _make(kind, digits)
    x, p, _ = teacher
    start = student.parameters()
    update = student.distill(start, x, p, _rng(), epochs=8, batch=32)
    assert update.samples == 8 * 600
    assert student.evaluate(start)["accuracy"] < 0.35
    assert student.evaluate(update.parameters)["accuracy"] > 0.85
    z = student.answer(update.parameters, digits.x_test)
    assert z.shape == (len(digits.x_test), 10)
    assert z.dtype == np.float32
    right = np.mean(z.argmax(axis=1) == digits.y_test)
    assert right == pytest.approx(student.evaluate(update.parameters)["accuracy"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_lesson_repeats_with_the_rng_and_not_without(kind: str, digits: Any, teacher: Any) -> None:
    x, p, _ = teacher
    runs = []
    for seed in (1, 1, 2):
        student = _make(kind, digits)
        runs.append(student.distill(student.parameters(), x[:100], p[:100], _rng(seed)).parameters.tobytes())
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_without_weight_the_teacher_is_not_heard_and_the_labels_are(
    kind: str, digits: Any, teacher: Any
) -> None:
    x, p, y = teacher
    student = _make(kind, digits)
    wrong = np.roll(p, 1, axis=1)
    update = student.distill(student.parameters(), x, wrong, _rng(), epochs=8, batch=32, alpha=0.0, labels=y)
    assert student.evaluate(update.parameters)["accuracy"] > 0.85
    silent = student.distill(student.parameters(), x, wrong, _rng(), alpha=0.0).parameters
    assert silent.tobytes() == update.parameters.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_beliefs_that_are_no_probabilities_are_refused(kind: str, digits: Any, teacher: Any) -> None:
    x, p, _ = teacher
    student = _make(kind, digits)
    for wrong in (p[:5], -p):
        with pytest.raises(LearnerError, match="targets"):
            student.distill(student.parameters(), x, wrong, _rng())
    with pytest.raises(LearnerError, match=r"9|classes"):
        student.distill(student.parameters(), x, np.full((600, 9), 1 / 9), _rng())


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_a_site_that_is_told_to_stop_gives_what_it_has(kind: str, digits: Any, teacher: Any) -> None:
    x, p, _ = teacher
    student = _make(kind, digits)
    student.should_stop = lambda: True
    update = student.distill(student.parameters(), x, p, _rng())
    assert update.samples == 0
    assert update.metrics == {}


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_the_last_layer_of_the_embedding_is_the_answer(kind: str, digits: Any) -> None:
    learner = _make(kind, digits)
    parameters = learner.parameters()
    f = learner.features(parameters, digits.x_test)
    h = f.shape[1]
    # The vector ends with the last layer's weights (10, h) and biases (10,).
    W, b = parameters[-10 * h - 10 : -10].reshape(10, h), parameters[-10:]
    np.testing.assert_allclose(f @ W.T + b, learner.answer(parameters, digits.x_test), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_prototypes_draw_the_embedding_of_known_classes_near(kind: str, digits: Any) -> None:
    known = np.arange(10) < 5
    gaps = {}
    for weight in (0.0, 20.0):
        learner = _make(kind, digits)
        learner.local_steps = 60
        start = learner.parameters()
        y, h = digits.y_train, learner.features(start, digits.x_train).shape[1]
        goals = _rng(1).uniform(0, 2, size=(10, h))
        update = learner.fit_near(start, _rng(), goals, known, weight)
        gap = (((learner.features(update.parameters, digits.x_train)) - goals[y]) ** 2).mean(axis=1)
        gaps[weight] = gap[y < 5].mean(), gap[y >= 5].mean()
        if weight == 0:
            assert learner.fit(start, _rng()).parameters == pytest.approx(update.parameters, abs=1e-4)
    assert gaps[20.0][0] < gaps[0.0][0] / 2
    assert gaps[20.0][1] > gaps[20.0][0] * 1.2


def test_both_perceptrons_are_drawn_by_the_same_force(digits: Any) -> None:
    ours = NumpyLearner(digits, model=MLP, local_steps=3, batch_size=2000)
    net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10))
    x, y = torch.from_numpy(digits.x_train.copy()), torch.from_numpy(digits.y_train.copy())
    theirs = TorchLearner(
        net,
        TensorBatches(x, y, 2000, shuffle=False),
        [],
        nn.functional.cross_entropy,
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        local_steps=3,
    )
    start, goals = ours.parameters(), _rng(1).normal(size=(10, 12)).astype(np.float32)
    known = np.arange(10) % 2 == 0
    a = ours.fit_near(start, _rng(), goals, known, 5.0)
    b = theirs.fit_near(start, _rng(), goals, known, 5.0)
    np.testing.assert_allclose(a.parameters, b.parameters, atol=2e-5)
    assert a.metrics["train_loss"] == pytest.approx(b.metrics["train_loss"], rel=1e-4)
    p = np.exp(log_softmax(_rng(2).normal(size=(len(x), 10))))
    lesson: Any = {"epochs": 3, "batch": 2000, "alpha": 0.5, "labels": digits.y_train}
    a = ours.distill(start, digits.x_train, p, _rng(), **lesson)
    b = theirs.distill(start, digits.x_train, p, _rng(), **lesson)
    np.testing.assert_allclose(a.parameters, b.parameters, atol=2e-5)


def test_two_classes_with_one_logit_learn_from_two_columns() -> None:
    cancer = load("sklearn:breast_cancer")
    learner = NumpyLearner(cancer, standardise="site")
    p = np.eye(2)[cancer.y_train] * 0.9 + 0.05
    update = learner.distill(learner.parameters(), cancer.x_train, p, _rng(), epochs=5)
    z = learner.answer(update.parameters, cancer.x_test)
    assert not z[:, 0].any()
    assert np.mean(z.argmax(axis=1) == cancer.y_test) > 0.93


def test_prototypes_of_another_size_and_models_without_an_embedding_are_refused(digits: Any) -> None:
    for kind in ("mlp", "cnn"):
        learner = _make(kind, digits)
        with pytest.raises(LearnerError, match="embeddings of one size"):
            learner.fit_near(learner.parameters(), _rng(), np.zeros((10, 7)), np.ones(10, bool), 1.0)
    logistic = _make("logistic", digits)
    with pytest.raises(LearnerError, match="no hidden layer"):
        logistic.features(logistic.parameters(), digits.x_test)


def test_a_module_names_its_embedding_and_its_own_distillation_loss(digits: Any) -> None:
    net = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    x, y = torch.from_numpy(digits.x_train.copy()), torch.from_numpy(digits.y_train.copy())
    seen = []

    def squared(z: Any, p: Any, temperature: float) -> Any:
        seen.append(temperature)
        return ((z.softmax(dim=1) - p) ** 2).sum()

    def make(**options: Any) -> Any:
        return TorchLearner(
            net,
            TensorBatches(x, y, 64, shuffle=True),
            [],
            nn.functional.cross_entropy,
            lambda parameters: torch.optim.SGD(parameters, lr=0.1),
            lesson=squared,
            **options,
        )

    first = make(embedding="0")
    np.testing.assert_array_equal(first.features(first.parameters(), digits.x_test), digits.x_test)
    first.distill(first.parameters(), digits.x_train[:64], np.full((64, 10), 0.1), _rng(), temperature=2.5)
    assert seen == [2.5]
    stray = make(embedding="9")
    with pytest.raises(ConfigError, match="no module '9'"):
        stray.features(stray.parameters(), digits.x_test)


def test_a_learner_with_its_own_fit_says_that_it_cannot_distil(digits: Any) -> None:
    learner = TorchLearner(nn.Linear(64, 10), [], [], fit=lambda *_: None)
    with pytest.raises(LearnerError, match="cannot distil"):
        learner.distill(learner.parameters(), digits.x_train[:1], np.full((1, 10), 0.1), _rng())
    with pytest.raises(LearnerError, match="prototypes"):
        learner.fit_near(learner.parameters(), _rng(), np.zeros((10, 64)), np.ones(10, bool), 1.0)


def test_private_rows_are_not_trained_on_without_the_noise_that_is_accounted_for(digits: Any) -> None:
    learner = _make("cnn", digits)
    learner.dp_sgd = DpSgd(clip=1.0, noise_multiplier=1.0)
    x, p = digits.x_train[:20], np.full((20, 10), 0.1)
    with pytest.raises(LearnerError, match="dp-sgd"):
        learner.distill(learner.parameters(), x, p, _rng(), labels=digits.y_train[:20])
    with pytest.raises(LearnerError, match="dp-sgd"):
        learner.fit_near(learner.parameters(), _rng(), np.zeros((10, 128)), np.ones(10, bool), 1.0)
    assert learner.distill(learner.parameters(), x, p, _rng()).samples == 20


def test_a_diverging_lesson_leaves_what_is_private_as_it_was(digits: Any) -> None:
    learner = NumpyLearner(digits, model=MLP, optimizer=OptimizerOptions(lr=1e38), share=("layer1*",))
    before = learner.state()
    with pytest.raises(LearnerError, match="diverged"):
        learner.distill(
            learner.parameters(), digits.x_train, np.full((len(digits.x_train), 10), 0.1), _rng(), epochs=5
        )
    assert learner.state() == before


def test_estimators_without_classes_or_partial_fit_say_so(digits: Any) -> None:
    regressor = _sklearn(SGDRegressor(), digits)
    with pytest.raises(LearnerError, match="no classes"):
        regressor.answer(regressor.parameters(), digits.x_test)
    whole = _sklearn(LogisticRegression(warm_start=True), digits)
    p = np.full((len(digits.x_train), 10), 0.1)
    with pytest.raises(LearnerError, match="partial_fit"):
        whole.distill(whole.parameters(), digits.x_train, p, _rng())


def test_probabilities_become_logarithms_that_are_never_below_twenty(digits: Any) -> None:
    learner = _sklearn(SGDClassifier(loss="log_loss"), digits)
    z = learner.answer(learner.parameters() + 0.0, digits.x_test)
    np.testing.assert_allclose(z, np.log(0.1), rtol=1e-5)
    sure = np.where(np.arange(650) < 64, 1e3, -1e3).astype(np.float32)
    z = learner.answer(sure, digits.x_test)
    assert z.min() == -20
    assert z.max() == 0
