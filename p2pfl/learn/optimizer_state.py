"""What a torch optimizer remembers, as named tensors and back, without pickle."""

from typing import Any

import torch
from torch import Tensor

from p2pfl.errors import LearnerError

__all__ = ["pack_optimizer", "unpack_optimizer"]


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Momentum, step counts and their like: `INDEX.NAME` to a CPU tensor; numbers become float64 scalars.

    Learning rates and other settings are not kept: they come from the agreement.
    Raises LearnerError for an optimizer that remembers anything else (torch.optim.LBFGS keeps lists).
    """
    packed: dict[str, Tensor] = {}
    for index, entry in optimizer.state_dict()["state"].items():
        if not isinstance(entry, dict):
            raise LearnerError(_cannot_keep(optimizer, str(index)))
        for name, value in entry.items():
            key = f"{index}.{name}"
            if isinstance(value, Tensor):
                packed[key] = value.detach().to("cpu").clone().contiguous()
            elif isinstance(value, int | float):
                packed[key] = torch.tensor(float(value), dtype=torch.float64)
            elif value is not None:
                raise LearnerError(_cannot_keep(optimizer, key))
    return packed


def unpack_optimizer(optimizer: torch.optim.Optimizer, packed: dict[str, Tensor]) -> None:
    """Gives a fresh optimizer of the same kind, over the same parameters, what `pack_optimizer` took.

    Raises LearnerError when the names are not of that form or the shapes do not fit.
    """
    whole = optimizer.state_dict()
    counts = sum(len(group["params"]) for group in whole["param_groups"])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in packed.items():
        number, _, name = key.partition(".")
        if not number.isdigit() or int(number) >= counts or not name:
            raise LearnerError(f"saved optimizer state has {key!r}, which this optimizer does not know")
        if tensor.ndim and tensor.shape != parameters[int(number)].shape:
            raise LearnerError(
                f"saved optimizer state {key!r} has shape {tuple(tensor.shape)}; the model changed"
            )
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


def _cannot_keep(optimizer: torch.optim.Optimizer, key: str) -> str:
    return (
        f"{type(optimizer).__name__} remembers {key}, which is no tensor or number; start it anew"
        " each round with reset_optimizer=True"
    )
