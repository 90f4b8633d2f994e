"""What is checked before anything is mixed: a header before its body is fetched, a body before it counts.

Nothing here adapts or repairs.  A verdict is None or one word of `REASONS`, which travels back in the
acknowledgement, so that the sender takes its mass back.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from p2pfl.events import Header, Kind
from p2pfl.trust.relations import Level

__all__ = [
    "MIN_WEIGHT",
    "MAX_NORM",
    "MAX_STATISTIC",
    "Reason",
    "REASONS",
    "judge_header",
    "judge_weight",
    "judge_vector",
    "norm",
]

Reason: TypeAlias = Literal[
    "not-member",
    "not-accepted",
    "kind",
    "rate",
    "schema",
    "codec",
    "size",
    "memory",
    "weight",
    "not-finite",
    "norm",
]
REASONS: tuple[str, ...] = get_args(Reason)

# The least weight a share may bring.  Below it the numerators of an ordinary model, weights times about .01,
# near the smallest float32 (1.2e-38) and lose bits; far below, 1/w overflows and w itself cannot be split.
MIN_WEIGHT = 1e-30
# Euclidean norm of a model, whatever the agreement says: squares in float32 overflow from 1.8e19 on, and one
# finite share of 3e38 would turn an honest sum into infinity.
MAX_NORM = 1e18
# The same for the statistics' float64: their squares still have room in 1.8e308.
MAX_STATISTIC = 1e100
# Float32 values converted at a time: 512 KiB of float64, which stays in the second-level cache.
_CHUNK = 64 * 1024


def judge_header(
    header: Header,
    *,
    schema_hash: bytes,
    expected_bytes: int,
    is_member: bool = True,
    level: Level = Level.NORMAL,
    max_weight: float = math.inf,
    codecs: tuple[str, ...] = ("none",),
    recent: int = 0,
    max_recent: int = 2,
    free_bytes: int | None = None,
) -> Reason | None:
    """Why the body under `header`, a SHARE or STATE, is not to be fetched, or None.

    expected_bytes: of the body decoded, by the local schema.   recent: bodies of this peer fetched in this
    round already.   free_bytes: memory left for bodies in flight; None is unlimited.
    The order is fixed, so that a stranger learns nothing of the model from the answer.
    """
    if not is_member:
        return "not-member"
    if level < Level.LIMITED:
        return "not-accepted"
    if header.kind not in (Kind.SHARE, Kind.STATE):
        return "kind"
    if recent >= max_recent:
        return "rate"
    if header.schema_hash != schema_hash:
        return "schema"
    if header.codec not in codecs:
        return "codec"
    if header.raw_size != expected_bytes or not 0 < header.size <= _most(header.codec, expected_bytes):
        return "size"
    if free_bytes is not None and header.size > free_bytes:
        return "memory"
    if header.kind is Kind.SHARE and not header.weights:
        return "weight"
    if header.weights:
        return judge_weight(header.weights[0], max_weight=max_weight)
    return None


def judge_weight(weight: float, *, max_weight: float) -> Reason | None:
    """None when MIN_WEIGHT <= weight <= max_weight and finite.

    max_weight: the whole mass of the run (members times the largest w(0)); more can only be a lie.
    """
    return None if MIN_WEIGHT <= weight <= max_weight and math.isfinite(weight) else "weight"


def judge_vector(
    x: NDArray[np.float32],
    statistics: NDArray[np.float64],
    *,
    weight: float,
    max_norm: float | None,
    max_weight: float,
    dimension: int | None = None,
) -> Reason | None:
    """Why a fetched share is not to be mixed, or None.

    x: (d,) float32, already scaled by its weight, as push-sum sends it; the norm that counts is that of the
    sender's model, x / weight, so that a tiny weight cannot carry a huge model.   statistics: (k,) float64.
    max_norm: of the model; MAX_NORM holds in any case.   dimension: d of the local schema.
    One pass over x in 512 KiB steps, no copy of it.
    """
    if (reason := judge_weight(weight, max_weight=max_weight)) is not None:
        return reason
    if x.dtype != np.float32 or x.ndim != 1 or statistics.dtype != np.float64 or statistics.ndim != 1:
        return "schema"
    if dimension is not None and x.size != dimension:
        return "schema"
    length = norm(x)
    if not (math.isfinite(length) and bool(np.isfinite(statistics).all())):
        return "not-finite"
    bound = MAX_NORM if max_norm is None else min(max_norm, MAX_NORM)
    if length > bound * weight or (statistics.size and float(np.abs(statistics).max()) > MAX_STATISTIC):
        return "norm"
    return None


def norm(x: NDArray[Any]) -> float:
    """The Euclidean norm of x, (d,) float32, in float64; not finite exactly when x is not.

    Squares of float32 are below 1.2e77, so no sum of them overflows float64: an infinity or NaN in the result
    was one in x.
    """
    buffer = np.empty(min(_CHUNK, x.size), np.float64)
    total = 0.0
    with np.errstate(all="ignore"):
        for start in range(0, x.size, _CHUNK):
            chunk = buffer[: min(_CHUNK, x.size - start)]
            np.copyto(chunk, x[start : start + _CHUNK])
            total += float(chunk @ chunk)
    return math.sqrt(total) if math.isfinite(total) else math.nan


def _most(codec: str, expected_bytes: int) -> int:
    # What does not compress may grow a little by its framing.
    return expected_bytes if codec == "none" else expected_bytes + expected_bytes // 10
