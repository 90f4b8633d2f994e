"""Steps of a torch optimizer: over a user's loader, or over rows of arrays with a teacher beside them.

`n` rows, `b` of them a batch, `K` classes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p2pfl.errors import LearnerError

__all__ = ["Taught", "TaughtCriterion", "descend", "passes", "still", "study"]

# The loss of a batch: inputs, a teacher's probabilities (b, K) where there is one, classes where known.
TaughtCriterion = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """Raw rows (n, ...), a teacher's p (n, K), classes (n,), and the rows of each step, (steps, b)."""

    x: NDArray[Any]
    p: NDArray[np.floating] | None
    labels: NDArray[np.int64] | None
    order: NDArray[np.int64]


def passes(train: Any, steps: int | None, should_stop: Callable[[], bool]) -> Iterator[tuple[Any, Any]]:
    """`steps` batches (inputs, targets), through the loader again and again; None is one pass.

    Ends early when `should_stop`.  Raises LearnerError when the loader gives nothing.
    """
    left = steps
    while True:
        found = False
        for inputs, targets in train:
            found = True
            if should_stop():
                return
            yield inputs, targets
            if left is not None:
                left -= 1
                if left <= 0:
                    return
        if not found:
            raise LearnerError("the training loader gave no batch; check the site's data and drop_last")
        if left is None:
            return


def descend(
    criterion: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[Any, Any]],
    to_device: Callable[[Any], Any],
) -> tuple[int, dict[str, float]]:
    """A step of `optimizer` for each batch.   returns: the rows seen, and `train_loss`, their mean."""
    samples, total = 0, 0.0
    for inputs, targets in batches:
        inputs, targets = to_device(inputs), to_device(targets)
        optimizer.zero_grad()
        loss = criterion(inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        samples += len(targets)
        total += float(loss.detach()) * len(targets)
    return samples, {"train_loss": total / samples} if samples else {}


def study(
    criterion: TaughtCriterion,
    optimizer: torch.optim.Optimizer,
    rows: Taught,
    inputs_of: Callable[[NDArray[Any]], Tensor],
    to_device: Callable[[Any], Any],
    should_stop: Callable[[], bool],
    name: str,
) -> tuple[int, dict[str, float]]:
    """Steps of `optimizer` over `rows`, until `should_stop`.

    inputs_of: from raw rows to what the model takes.   returns: the rows seen, and their mean loss as `name`.
    """
    inputs = inputs_of(rows.x)
    p = None if rows.p is None else to_device(torch.from_numpy(np.array(rows.p, np.float32)))
    labels = None if rows.labels is None else to_device(torch.from_numpy(np.array(rows.labels, np.int64)))
    samples, total = 0, 0.0
    for chosen in map(torch.from_numpy, rows.order):
        if should_stop():
            break
        optimizer.zero_grad()
        loss = criterion(inputs[chosen], *(None if a is None else a[chosen] for a in (p, labels)))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        samples += len(chosen)
        total += float(loss.detach()) * len(chosen)
    return samples, {name: total / samples} if samples else {}


@contextmanager
def still(model: nn.Module, name: str) -> Iterator[None]:
    """Inside, the submodule `name` gets no gradient and its batch statistics stay; empty is none of them.

    The model's other parts are left in the mode they are in.
    """
    if not name:
        yield
        return
    part = model.get_submodule(name)
    moving = [parameter for parameter in part.parameters() if parameter.requires_grad]
    was_training = part.training
    part.eval()
    for parameter in moving:
        parameter.requires_grad_(False)
        parameter.grad = None
    try:
        yield
    finally:
        part.train(was_training)
        for parameter in moving:
            parameter.requires_grad_(True)
