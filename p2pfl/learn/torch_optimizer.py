"""The optimizer of a torch learner: made anew or kept from fit to fit, at the rate of the round."""

from collections.abc import Callable, Iterable, Mapping

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from p2pfl.learn.optimizer_state import pack_optimizer, unpack_optimizer
from p2pfl.learn.torch_vector import Tensors

__all__ = ["MakeOptimizer", "Optimizers", "Schedule", "packed_state", "unpack_state"]

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Schedule = Callable[[float], float]

_OPTIMIZER = "optimizer."


class Optimizers:
    """Gives a model's optimizers.   reset: whether each fit has a new one."""

    def __init__(
        self, make: MakeOptimizer, model: nn.Module, *, reset: bool, schedule: Schedule | None
    ) -> None:
        self._make, self._model, self._reset, self._schedule = make, model, reset, schedule
        self._kept: torch.optim.Optimizer | None = None
        self._rates: list[float] = []

    @property
    def is_reset(self) -> bool:
        """Whether each fit has a new one."""
        return self._reset

    def new(self, progress: float) -> torch.optim.Optimizer:
        """One that nobody keeps, at the schedule's rate for a share `progress`, 0..1, of rounds done."""
        optimizer = self._make(self._model.parameters())
        self._set_rates(optimizer, [float(group["lr"]) for group in optimizer.param_groups], progress)
        return optimizer

    def of_fit(self, progress: float) -> torch.optim.Optimizer:
        """The one of the last fit, or a new one, at the schedule's rate."""
        if self._kept is None or self._reset:
            self._kept = self._make(self._model.parameters())
            self._rates = [float(group["lr"]) for group in self._kept.param_groups]
        self._set_rates(self._kept, self._rates, progress)
        return self._kept

    def forget(self) -> None:
        """The next fit has a new one."""
        self._kept = None

    def packed(self) -> dict[str, Tensor]:
        """What it remembers, by name; nothing where each fit has a new one."""
        return {} if self._kept is None or self._reset else pack_optimizer(self._kept)

    def unpack(self, packed: Mapping[str, Tensor], progress: float) -> None:
        """Takes back what `packed` gave.  Raises LearnerError when it is of another model."""
        self.forget()
        if packed and not self._reset:
            unpack_optimizer(self.of_fit(progress), dict(packed))

    def _set_rates(self, optimizer: torch.optim.Optimizer, rates: list[float], progress: float) -> None:
        if self._schedule is not None:
            factor = self._schedule(progress)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor


def packed_state(tensors: Tensors, optimizers: Optimizers | None) -> bytes:
    """The private tensors and what a kept optimizer remembers, as safetensors; empty where neither is."""
    packed = tensors.packed()
    if optimizers is not None:
        packed |= {_OPTIMIZER + name: tensor for name, tensor in optimizers.packed().items()}
    return save(packed) if packed else b""


def unpack_state(state: bytes, tensors: Tensors, optimizers: Optimizers | None, progress: float) -> None:
    """Takes back what `packed_state` gave.  Raises LearnerError when it is of another model."""
    packed = load(state) if state else {}
    tensors.unpack({n: t for n, t in packed.items() if not n.startswith(_OPTIMIZER)})
    if optimizers is not None:
        kept = {n.removeprefix(_OPTIMIZER): t for n, t in packed.items() if n.startswith(_OPTIMIZER)}
        optimizers.unpack(kept, progress)
