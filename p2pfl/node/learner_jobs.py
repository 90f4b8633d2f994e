"""Jobs of an exchange of knowledge and their results, as plain values between daemon and learner.

An array is its dtype, its shape and its little-endian bytes, as narrow as it is; everything else is what
MessagePack has.  Only the types of p2pfl/work.py come out of `unpack`, whatever goes in.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from math import prod
from typing import Any

import numpy as np

from p2pfl import work
from p2pfl.errors import LearnerError

__all__ = ["pack", "unpack_job", "unpack_result"]

_JOBS = (
    work.Fit, work.Answer, work.Extract, work.Summarise, work.Judge, work.Learn, work.Mix, work.Distill,
)  # fmt: skip
_RESULTS = (
    work.Fitted, work.Answered, work.Extracted, work.Summarised, work.Judged, work.Learned, work.Mixed,
    work.Distilled,
)  # fmt: skip
_PARTS = (work.Samples, work.Teacher, work.Pull, work.Mutual)
_TYPES = {kind.__name__: kind for kind in (*_JOBS, *_RESULTS, *_PARTS)}
_DTYPES = tuple(
    np.dtype(code).str
    for code in ("?", "i1", "u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
)


def pack(value: Any) -> Any:
    """A job, a result, or a part of one, as lists, maps, bytes and numbers."""
    if isinstance(value, np.ndarray):
        array = value.astype(value.dtype.newbyteorder("<"), copy=False)
        return ["array", array.dtype.str, list(array.shape), array.tobytes()]
    if isinstance(value, np.generic):
        return value.item()
    if is_dataclass(value) and not isinstance(value, type):
        return ["object", type(value).__name__, {f.name: pack(getattr(value, f.name)) for f in fields(value)}]
    if isinstance(value, Mapping):
        return ["map", {str(key): pack(item) for key, item in value.items()}]
    return value


def unpack_job(value: Any) -> work.Job:
    """The job that `pack` was given.  Raises LearnerError."""
    found = _unpack(value)
    if not isinstance(found, _JOBS):
        raise LearnerError(f"a {type(found).__name__} is no job")
    return found


def unpack_result(value: Any) -> work.Result:
    """The result that `pack` was given.  Raises LearnerError."""
    found = _unpack(value)
    if not isinstance(found, _RESULTS):
        raise LearnerError(f"a {type(found).__name__} is no result of a job")
    return found


def _unpack(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case ["array", str(code), [*shape], bytes(raw)] if code in _DTYPES and all(
            isinstance(side, int) and side >= 0 for side in shape
        ):
            dtype = np.dtype(code)
            if len(raw) != prod(shape) * dtype.itemsize:
                raise LearnerError(f"an array {shape} {code} came with {len(raw)} bytes")
            return np.frombuffer(raw, dtype).reshape(shape)
        case ["map", dict(items)]:
            return {key: _unpack(item) for key, item in items.items()}
        case ["object", str(name), dict(items)] if name in _TYPES:
            kind = _TYPES[name]
            if items.keys() != {field.name for field in fields(kind)}:
                raise LearnerError(f"a {name} came with the fields {sorted(items)}")
            return kind(**{key: _unpack(item) for key, item in items.items()})
    raise LearnerError("a job or a result came that is none")
