"""A torch module as one vector and what is left at the site.

`d` is the number of shared parameters: floating parameters and buffers whose names `share` lets travel.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from p2pfl.errors import LearnerError
from p2pfl.events import Vector
from p2pfl.learn.flat import schema_of_specs

__all__ = ["SeededLoader", "Tensors"]


class Tensors:
    """A module's tensors: those that travel, in the vector's order, and the `private` ones by name."""

    def __init__(self, model: nn.Module, share: tuple[str, ...]) -> None:
        # Tied weights appear under two names in a state dict and travel once, under the first.
        tensors: dict[str, Tensor] = {}
        seen: set[int] = set()
        for name, tensor in model.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                tensors[name] = tensor
        self.schema = schema_of_specs(
            (
                (name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
                for name, tensor in tensors.items()
            ),
            share,
        )
        places = dict(zip(self.schema.names, self.schema.slices(), strict=True))
        self._shared = [(tensors[name], place) for name, place in places.items()]
        self.private = {name: tensor for name, tensor in tensors.items() if name not in places}

    @property
    def device(self) -> torch.device:
        """Where the module lives."""
        return self._shared[0][0].device

    def vector(self) -> Vector:
        """The shared tensors now, a copy, (d,)."""
        vector = np.empty(self.schema.size, np.float32)
        for tensor, place in self._shared:
            vector[place] = tensor.detach().to("cpu", torch.float32).reshape(-1).numpy()
        return vector

    def adopt(self, parameters: Vector) -> None:
        """Writes a vector (d,) into the module.  Raises LearnerError when it is of another model."""
        if parameters.shape != (self.schema.size,):
            raise LearnerError(
                f"parameters have shape {parameters.shape}, this model has {self.schema.size};"
                " check that all sites run the same model"
            )
        # A copy: torch warns about arrays it may not write, and drivers hand out read-only ones.
        source = torch.from_numpy(np.array(parameters, np.float32))
        with torch.no_grad():
            for tensor, place in self._shared:
                tensor.copy_(source[place].view(tensor.shape))

    def put_back(self, private: Mapping[str, Tensor]) -> None:
        """Writes private tensors by name."""
        with torch.no_grad():
            for name, tensor in private.items():
                self.private[name].copy_(tensor)

    def packed(self) -> dict[str, Tensor]:
        """Copies of the private tensors, named `model.NAME`."""
        return {
            f"model.{name}": tensor.detach().to("cpu").clone().contiguous()
            for name, tensor in self.private.items()
        }

    def unpack(self, packed: Mapping[str, Tensor]) -> None:
        """Takes back what `packed` gave.  Raises LearnerError when it is of another model."""
        saved = {name.removeprefix("model."): tensor for name, tensor in packed.items()}
        kept = {name: tuple(tensor.shape) for name, tensor in self.private.items()}
        if {name: tuple(tensor.shape) for name, tensor in saved.items()} != kept:
            raise LearnerError(
                f"saved learner state holds {sorted(saved)}, this model keeps {sorted(kept)};"
                " the model changed since it was saved"
            )
        self.put_back(saved)

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Inside, whatever is raised leaves the private tensors as they were before."""
        before = {name: tensor.detach().clone() for name, tensor in self.private.items()}
        try:
            yield
        except BaseException:
            self.put_back(before)
            raise

    def trained(self) -> Vector:
        """`vector` after training.  Raises LearnerError when any tensor is not finite."""
        vector = self.vector()
        if not np.isfinite(vector).all() or not all(bool(t.isfinite().all()) for t in self.private.values()):
            raise LearnerError("training diverged: parameters are not finite; lower the learning rate")
        return vector


class SeededLoader:
    """Inside, the loader and its samplers draw from one generator of the given seed; afterwards as before."""

    def __init__(self, loader: Any, seed: int) -> None:
        sampler = getattr(loader, "sampler", None)
        inner = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
        self._owners: list[Any] = [o for o in (loader, sampler, inner) if hasattr(o, "generator")]
        self._before = [owner.generator for owner in self._owners]
        self._generator = torch.Generator().manual_seed(seed)

    def __enter__(self) -> None:
        for owner in self._owners:
            owner.generator = self._generator

    def __exit__(self, *_: object) -> None:
        for owner, generator in zip(reversed(self._owners), reversed(self._before), strict=True):
            owner.generator = generator
