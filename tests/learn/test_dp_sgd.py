"""DP-SGD through the ordinary learners: what is released, what is refused, how rows are cut and noised."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.learn.data import load
from p2pfl.learn.factory import build, release_of, resolve
from p2pfl.learn.learner import DpSgd, Site, Update
from p2pfl.learn.options import DataOptions, LearnerOptions, ModelOptions, OptimizerOptions
from p2pfl.learn.torch_learner import TorchLearner
from p2pfl.learn.torch_models import perceptron
from p2pfl.release import Release
from p2pfl.trust.privacy import Account, epsilon_of, spend

ROWS, BATCH = 60, 12
NOISE = DpSgd(clip=0.5, noise_multiplier=1.3)


@pytest.fixture
def opacus() -> Any:
    return pytest.importorskip("opacus", reason="the extra `dp` is not installed")


def data(scale: float = 1.0) -> TensorDataset:
    x = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32) * np.float32(scale)
    return TensorDataset(torch.from_numpy(x), torch.from_numpy((x[:, 0] > 0).astype(np.int64)))


def learner(
    net: nn.Module | None = None, *, lr: float = 1.0, scale: float = 1.0, **more: Any
) -> TorchLearner:
    loader = DataLoader(data(scale), batch_size=BATCH, shuffle=True)
    if "fit" not in more:
        more |= {
            "loss": nn.functional.cross_entropy,
            "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=lr),
        }
    torch.manual_seed(0)
    return TorchLearner(net or nn.Linear(4, 2), loader, loader, **more)


def built(made: Any, dp_sgd: DpSgd | None = NOISE, steps: int = 3) -> Any:
    return build(lambda _: made, Site(local_steps=steps, dp_sgd=dp_sgd))


def test_a_fit_says_beforehand_what_it_releases(opacus: Any) -> None:
    assert release_of(built(learner())) == Release(sigma=1.3, q=BATCH / ROWS, steps=3)
    one_epoch = learner()
    one_epoch.dp_sgd = NOISE
    assert one_epoch.release() == Release(sigma=1.3, q=BATCH / ROWS, steps=5)
    assert release_of(learner()) is None


def test_epsilon_is_that_of_opacus_for_the_same_fits(opacus: Any) -> None:
    from opacus.accountants import RDPAccountant

    release = release_of(built(learner(), steps=40))
    assert release is not None
    account, theirs = Account(), RDPAccountant()
    for _ in range(10):
        account = spend(account, sigma=release.sigma, q=release.q, steps=release.steps)
        for _ in range(release.steps):
            theirs.step(noise_multiplier=NOISE.noise_multiplier, sample_rate=BATCH / ROWS)
    assert epsilon_of(account, 1e-5) == pytest.approx(theirs.get_epsilon(1e-5), abs=1e-3)


def test_no_row_moves_a_step_by_more_than_its_share(opacus: Any) -> None:
    # Almost no noise and huge rows: each sampled row gives a gradient of norm `clip`, divided by the batch.
    one = built(learner(scale=1e4), DpSgd(clip=0.5, noise_multiplier=1e-6), steps=1)
    start = one.parameters()
    for seed in range(5):
        update = one.fit(start, np.random.default_rng(seed))
        moved = float(np.linalg.norm(update.parameters - start))
        assert 0 < moved <= update.samples * 0.5 / BATCH * 1.001
    assert {one.fit(start, np.random.default_rng(s)).samples for s in range(8)} > {BATCH}


def test_the_noise_has_the_stated_deviation(opacus: Any) -> None:
    wide = built(learner(nn.Linear(4, 4000), scale=0.0), DpSgd(clip=2.0, noise_multiplier=3.0), steps=1)
    start = wide.parameters()
    moved = (wide.fit(start, np.random.default_rng(0)).parameters - start)[:16_000]
    # Rows of zeros have no gradient in the weights: what is left is noise, over the expected batch.
    assert float(moved.std()) == pytest.approx(3.0 * 2.0 / BATCH, rel=0.03)


def test_a_step_that_draws_no_row_is_noise_alone(opacus: Any) -> None:
    loader = DataLoader(data(), batch_size=1)
    rare = TorchLearner(
        nn.Linear(4, 2),
        loader,
        loader,
        nn.functional.cross_entropy,
        lambda parameters: torch.optim.SGD(parameters, lr=1.0),
    )
    one = built(rare, steps=1)
    start = one.parameters()
    empty = [u for u in (one.fit(start, np.random.default_rng(s)) for s in range(12)) if u.samples == 0]
    assert empty
    for update in empty:
        assert np.all(update.parameters != start)
        assert update.metrics == {}


def test_equal_seeds_give_equal_bits_and_the_model_is_an_ordinary_one_again(opacus: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    one = built(learner(net, lr=0.1))
    start = one.parameters()
    first, again, other = (one.fit(start, np.random.default_rng(s)).parameters for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not any(hasattr(parameter, "grad_sample") for parameter in net.parameters())
    assert set(one.evaluate(first)) == {"loss", "accuracy", "auc"}


def test_momentum_that_is_kept_survives_the_wrapping(opacus: Any) -> None:
    one = learner(reset_optimizer=False)
    one = built(one)
    one.fit(one.parameters(), np.random.default_rng(0))
    other = built(learner(reset_optimizer=False))
    other.restore(one.state())
    assert other.state() == one.state()


def test_the_deadline_ends_a_fit_early(opacus: Any) -> None:
    one = build(lambda _: learner(), Site(local_steps=5, dp_sgd=NOISE, should_stop=lambda: True))
    assert one.fit(one.parameters(), np.random.default_rng(0)).samples == 0


def test_layers_that_mix_rows_are_refused(opacus: Any) -> None:
    mixing = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    with pytest.raises(ConfigError, match=r"BatchNorm.*GroupNorm"):
        built(learner(mixing))


def test_a_loader_whose_rows_cannot_be_drawn_is_refused(opacus: Any) -> None:
    batches = [(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))]
    fixed = TorchLearner(
        nn.Linear(4, 2),
        batches,
        batches,
        nn.functional.cross_entropy,
        lambda parameters: torch.optim.SGD(parameters, lr=1.0),
    )
    with pytest.raises(ConfigError, match="give a torch DataLoader"):
        built(fixed)


@pytest.mark.parametrize("kind", ["logistic", "mlp", "cnn"])
def test_built_in_models_take_part(opacus: Any, kind: Any) -> None:
    options = LearnerOptions(
        model=ModelOptions(kind=kind, hidden=(16,), channels=(4, 4)),
        optimizer=OptimizerOptions(lr=0.5, momentum=0.0),
        batch_size=128,
    )
    site = Site(
        data="sklearn:digits", local_steps=30, options=options, dp_sgd=DpSgd(clip=1.0, noise_multiplier=0.5)
    )
    one = build(resolve(options), site)
    release = release_of(one)
    assert release is not None
    assert (release.sigma, release.steps) == (0.5, 30)
    update = one.fit(one.parameters(), np.random.default_rng(0))
    assert one.evaluate(update.parameters)["accuracy"] > (0.15 if kind == "cnn" else 0.6)


def test_the_torch_perceptron_has_the_names_and_shapes_of_the_numpy_one() -> None:
    options = LearnerOptions(model=ModelOptions(kind="mlp", hidden=(8, 4)))
    numpy_one = build(resolve(options), Site(data="sklearn:digits", options=options))
    shapes = {name: tuple(t.shape) for name, t in perceptron((64, 8, 4, 10)).state_dict().items()}
    schema = numpy_one.schema()  # type: ignore[attr-defined]
    assert shapes == dict(zip(schema.names, schema.shapes, strict=True))


class Quiet:
    """A learner without noise."""

    def parameters(self) -> Any:
        return np.zeros(3, np.float32)

    def fit(self, parameters: Any, rng: np.random.Generator) -> Update:
        raise AssertionError("a learner that is refused is never fitted")

    def evaluate(self, parameters: Any) -> dict[str, float]:
        return {}


class Noisy(Quiet):
    """One that says what it releases."""

    def __init__(self, said: Any) -> None:
        self.said = said

    def release(self) -> Any:
        return self.said


def test_a_learner_without_noise_is_refused_and_one_that_says_what_it_adds_is_not() -> None:
    with pytest.raises(ConfigError, match="Quiet adds none; use a built-in model"):
        built(Quiet())
    assert release_of(built(Quiet(), None)) is None
    assert release_of(built(Noisy(Release(sigma=1.0, q=0.5, steps=9)))) == Release(sigma=1.0, q=0.5, steps=9)


@pytest.mark.parametrize("said", ["much", Release(sigma=0.0, q=1, steps=1), Release(sigma=1, q=2, steps=1)])
def test_what_is_no_release_is_an_error_of_the_learner(said: Any) -> None:
    with pytest.raises(LearnerError, match="expected Release"):
        built(Noisy(said))


def test_a_fit_of_one_s_own_is_taken_at_its_word() -> None:
    def own(model: nn.Module, train: Any) -> dict[str, float]:
        return {"steps": 7.0}

    release = Release(sigma=2.0, q=0.1, steps=7)
    assert release_of(built(learner(fit=own, release=release))) == release
    with pytest.raises(ConfigError, match="TorchLearner adds none"):
        built(learner(fit=own))


def test_without_opacus_the_cure_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(ConfigError, match=r'needs Opacus.*extra "dp"'):
        built(learner())


def test_a_built_in_model_names_its_rows_however_they_are_split() -> None:
    names = set()
    for seed, kind in ((0, "logistic"), (1, "mlp")):
        options = LearnerOptions(model=ModelOptions(kind=kind), data=DataOptions())  # type: ignore[arg-type]
        site = Site(data="sklearn:digits", seed=seed, options=options)
        one = build(resolve(options), site)
        names.add(one.data_set())  # type: ignore[attr-defined]
    assert len(names) == 1
    assert load("sklearn:digits", DataOptions(), 0).x_train.shape != (1797, 64)
