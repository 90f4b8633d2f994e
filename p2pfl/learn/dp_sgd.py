"""Stochastic gradient descent that protects single rows, by Opacus.

Each step takes every row with the same probability, independently of the others (Poisson sampling), cuts
the gradient of each row to a norm, adds Gaussian noise to their sum, and divides by the expected number of
rows.  Draws come from torch's global generator, which `fit` seeds; Opacus calls that its mode without secure
random numbers.
Source: Abadi et al. 2016, arXiv:1607.00133, algorithm 1; sampling and amplification: Mironov, Talwar, Zhang
2019, arXiv:1908.10530.
"""

import math
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.learn.learner import DpSgd
from p2pfl.release import Release

__all__ = ["descend", "release"]


def release(model: nn.Module, train: Any, dp_sgd: DpSgd, steps: int | None) -> Release:
    """What `descend` releases.   steps: None is one epoch.

    Raises ConfigError when Opacus is missing, the model has layers that mix rows (BatchNorm) or gives no
    gradient a row, or `train` says neither how many rows there are nor how large a batch is.
    """
    opacus = _opacus()
    before = model.training
    model.train()
    problems = [
        *opacus.validators.ModuleValidator.validate(model, strict=False),
        *opacus.GradSampleModule.validate(model, strict=False),
    ]
    model.train(before)
    if problems:
        raise ConfigError(
            f'trust.privacy "dp-sgd" cannot protect rows in this model: {" ".join(str(problems[0]).split())};'
            " use GroupNorm in place of BatchNorm, or another layer"
        )
    rows, size = _rows_and_size(train)
    return Release(
        sigma=dp_sgd.noise_multiplier,
        q=min(1.0, size / rows),
        steps=math.ceil(rows / size) if steps is None else steps,
    )


def descend(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    train: Any,
    *,
    dp_sgd: DpSgd,
    steps: int | None,
    should_stop: Callable[[], bool],
) -> tuple[int, dict[str, float]]:
    """`steps` steps on `model`, None: one epoch; rows seen and their mean loss, which stays at this site.

    loss: a mean over the rows of a batch, to which each row contributes by itself alone.
    """
    opacus = _opacus()
    promised = release(model, train, dp_sgd, steps)
    rows, size = _rows_and_size(train)
    collate = getattr(train, "collate_fn", None) or torch.utils.data.default_collate
    device = next(model.parameters()).device
    wrapped = opacus.GradSampleModule(model, loss_reduction="mean")
    noisy = opacus.optimizers.DPOptimizer(
        optimizer,
        noise_multiplier=dp_sgd.noise_multiplier,
        max_grad_norm=dp_sgd.clip,
        expected_batch_size=min(rows, size),
        loss_reduction="mean",
    )
    seen, total = 0, 0.0
    with warnings.catch_warnings(), ExitStack() as afterwards:
        afterwards.callback(wrapped.to_standard_module)
        afterwards.callback(noisy.zero_grad)
        # Opacus hooks the first layer, too, whose inputs need no gradient; torch remarks on that.
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        for _ in range(promised.steps):
            if should_stop():
                break
            noisy.zero_grad()
            chosen = torch.nonzero(torch.rand(rows) < promised.q).flatten().tolist()
            if chosen:
                inputs, targets = collate([train.dataset[row] for row in chosen])
                value = loss(wrapped(inputs.to(device)), targets.to(device))
                value.backward()  # type: ignore[no-untyped-call]
                seen, total = seen + len(chosen), total + float(value.detach()) * len(chosen)
            else:
                # That no row was drawn is not to show: a step of noise alone.
                for parameter in noisy.params:
                    parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
            noisy.step()
    return seen, {"train_loss": total / seen} if seen else {}


def _rows_and_size(train: Any) -> tuple[int, int]:
    dataset: Any = getattr(train, "dataset", None)
    size = getattr(train, "batch_size", None)
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and size):
        raise ConfigError(
            'trust.privacy "dp-sgd" draws the rows of each step itself, and the training loader has no'
            " dataset of a known length, or no batch_size; give a torch DataLoader over such a dataset"
        )
    if not len(dataset):
        raise LearnerError("there are no training rows; check the site's data source")
    return len(dataset), int(size)


def _opacus() -> Any:
    """The library, which only this kind of privacy needs.  Raises ConfigError with the cure."""
    try:
        import opacus
        import opacus.optimizers
        import opacus.validators
    except ImportError as error:
        raise ConfigError(
            'trust.privacy "dp-sgd" needs Opacus, which is not installed here; install p2pfl-node with its'
            ' extra "dp", or opacus beside it'
        ) from error
    return opacus
