"""Torch learners of many sites fitted together by vmap: one call of the module for all of them.

A small module's step costs some 270 us of dispatch and little arithmetic, so sites that share a call share
that.  Each site's batches are drawn as it would draw them alone.  A perceptron ends within 1e-6 of where it
ends alone (on one thread often with the same bits: 64-32-10 does, 6-8-3 does not), a convolutional network
within 1e-4.
`m` sites, `d` parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from p2pfl.errors import LearnerError
from p2pfl.learn.seeding import seeded
from p2pfl.learn.standardise import Rows
from p2pfl.learn.torch_descent import passes
from p2pfl.learn.torch_learner import TorchLearner
from p2pfl.learn.torch_optimizer import Optimizers
from p2pfl.learn.torch_vector import SeededLoader, Tensors

__all__ = ["TorchStack", "kinship"]

_Batch = tuple[Tensor, Tensor]
_Named = dict[str, Tensor]

# Where schedules are compared: learners whose rates agree here are taken to agree everywhere.
_PROGRESS = (0.0, 0.25, 0.5, 1.0)
# A site's own loss and that of the common module on one batch may differ by rounding.
_CLOSE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What a learner's fit is made of."""

    model: nn.Module
    tensors: Tensors
    train: Any
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizers: Optimizers
    local_steps: int
    rows: Rows | None


def kinship(learner: TorchLearner) -> Hashable:
    """What learners must have in common to be fitted together.  Raises LearnerError that says why it cannot.

    The module may have no buffers (batch normalisation), no dropout and nothing private, the optimizer has
    to be plain SGD that starts anew in every fit.
    """
    parts = _parts_of(learner)
    if next(parts.model.buffers(), None) is not None:
        raise LearnerError("its module has buffers, such as batch normalisation's means")
    if parts.tensors.private:
        raise LearnerError("some of its layers are not shared")
    if any(p.dtype != torch.float32 for p in parts.model.parameters()):
        raise LearnerError("its parameters are not float32")
    optimizers = [parts.optimizers.new(progress) for progress in _PROGRESS]
    optimizer, group = optimizers[0], optimizers[0].param_groups[0]
    if type(optimizer) is not torch.optim.SGD or len(optimizer.param_groups) > 1:
        raise LearnerError(f"its optimizer is not plain SGD but {type(optimizer).__name__}")
    if group["nesterov"] or group["dampening"] or group["maximize"]:
        raise LearnerError("its SGD has nesterov, dampening or maximize")
    rates = tuple(one.param_groups[0]["lr"] for one in optimizers)
    course = (parts.local_steps, rates, group["momentum"], group["weight_decay"])
    return (parts.tensors.schema.hash(), str(parts.tensors.device), course)


class TorchStack:
    """TorchLearners of one `kinship`, at work in one set of tensors."""

    def __init__(self, learners: Sequence[TorchLearner]) -> None:
        """Raises LearnerError when the module cannot be called for many sites at once."""
        self._all = [_parts_of(learner) for learner in learners]
        first = self._all[0]
        self._names = first.tensors.schema.names
        self._first, self._model = first, first.model.train()
        self._group = first.optimizers.new(0.0).param_groups[0]
        self._step = vmap(grad_and_value(self._loss), randomness="error")
        self._is_standardised = False
        self._trained = self._moving()
        self._try()

    def agrees(self, position: int) -> bool:
        """Whether a site's own module and loss give on a batch of its own what the first site's give."""
        parts = self._all[position]
        [(x, y)] = self._drawn(parts, 0, 0, steps=1)
        with torch.no_grad(), seeded(0):
            own = float(parts.loss(parts.model.train()(x), y))
            ours = float(self._loss(dict(self._model.named_parameters()), {}, x, y))
        return bool(np.isclose(own, ours, rtol=_CLOSE, atol=_CLOSE))

    def fit(
        self,
        parameters: NDArray[np.float32],
        rngs: Sequence[np.random.Generator],
        progress: float,
        statistics: NDArray[np.float64] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """As `Stack.fit` (stacked.py): every site's parameters after a fit, (m, d), and its mean loss, (m,).

        Raises LearnerError when statistics are awaited and do not come, or a loader gives nothing.
        """
        self._prepare(statistics)
        steps = self._first.local_steps
        batches = []
        for parts, rng in zip(self._all, rngs, strict=True):
            loader_seed, global_seed = (int(seed) for seed in rng.integers(2**63, size=2))
            batches.append(self._drawn(parts, loader_seed, global_seed, steps=steps))
        tensors = self._unpacked(parameters)
        momenta: _Named = {}
        rate = float(self._first.optimizers.new(progress).param_groups[0]["lr"])
        total, rows = np.zeros(len(parameters)), np.zeros(len(parameters))
        for step in zip(*batches, strict=True):
            gradients: _Named = {name: torch.zeros_like(tensors[name]) for name in self._trained}
            for members, x, y in _alike(step):
                some = {name: tensor[members] for name, tensor in tensors.items()}
                moving = {name: some.pop(name) for name in self._trained}
                found, losses = self._step(moving, some, x, y)
                for name in self._trained:
                    gradients[name][members] = found[name]
                count = y.shape[1]
                total[members] += losses.detach().to("cpu", torch.float64).numpy() * count
                rows[members] += count
            self._descend(tensors, gradients, momenta, rate)
        ended = self._packed(tensors)
        lost = ~np.isfinite(ended).all(axis=1)
        means = total / np.maximum(rows, 1)
        ended[lost], means[lost] = parameters[lost], np.nan
        return ended, means

    def state(self) -> bytes:
        """Nothing is kept between fits."""
        return b""

    def restore(self, state: bytes) -> None:
        """Take back what `state` gave.  Raises LearnerError when it is of others than these."""
        if state:
            raise LearnerError("the saved state is of learners that keep something, and these do not")

    # --- parts of a fit ------------------------------------------------------------------------------

    def _loss(self, moving: _Named, still: _Named, x: Tensor, y: Tensor) -> Tensor:
        """Of one site.   moving: the parameters that train.   still: those that do not."""
        return self._first.loss(functional_call(self._model, {**moving, **still}, (x,)), y)

    def _prepare(self, statistics: NDArray[np.float64] | None) -> None:
        for i, parts in enumerate(self._all):
            if parts.rows is None:
                continue
            if statistics is not None and statistics.shape[1] and not self._is_standardised:
                parts.rows.standardise(statistics[i])
            parts.rows.check_ready()
        self._is_standardised = True

    def _drawn(self, parts: _Parts, loader_seed: int, global_seed: int, *, steps: int) -> list[_Batch]:
        """A site's batches of a fit, as TorchLearner draws them."""
        device = parts.tensors.device
        with seeded(global_seed), SeededLoader(parts.train, loader_seed):
            return [(x.to(device), y.to(device)) for x, y in passes(parts.train, steps, lambda: False)]

    def _moving(self) -> tuple[str, ...]:
        """The names of the parameters that a step of the module by itself gives a gradient."""
        [(x, y)] = self._drawn(self._first, 0, 0, steps=1)
        with seeded(0):
            self._model.zero_grad()
            self._first.loss(self._model(x), y).backward()  # type: ignore[no-untyped-call]
        found = tuple(name for name, p in self._model.named_parameters() if p.grad is not None)
        self._model.zero_grad()
        return found

    def _try(self) -> None:
        """One step of two copies of the first site.  Raises LearnerError with torch's reason."""
        [(x, y)] = self._drawn(self._first, 0, 0, steps=1)
        tensors = {name: torch.stack([p.detach()] * 2) for name, p in self._model.named_parameters()}
        try:
            moving = {name: tensors.pop(name) for name in self._trained}
            self._step(moving, tensors, torch.stack([x, x]), torch.stack([y, y]))
        except Exception as error:
            # Whatever it is, the module is the user's, and works one site at a time.
            reason = str(error).partition("\n")[0].rstrip(". ")
            raise LearnerError(f"its module cannot be called for many sites at once: {reason}") from error

    def _unpacked(self, parameters: NDArray[np.float32]) -> _Named:
        whole = torch.from_numpy(np.array(parameters, np.float32)).to(self._first.tensors.device)
        schema = self._first.tensors.schema
        places = zip(schema.names, schema.shapes, schema.slices(), strict=True)
        return {name: whole[:, at].reshape(len(whole), *shape).clone() for name, shape, at in places}

    def _packed(self, tensors: _Named) -> NDArray[np.float32]:
        columns = [tensors[name].reshape(len(tensors[name]), -1) for name in self._names]
        packed: NDArray[np.float32] = torch.cat(columns, dim=1).cpu().numpy()
        return packed

    def _descend(self, tensors: _Named, gradients: _Named, momenta: _Named, rate: float) -> None:
        """A step of torch.optim.SGD on every site, in its order of operations."""
        for name in self._trained:
            g = gradients[name]
            if self._group["weight_decay"]:
                g = g.add(tensors[name], alpha=self._group["weight_decay"])
            if self._group["momentum"]:
                if name in momenta:
                    momenta[name].mul_(self._group["momentum"]).add_(g)
                else:
                    momenta[name] = g.clone()
                g = momenta[name]
            tensors[name].add_(g, alpha=-rate)


def _parts_of(learner: TorchLearner) -> _Parts:
    # What the learner keeps to itself it shows here: this is its own arithmetic, for many at a time.
    optimizers = learner._optimizers
    if learner._user_fit is not None or learner._loss is None or optimizers is None:
        raise LearnerError("its fit is its own")
    if learner.dp_sgd is not None or not optimizers.is_reset:
        raise LearnerError("it keeps its optimizer from fit to fit, or noises its gradients")
    if learner.local_steps is None:
        raise LearnerError("it does not say its local steps")
    return _Parts(
        model=learner._model,
        tensors=learner._tensors,
        train=learner._train,
        loss=learner._loss,
        optimizers=optimizers,
        local_steps=learner.local_steps,
        rows=learner._rows,
    )


def _alike(step: Sequence[_Batch]) -> list[tuple[Any, Tensor, Tensor]]:
    """One step's batches, those of one shape together: positions, inputs and targets."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, (x, y) in enumerate(step):
        groups.setdefault((x.shape, y.shape, x.dtype, y.dtype), []).append(i)
    return [
        (
            slice(None) if len(members) == len(step) else members,
            torch.stack([step[i][0] for i in members]),
            torch.stack([step[i][1] for i in members]),
        )
        for members in groups.values()
    ]
