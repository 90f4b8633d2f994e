"""Torch learners fitted together get what each gets alone; those that could not are told apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from p2pfl.errors import LearnerError
from p2pfl.learn.data import Dataset
from p2pfl.learn.options import ModelOptions, OptimizerOptions
from p2pfl.learn.torch_learner import TorchLearner
from p2pfl.learn.torch_models import module_learner
from p2pfl.learn.torch_stack import TorchStack, kinship


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)


def _learner(
    site: int, model: nn.Module | None = None, optimizer: Any = _sgd, **options: Any
) -> TorchLearner:
    """A site with 20 rows in batches of 8, the last of 4."""
    rng = np.random.default_rng(site)
    x = rng.normal(size=(20, 6)).astype(np.float32)
    y = (np.abs(x[:, 0]) * 2).astype(np.int64) % 3
    rows = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    options = {"local_steps": 5, "schedule": lambda p: 1 - p / 2, **options}
    loader: Any = DataLoader(rows, batch_size=8, shuffle=True)
    return TorchLearner(
        _mlp() if model is None else model,
        loader,
        DataLoader(rows, batch_size=20),
        options.pop("loss", nn.functional.cross_entropy),
        optimizer,
        **options,
    )


def _alone(learner: TorchLearner, start: Any, seed: int, progress: float) -> Any:
    learner.progress = lambda: progress
    return learner.fit(start, np.random.default_rng(seed))


def test_perceptrons_end_where_they_end_alone() -> None:
    together, alone = TorchStack([_learner(i) for i in range(5)]), [_learner(i) for i in range(5)]
    models = np.stack([learner.parameters() for learner in alone])
    models += np.random.default_rng(9).normal(scale=0.1, size=models.shape).astype(np.float32)
    for number, progress in enumerate((0.0, 0.5)):
        rngs = [np.random.default_rng(10 * number + i) for i in range(5)]
        ended, losses = together.fit(models, rngs, progress)
        updates = [_alone(one, models[i], 10 * number + i, progress) for i, one in enumerate(alone)]
        for i, update in enumerate(updates):
            np.testing.assert_allclose(ended[i], update.parameters, rtol=0, atol=1e-6)
            assert losses[i] == pytest.approx(update.metrics["train_loss"], abs=1e-6)
        models = ended


def test_batches_of_other_sizes_are_fitted_beside_each_other() -> None:
    few: Any = _learner(1)
    few._train = DataLoader(few._train.dataset, batch_size=3, shuffle=True)
    sites = [_learner(0), few, _learner(2)]
    start = np.stack([site.parameters() for site in sites])
    ended, _ = TorchStack(sites).fit(start, [np.random.default_rng(i) for i in range(3)], 0.0)
    for i, site in enumerate(sites):
        alone = _alone(site, start[i], i, 0.0).parameters
        np.testing.assert_allclose(ended[i], alone, rtol=0, atol=1e-6)


def test_a_convolutional_network_ends_within_a_ten_thousandth() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 64)).astype(np.float32), np.arange(30, dtype=np.int64) % 3

    def site(i: int) -> TorchLearner:
        rows = Dataset(x_train=x[i::3], y_train=y[i::3], x_test=x, y_test=y, n_classes=3)
        options = OptimizerOptions(lr=0.05)
        model = ModelOptions(kind="cnn", channels=(4, 8))
        return module_learner(rows, model=model, optimizer=options, local_steps=4, batch_size=5)

    sites = [site(i) for i in range(3)]
    start = np.stack([one.parameters() for one in sites])
    ended, _ = TorchStack(sites).fit(start, [np.random.default_rng(i) for i in range(3)], 0.0)
    for i, one in enumerate(sites):
        alone = _alone(one, start[i], i, 0.0).parameters
        assert np.abs(alone - start[i]).max() > 1e-2
        np.testing.assert_allclose(ended[i], alone, rtol=0, atol=1e-4)


def test_layers_that_do_not_train_stay_each_site_s_own() -> None:
    model = _mlp()
    model[0].weight.requires_grad_(False)  # type: ignore[index]
    sites = [_learner(i, model) for i in range(2)]
    start = np.stack([sites[0].parameters(), sites[0].parameters() + 1])
    ended, _ = TorchStack(sites).fit(start, [np.random.default_rng(i) for i in range(2)], 0.0)
    np.testing.assert_array_equal(ended[:, :48], start[:, :48])
    assert (ended[:, 48:] != start[:, 48:]).mean() > 0.9


def test_nothing_is_kept_between_fits() -> None:
    stack = TorchStack([_learner(0), _learner(1)])
    assert stack.state() == b""
    stack.restore(b"")
    with pytest.raises(LearnerError, match="and these do not"):
        stack.restore(b"momentum")


def test_a_site_that_diverges_has_its_own_parameters_back() -> None:
    sites = [_learner(i) for i in range(2)]
    start = np.stack([site.parameters() for site in sites])
    start[1, 0] = 1e30
    ended, losses = TorchStack(sites).fit(start, [np.random.default_rng(i) for i in range(2)], 0.0)
    assert ended[1].tobytes() == start[1].tobytes()
    assert np.isnan(losses[1])
    assert np.isfinite(ended[0]).all()
    assert ended[0].tobytes() != start[0].tobytes()


@pytest.mark.parametrize(
    ("learner", "reason"),
    [
        (_learner(0, nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))), "buffers, such as batch"),
        (_learner(0, optimizer=lambda p: torch.optim.Adam(p)), "not plain SGD but Adam"),
        (_learner(0, optimizer=lambda p: torch.optim.SGD(p, lr=1, momentum=0.5, nesterov=True)), "nesterov"),
        (_learner(0, share=("0.*",)), "not shared"),
        (_learner(0, reset_optimizer=False), "keeps its optimizer"),
        (_learner(0, _mlp().double()), "not float32"),
        (_learner(0, local_steps=None), "does not say its local steps"),
    ],
)
def test_what_has_a_state_of_its_own_is_no_kin(learner: TorchLearner, reason: str) -> None:
    with pytest.raises(LearnerError, match=reason):
        kinship(learner)


def test_kin_have_the_same_shapes_steps_and_optimizer() -> None:
    assert kinship(_learner(0)) == kinship(_learner(1))
    for other in (
        _learner(1, nn.Linear(6, 3)),
        _learner(1, local_steps=6),
        _learner(1, schedule=None),
        _learner(1, optimizer=lambda p: torch.optim.SGD(p, lr=0.2)),
    ):
        assert kinship(_learner(0)) != kinship(other)


class _Scaled(nn.Module):
    """A module whose sites differ by what no parameter shows."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.factor = nn.Linear(6, 3), factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.factor * self.linear(x)  # type: ignore[no-any-return]


def test_a_site_whose_module_or_loss_is_another_is_found_out() -> None:
    def smoothed(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(z, y, label_smoothing=0.1)

    sites = [
        _learner(0, _Scaled(1.0)),
        _learner(1, _Scaled(1.0)),
        _learner(2, _Scaled(2.0)),
        _learner(3, _Scaled(1.0), loss=smoothed),
    ]
    stack = TorchStack(sites)
    assert [stack.agrees(i) for i in range(4)] == [True, True, False, False]


class _Deciding(nn.Module):
    """A module whose course depends on its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        z: torch.Tensor = self.linear(x)
        return z if bool(z.sum() > 0) else -z


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)), _Deciding()])
def test_what_draws_or_decides_cannot_be_called_for_many_at_once(model: nn.Module) -> None:
    with pytest.raises(LearnerError, match="cannot be called for many sites at once: "):
        TorchStack([_learner(0, model)])
