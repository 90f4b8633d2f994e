"""Named tensors <-> one contiguous float32 vector, and the Schema that says where each lies.

`d` is the number of shared parameters.  Floating tensors travel, parameters and buffers alike; integer and
boolean tensors (batch-norm counters) stay at their site.  Everything travels as float32: float16 and bfloat16
come back bit for bit, float64 comes back rounded to float32.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.events import Vector

__all__ = ["Spec", "Schema", "schema_of", "schema_of_specs", "is_shared", "flatten", "unflatten"]

# Name, shape, dtype name as numpy or torch spells it ("float32", "bfloat16", "int64").
Spec = tuple[str, tuple[int, ...], str]

_FLOATING = ("float32", "float64", "float16", "bfloat16")
# Prefix of the hashed form, so that a schema is never mistaken for another document.
_DOMAIN = b"p2pfl-schema/1\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The shape of what travels: one entry a tensor, in the order of the vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    offsets: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of parameters d."""
        return self.offsets[-1] + prod(self.shapes[-1]) if self.names else 0

    def slices(self) -> list[slice]:
        """Where each tensor lies in the vector."""
        return [
            slice(offset, offset + prod(shape))
            for offset, shape in zip(self.offsets, self.shapes, strict=True)
        ]

    def hash(self) -> bytes:
        """32 bytes that two sites share exactly when their vectors mean the same.

        SHA-256 of `p2pfl-schema/1`, a line feed, and the JSON list of [name, shape, dtype] in vector order,
        without spaces, in ASCII.
        """
        entries = [
            [name, list(shape), dtype]
            for name, shape, dtype in zip(self.names, self.shapes, self.dtypes, strict=True)
        ]
        return hashlib.sha256(_DOMAIN + json.dumps(entries, separators=(",", ":")).encode()).digest()


def is_shared(name: str, share: Sequence[str]) -> bool:
    """Whether the globs let `name` travel: the last one that matches decides, and `!glob` takes away.

    >>> is_shared("bn.running_mean", ["*", "!*.running_*"])
    False
    """
    shared = False
    for glob in share:
        if fnmatchcase(name, glob.removeprefix("!")):
            shared = not glob.startswith("!")
    return shared


def schema_of_specs(specs: Iterable[Spec], share: Sequence[str] = ("*",)) -> Schema:
    """The Schema of the floating tensors among `specs` whose names `share` lets travel, in the given order.

    Raises ConfigError when a name comes twice, a glob matches nothing, or nothing is left to share;
    LearnerError for dtypes that have no float32 form (complex, float128).
    """
    specs = list(specs)
    names = [name for name, _, _ in specs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"two tensors are named {twice!r}; parameter names are unique")
    for glob in share:
        if not any(fnmatchcase(name, glob.removeprefix("!")) for name in names):
            raise ConfigError(
                f"share has {glob!r}, which matches no parameter; there are {', '.join(names) or 'none'}"
            )
    chosen = []
    for name, shape, dtype in specs:
        if dtype.startswith(("complex", "float", "bfloat")) and dtype not in _FLOATING:
            raise LearnerError(f"{name} is {dtype}; parameters are {', '.join(_FLOATING)}")
        if dtype in _FLOATING and is_shared(name, share):
            chosen.append((name, shape, dtype))
    if not chosen:
        raise ConfigError(f"share = {list(share)} leaves nothing to share; there are {', '.join(names)}")
    offsets, offset = [], 0
    for _, shape, _ in chosen:
        offsets.append(offset)
        offset += prod(shape)
    return Schema(
        names=tuple(name for name, _, _ in chosen),
        shapes=tuple(shape for _, shape, _ in chosen),
        dtypes=tuple(dtype for _, _, dtype in chosen),
        offsets=tuple(offsets),
    )


def schema_of(tensors: Mapping[str, NDArray[Any]], share: Sequence[str] = ("*",)) -> Schema:
    """The Schema of named arrays; see `schema_of_specs`."""
    return schema_of_specs(
        ((name, tensor.shape, tensor.dtype.name) for name, tensor in tensors.items()), share
    )


def flatten(tensors: Mapping[str, NDArray[Any]], schema: Schema, out: Vector | None = None) -> Vector:
    """The shared tensors as one (d,) float32 vector, into `out` when it is given.

    Tensors the schema does not name are ignored.
    Raises LearnerError when one is missing or has another shape.
    """
    vector = np.empty(schema.size, np.float32) if out is None else out
    _check_size(vector, schema)
    for name, shape, where in zip(schema.names, schema.shapes, schema.slices(), strict=True):
        if name not in tensors:
            raise LearnerError(f"the model lost {name}, which the agreement shares")
        if tensors[name].shape != shape:
            raise LearnerError(f"{name} has shape {tensors[name].shape}, the schema says {shape}")
        vector[where] = tensors[name].reshape(-1)
    return vector


def unflatten(vector: Vector, schema: Schema) -> dict[str, NDArray[Any]]:
    """The named tensors of a (d,) vector, each a copy in its own shape and dtype (bfloat16 as float32).

    Raises LearnerError when the vector has another size.
    """
    _check_size(vector, schema)
    return {
        name: vector[where].reshape(shape).astype("float32" if dtype == "bfloat16" else dtype)
        for name, shape, dtype, where in zip(
            schema.names, schema.shapes, schema.dtypes, schema.slices(), strict=True
        )
    }


def _check_size(vector: Vector, schema: Schema) -> None:
    if vector.shape != (schema.size,):
        raise LearnerError(
            f"a vector of shape {vector.shape} came for a model of {schema.size} parameters;"
            " check that all sites run the same model"
        )
