"""A private model and its proxy teach each other; only the proxy is anybody's business."""

from typing import Any

import numpy as np
import pytest
import torch
from lessons import digits, done, options, shop
from sklearn.linear_model import LogisticRegression, SGDClassifier, SGDRegressor
from torch import nn

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.events import Evaluate
from p2pfl.knowledge.proxy import check_travelling
from p2pfl.learn.numpy_learner import NumpyLearner
from p2pfl.learn.options import ModelOptions
from p2pfl.learn.proxy_learner import ProxyLearner
from p2pfl.learn.sklearn_learner import SklearnLearner
from p2pfl.learn.torch_learner import TorchLearner
from p2pfl.learn.torch_models import module_learner
from p2pfl.work import Fit, Mutual

MUTUAL = Mutual(alpha=0.5, beta=0.5, temperature=1.0)
NUMPY = options(model={"kind": "mlp"}, proxy={"kind": "logistic"}, local_steps=40)
TORCH = options(
    model={"kind": "cnn", "channels": [8, 16]},
    proxy={"kind": "cnn", "channels": [8, 8]},
    optimizer={"lr": 0.1},
    local_steps=60,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("chosen", [NUMPY, TORCH])
def test_both_learn_and_only_the_proxy_is_in_the_vector(chosen: Any) -> None:
    bench = shop("proxy", chosen)
    ready = bench.ready()
    assert ready.schema is not None
    check_travelling(ready.schema.names)
    evaluate = Evaluate(round=0, parameters=ready.parameters)
    before = bench.evaluate(evaluate).metrics
    worked = done(bench, Fit(mutual=MUTUAL), ready.parameters)
    assert worked.parameters is not None
    assert worked.parameters.shape == ready.parameters.shape
    after = bench.evaluate(Evaluate(round=0, parameters=worked.parameters)).metrics
    assert {"accuracy", "proxy_accuracy", "loss", "proxy_loss"} <= after.keys()
    assert after["accuracy"] > before["accuracy"] + 0.2
    assert after["proxy_accuracy"] > before["proxy_accuracy"] + 0.2


@pytest.mark.parametrize("chosen", [NUMPY, TORCH])
def test_the_private_model_is_learner_state_and_comes_back_after_a_crash(chosen: Any) -> None:
    bench = shop("proxy", chosen)
    first = done(bench, Fit(mutual=MUTUAL), bench.ready().parameters)
    again = shop("proxy", chosen)
    again.learner.restore(first.learner_state)  # type: ignore[attr-defined]
    job = Evaluate(round=0, parameters=first.parameters)  # type: ignore[arg-type]
    assert again.evaluate(job).metrics == bench.evaluate(job).metrics
    fits = [done(shop_, Fit(mutual=MUTUAL), first.parameters, 2).parameters for shop_ in (bench, again)]
    np.testing.assert_array_equal(*fits)  # type: ignore[arg-type]
    with pytest.raises(LearnerError, match="another private model"):
        shop(
            "proxy", options(model={"kind": "mlp", "hidden": [3]}, proxy={"kind": "logistic"})
        ).learner.restore(  # type: ignore[attr-defined]
            first.learner_state
        )


def _two_heads() -> Any:
    d = digits()
    return [
        module_learner(d, model=ModelOptions(kind="mlp", hidden=(h,)), local_steps=1, seed=h) for h in (8, 4)
    ]


def test_a_step_of_two_torch_models_is_that_of_the_equations() -> None:
    private, proxy = _two_heads()
    learner = ProxyLearner(private, proxy, batch_size=60)
    nets = [nn.Sequential(nn.Linear(64, h), nn.ReLU(), nn.Linear(h, 10)) for h in (8, 4)]
    for net, model in zip(nets, (private, proxy), strict=True):
        torch.nn.utils.vector_to_parameters(torch.from_numpy(model.parameters()), net.parameters())
    alpha, beta, T = 0.3, 0.6, 2.0
    found = learner.fit_mutual(
        proxy.parameters(), np.random.default_rng(0), alpha=alpha, beta=beta, temperature=T
    )
    d = digits()
    x, y = torch.from_numpy(d.x_train), torch.from_numpy(d.y_train)
    large, small = (net(x) for net in nets)

    def loss(z: Any, other: Any, weight: float) -> Any:
        log_q, p = torch.log_softmax(z / T, dim=1), torch.softmax(other.detach() / T, dim=1)
        kl = (p * (p.log() - log_q)).sum(dim=1).mean()
        return (1 - weight) * nn.functional.cross_entropy(z, y) + weight * T**2 * kl

    losses = loss(large, small, beta), loss(small, large, alpha)
    sum(losses).backward()
    stepped = [
        torch.nn.utils.parameters_to_vector([p - 0.1 * p.grad for p in net.parameters()]).detach().numpy()  # type: ignore[operator]
        for net in nets
    ]
    np.testing.assert_allclose(found.parameters, stepped[1], atol=2e-6)
    np.testing.assert_allclose(learner._theta, stepped[0], atol=2e-6)
    assert found.metrics["train_loss"] == pytest.approx(float(losses[0].detach()), rel=1e-5)
    assert found.metrics["proxy_train_loss"] == pytest.approx(float(losses[1].detach()), rel=1e-5)


def test_a_tree_of_other_frameworks_can_be_private() -> None:
    d = digits()
    private = SklearnLearner(
        SGDClassifier(loss="log_loss"), d.x_train, d.y_train, d.x_test, d.y_test, range(10)
    )
    proxy = NumpyLearner(d, local_steps=40)
    learner = ProxyLearner(private, proxy, batch_size=10)
    assert learner.local_steps == 40
    found = learner.fit(learner.parameters(), np.random.default_rng(0))
    measured = learner.evaluate(found.parameters)
    assert measured["accuracy"] > 0.5
    assert measured["proxy_accuracy"] > 0.5
    assert learner.answer(found.parameters, d.x_test).shape == (50, 10)
    assert np.mean(learner.predict(d.x_test) == d.y_test) == pytest.approx(measured["accuracy"])


def test_with_all_weight_on_the_other_labels_are_not_heard() -> None:
    d = digits()
    learner = ProxyLearner(NumpyLearner(d, seed=1), NumpyLearner(d, seed=1, local_steps=8), batch_size=10)
    start = learner.parameters()
    # Both believe the same of every row: without labels there is nothing to learn.
    found = learner.fit_mutual(start, np.random.default_rng(0), alpha=1.0, beta=1.0, temperature=1.0)
    np.testing.assert_allclose(found.parameters, start, atol=1e-6)


def test_when_one_of_the_two_fails_both_are_as_before() -> None:
    wild = options(model={"kind": "mlp"}, proxy={"kind": "logistic"}, optimizer={"lr": 1e38}, local_steps=20)
    bench: Any = shop("proxy", wild)
    before = bench.learner.state()
    with pytest.raises(LearnerError, match="diverged"):
        bench.learner.fit(bench.ready().parameters, np.random.default_rng(0))
    assert bench.learner.state() == before


def test_models_that_cannot_teach_each_other_are_refused() -> None:
    d = digits()
    good = NumpyLearner(d)
    rows = d.x_train, d.y_train, d.x_test, d.y_test
    with pytest.raises(ConfigError, match="has no answer"):
        ProxyLearner(_Bare(), good)
    with pytest.raises(ConfigError, match="does not name its tensors"):
        ProxyLearner(good, _Nameless())
    regressor = ProxyLearner(SklearnLearner(SGDRegressor(), *rows), good)
    with pytest.raises(LearnerError, match="no classes"):
        regressor.fit(good.parameters(), np.random.default_rng(0))
    whole = ProxyLearner(SklearnLearner(LogisticRegression(warm_start=True), *rows), good)
    with pytest.raises(LearnerError, match="partial_fit"):
        whole.fit(good.parameters(), np.random.default_rng(0))
    own = TorchLearner(nn.Linear(64, 10), [], [], fit=lambda *_: None)
    with pytest.raises(LearnerError):
        ProxyLearner(own, good).fit(good.parameters(), np.random.default_rng(0))
    for wrong in (
        options(model={"kind": "gkt"}, proxy={"kind": "mlp"}),
        options(module="mine:learner", model=None, proxy={"kind": "mlp"}),
    ):
        with pytest.raises(ConfigError, match=r"learner\.proxy"):
            shop("proxy", wrong)


class _Bare:
    def parameters(self) -> Any:
        return np.zeros(2, np.float32)

    def fit(self, parameters: Any, rng: Any) -> Any:
        return parameters

    def evaluate(self, parameters: Any) -> Any:
        return {}


class _Nameless(_Bare):
    def answer(self, parameters: Any, x: Any) -> Any:
        return np.zeros((len(x), 2))

    def distill(self, parameters: Any, x: Any, targets: Any, rng: Any, **how: Any) -> Any:
        return parameters
