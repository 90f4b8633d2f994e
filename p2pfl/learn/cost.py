"""What a torch module costs: parameters to hold, multiply-adds to classify one row.

Counted are convolutions and linear layers, which is where the arithmetic is; biases, normalisation,
activations and pooling are left out, as in the tables of He et al. 2016, arXiv:1512.03385.  A training step
costs about three times as much: forward, and two products of the same size backward.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from p2pfl.errors import LearnerError

__all__ = ["Cost", "Meter", "cost_of", "metered"]

# A pass forward, and the two products of its pass back.
_TRAINING = 3
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_COUNTED = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of a module: trained parameters, and multiply-adds of one row going forward."""

    parameters: int
    multiply_adds: int


@dataclass(slots=True)
class Meter:
    """Multiply-adds since it was made."""

    multiply_adds: int = 0


@contextmanager
def metered(meter: Meter) -> Iterator[None]:
    """Add to `meter` what every torch module computes inside, whoever calls it.

    A pass that gradients will follow counts three times; a layer that is not counted (see `cost_of`) is 0.
    """

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, _COUNTED):
            times = _TRAINING if output.requires_grad else 1
            meter.multiply_adds += times * _multiply_adds(module, inputs[0], output)

    handle = nn.modules.module.register_module_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def cost_of(model: nn.Module, shape: tuple[int, ...]) -> Cost:
    """The cost of `model` on rows of `shape`, (k,) or (channels, height, width).

    One row of zeros goes through in eval mode; the model is then as before.  A shared layer counts once as
    parameters and every time it runs as multiply-adds.  Products written as functions (attention by hand) are
    not seen.   Raises LearnerError for a layer with a matrix that it cannot count, such as a recurrent one.
    """
    count = 0

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal count
        count += _multiply_adds(module, inputs[0], output)

    modes = {module: module.training for module in model.modules()}
    hooks = [
        module.register_forward_hook(add)
        for module in modes
        if any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
    ]
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *shape, device=device))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return Cost(parameters=sum(parameter.numel() for parameter in model.parameters()), multiply_adds=count)


def _multiply_adds(module: nn.Module, x: Tensor, y: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return y.numel() * module.in_features
    if isinstance(module, _CONVOLUTIONS):
        return y.numel() * module.in_channels // module.groups * prod(module.kernel_size)
    if isinstance(module, _TRANSPOSED):
        return x.numel() * module.out_channels // module.groups * prod(module.kernel_size)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return 0
    raise LearnerError(
        f"{type(module).__name__} is no convolution and no linear layer; its multiply-adds are not counted"
    )
