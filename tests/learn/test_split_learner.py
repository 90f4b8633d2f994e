"""An edge with a hub's model beside it: what is measured, what is kept, what is refused."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lessons import digits, done, options, shop
from torch import nn

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.events import Evaluate
from p2pfl.ids import PeerId
from p2pfl.learn.distill import log_softmax
from p2pfl.learn.jobs import Workshop
from p2pfl.learn.learner import Site
from p2pfl.learn.split_learner import SplitLearner
from p2pfl.learn.torch_learner import TorchLearner
from p2pfl.learn.torch_models import TensorBatches
from p2pfl.work import Extract, Fit, Learn, Mix, Samples

HUB = PeerId("hub")


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _torch(net: nn.Module, lr: float = 0.1, **more: Any) -> TorchLearner:
    d = digits()
    rows = [torch.from_numpy(array) for array in (d.x_train, d.y_train, d.x_test, d.y_test)]
    return TorchLearner(
        net,
        TensorBatches(rows[0], rows[1], 10, shuffle=True),
        TensorBatches(rows[2], rows[3], 100, shuffle=False),
        nn.functional.cross_entropy,
        lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9),
        **more,
    )


class Edge(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.extractor, self.head = nn.Sequential(nn.Linear(64, 6), nn.ReLU()), nn.Linear(6, classes)

    def forward(self, x: Any) -> Any:
        return self.head(self.extractor(x))


def _split(site: Site, *, lr: float = 0.1, reset: bool = True) -> SplitLearner:
    """A small edge, and a hub of capacity where the site's name says so."""
    how: dict[str, Any] = {"lr": lr, "reset_optimizer": reset, "local_steps": 6}
    return SplitLearner(
        _torch(Edge(), embedding="head", **{**how, "lr": 0.1}),
        lambda: _torch(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 10)), **how),
        capacity=1.0 if site.name == "hub" else 0.0,
        batch_size=16,
    )


def _shop(name: str, **how: Any) -> Workshop:
    return shop("hub", factory=partial(_split, **how), name=name)


def _learned(bench: Any, theta: Any, **alpha: Any) -> Any:
    x: Any = done(bench, Extract(most=60), theta).result
    features = {HUB: Samples(hidden=x.hidden, z=x.logits, labels=x.labels)}
    job = Learn(features=features, only_answer={}, **({"alpha": 1.0, "temperature": 3.0} | alpha))
    return done(bench, job, theta)


def test_the_composite_is_measured_once_a_hub_model_knows_anything() -> None:
    hub, edge = _shop("hub"), _shop("edge")
    theta = done(hub, Fit(), hub.ready().parameters).parameters
    assert theta is not None
    evaluate = Evaluate(round=0, parameters=theta)
    for bench in (hub, edge):
        assert bench.evaluate(evaluate).metrics.keys() == {"loss", "accuracy"}
    learned = _learned(hub, theta)
    assert learned.result.model.shape == (hub.learner.expected().model_values,)  # type: ignore[attr-defined]
    measured = hub.evaluate(evaluate).metrics
    assert measured.keys() == {"loss", "accuracy", "hub_loss", "hub_accuracy"}
    assert edge.evaluate(evaluate).metrics.keys() == {"loss", "accuracy"}
    done(edge, Mix(models={HUB: learned.result.model}, is_adopted=True), theta)
    assert edge.evaluate(evaluate).metrics == measured
    x, learner = digits().x_test, edge.learner
    predicted = learner.predict(x).argmax(axis=1)  # type: ignore[attr-defined]
    assert np.mean(predicted == digits().y_test) == pytest.approx(measured["hub_accuracy"])


def test_a_hub_that_learns_more_is_right_more_often() -> None:
    hub = _shop("hub")
    theta = done(hub, Fit(), hub.ready().parameters).parameters
    losses = [_learned(hub, theta).metrics["hub_train_loss"] for _ in range(3)]
    assert losses == sorted(losses, reverse=True)


def test_the_hubs_model_survives_a_restart_and_so_does_that_it_was_delivered() -> None:
    hub = _shop("hub", reset=False)
    theta = done(hub, Fit(), hub.ready().parameters).parameters
    learned = _learned(hub, theta)
    edge = _shop("edge", reset=False)
    adopted = done(edge, Mix(models={HUB: learned.result.model}, is_adopted=True), theta)
    for role, state in (("hub", learned.learner_state), ("edge", adopted.learner_state)):
        again: Any = _shop(role, reset=False)
        again.learner.restore(state)
        assert again.learner.holds_hub_model
        np.testing.assert_array_equal(again.learner.hub_model(), learned.result.model)
    again = _shop("hub", reset=False)
    again.learner.restore(learned.learner_state)
    # Momentum of hub and edge came along: the next step is the one that would have been.
    assert _learned(again, theta).metrics == _learned(hub, theta).metrics
    fits = [done(bench, Fit(), theta, 5).parameters for bench in (again, hub)]
    np.testing.assert_array_equal(*fits)  # type: ignore[arg-type]


def test_two_hubs_that_learn_the_same_have_the_same_model_bit_for_bit() -> None:
    models = []
    for _ in range(2):
        hub = _shop("hub")
        theta = done(hub, Fit(), hub.ready().parameters).parameters
        models.append(_learned(hub, theta).result.model)
    np.testing.assert_array_equal(*models)


def test_a_hub_learns_what_another_believes_of_rows_whose_classes_nobody_knows() -> None:
    site = Site(options=options(), dataset=digits(), role="hub")
    teacher, pupil = _split(site), _split(site)
    rng, x = np.random.default_rng(0), digits(120, first=200).x_train
    edge = teacher.parameters()
    hidden = teacher.features(edge, x)
    labels = digits(120, first=200).y_train
    teacher.learn(hidden, labels, np.full((120, 10), 0.1), rng, alpha=0.0, temperature=1.0)
    p = np.exp(log_softmax(teacher.hub_answer(hidden)))
    before = np.abs(np.exp(log_softmax(pupil.hub_answer(hidden))) - p).sum(axis=1).mean()
    pupil.hub_distill(hidden, p, rng, epochs=20, temperature=1.0)
    after = np.abs(np.exp(log_softmax(pupil.hub_answer(hidden))) - p).sum(axis=1).mean()
    assert after < before / 2
    assert pupil.holds_hub_model


def test_a_lesson_that_fails_leaves_the_hub_as_it_was() -> None:
    hub: Any = _shop("hub", lr=1e30)
    before = hub.learner.hub_model()
    x = hub.learner.features(hub.ready().parameters, digits().x_train)
    with pytest.raises(LearnerError, match="diverged"):
        hub.learner.learn(x, digits().y_train, np.full((60, 10), 0.1), np.random.default_rng(0))
    np.testing.assert_array_equal(hub.learner.hub_model(), before)
    assert not hub.learner.holds_hub_model


@pytest.mark.slow
def test_the_built_in_models_of_fedgkt_make_a_hub_run() -> None:
    chosen = options(
        model={"kind": "gkt"},
        optimizer={"lr": 0.02},
        roles={"hub": {"capacity": 1.0, "hub_epochs": 1}, "edge": {}},
    )
    hub, edge = shop("hub", chosen, role="hub"), shop("hub", chosen, role="edge")
    theta = done(hub, Fit(), hub.ready().parameters).parameters
    learned = _learned(hub, theta)
    assert learned.result.model.shape == (693_898,)
    done(edge, Mix(models={HUB: learned.result.model}, is_adopted=True), theta)
    job = Evaluate(round=0, parameters=theta)  # type: ignore[arg-type]
    assert edge.evaluate(job).metrics == hub.evaluate(job).metrics


def test_what_cannot_be_a_split_is_refused_when_it_is_built() -> None:
    with pytest.raises(ConfigError, match="no hub model"):
        SplitLearner(_torch(Edge(), embedding="head"), capacity=1.0)
    with pytest.raises(ConfigError, match=r"begins with 'extractor\.'"):
        SplitLearner(_torch(nn.Sequential(nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))))
    with pytest.raises(ConfigError, match="does not give 10 classes"):
        SplitLearner(_torch(Edge(), embedding="head"), lambda: _torch(nn.Linear(6, 9)))
    without = SplitLearner(_torch(Edge(), embedding="head"))
    assert without.expected().model_values == 0
    with pytest.raises(LearnerError, match="no hub model"):
        without.hub_model()
    with pytest.raises(LearnerError, match="no edge and hub"):
        without.restore(_saved())
    hub: Any = _shop("hub").learner
    with pytest.raises(LearnerError, match="all hubs run the same model"):
        hub.adopt_hub_model(np.zeros(3, np.float32))
    with pytest.raises(LearnerError, match="standardise"):
        shop("hub", options(model={"kind": "gkt"}, standardise="site"))


def _saved() -> bytes:
    from safetensors.numpy import save

    state: bytes = save({"other": np.zeros(1)})
    return state
