"""What a torch model gets right, batch by batch."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from p2pfl.errors import LearnerError
from p2pfl.learn import metrics

__all__ = ["Measurement", "mean_loss", "measured"]

_LOGIT_LOSSES = ("binary_cross_entropy_with_logits", "BCEWithLogitsLoss")
_PROBABILITY_LOSSES = ("binary_cross_entropy", "BCELoss")


class Measurement:
    """Collects batches of outputs and targets, then gives loss, accuracy and, for two classes, AUC.

    Outputs with one dimension more than integer targets are scores of C classes, in dimension 1 (so pixels of
    a segmentation count too).  A single output is the score of class 1 where the loss is torch's binary
    cross-entropy, on logits (threshold 0) or probabilities (threshold 1/2).  Other shapes are no
    classification: only the loss is measured.
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor] | None,
        more: Callable[[Tensor, Tensor], Mapping[str, float]] | None = None,
    ) -> None:
        self._loss, self._more = loss, more
        self._rows, self._total_loss = 0, 0.0
        self._right, self._judged = 0, 0
        self._labels: list[Tensor] = []
        self._scores: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []
        name = loss.__class__.__name__ if isinstance(loss, nn.Module) else getattr(loss, "__name__", "")
        self._threshold = 0.0 if name in _LOGIT_LOSSES else 0.5 if name in _PROBABILITY_LOSSES else None

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """One batch: outputs (b, ...), targets (b, ...)."""
        self._rows += len(targets)
        if self._loss is not None:
            self._total_loss += float(self._loss(outputs, targets)) * len(targets)
        if self._more is not None:
            self._outputs.append(outputs.cpu())
            self._targets.append(targets.cpu())
        if outputs.ndim == targets.ndim + 1 and outputs.shape[1] > 1 and not targets.is_floating_point():
            self._right += int((outputs.argmax(dim=1) == targets).sum())
            self._judged += targets.numel()
            if outputs.ndim == 2 and outputs.shape[1] == 2:
                self._keep(outputs[:, 1] - outputs[:, 0], targets)
        elif self._threshold is not None and outputs.numel() == targets.numel():
            self._right += int(((outputs.reshape(-1) > self._threshold) == (targets.reshape(-1) > 0.5)).sum())
            self._judged += targets.numel()
            if outputs.numel() == len(targets):
                self._keep(outputs.reshape(-1), targets.reshape(-1) > 0.5)

    def result(self) -> dict[str, float]:
        """What was measured.  Raises LearnerError when there was no row."""
        if not self._rows:
            raise LearnerError("the test loader gave no row; check the site's data")
        measured = {}
        if self._loss is not None:
            measured["loss"] = self._total_loss / self._rows
        if self._judged:
            measured["accuracy"] = self._right / self._judged
        if self._labels:
            labels, scores = torch.cat(self._labels).numpy(), torch.cat(self._scores).numpy()
            area = metrics.auc(labels.astype(np.int64), scores)
            if not np.isnan(area):
                measured["auc"] = area
        if self._more is not None:
            extra = self._more(torch.cat(self._outputs), torch.cat(self._targets))
            measured |= {name: float(value) for name, value in extra.items()}
        return measured

    def _keep(self, scores: Tensor, labels: Tensor) -> None:
        self._scores.append(scores.to("cpu", torch.float32))
        self._labels.append(labels.cpu())


def measured(
    model: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Any, Any]],
    to_device: Callable[[Any], Any],
    loss: Callable[[Tensor, Tensor], Tensor] | None,
    more: Callable[[Tensor, Tensor], Mapping[str, float]] | None,
) -> dict[str, float]:
    """What `model` gets right in `batches` of (inputs, targets), without gradients."""
    measurement = Measurement(loss, more)
    with torch.no_grad():
        for inputs, targets in batches:
            inputs, targets = to_device(inputs), to_device(targets)
            measurement.add(model(inputs), targets)
    return measurement.result()


def mean_loss(
    model: Callable[[Tensor], Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[tuple[Any, Any]],
    to_device: Callable[[Any], Any],
    least_rows: int,
) -> float:
    """The mean on the first batches of `least_rows` rows together: infinite when not finite, NaN of none."""
    total, rows = 0.0, 0
    with torch.no_grad():
        for inputs, targets in batches:
            inputs, targets = to_device(inputs), to_device(targets)
            total += float(loss(model(inputs), targets)) * len(targets)
            rows += len(targets)
            if rows >= least_rows:
                break
    mean = total / rows if rows else np.nan
    return np.inf if rows and not np.isfinite(mean) else mean
