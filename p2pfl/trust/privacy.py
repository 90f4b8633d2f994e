"""Differential privacy of what a site publishes: clipping, Gaussian noise, and what both have cost so far.

Theory of operation.  A mechanism that adds Gaussian noise to something of bounded norm has a Renyi divergence
at every order; divergences of mechanisms on the same data add up, over rounds and runs, and turn into one
(epsilon, delta) at the end.  So an account keeps what was done, not an epsilon: noise multiplier, sampling
rate, and how often.  It counts every message for an observer that sees them all, which is the right one here:
what gossip hides from a single neighbour is not hidden from neighbours who talk to each other.

`d` parameters; `sigma` is the noise multiplier (deviation over clipping bound), `q` the sampling rate.
Sources: Mironov 2017, arXiv:1702.07476; Mironov, Talwar, Zhang 2019, arXiv:1908.10530 (the sampled Gaussian
mechanism, section 3.3); Balle et al. 2020, arXiv:1905.09982, theorem 21 (the conversion); Abadi et al. 2016,
arXiv:1607.00133 (DP-SGD).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import AggregationError, ConfigError, StoreError
from p2pfl.events import Vector
from p2pfl.release import Release

__all__ = [
    "ORDERS",
    "Account",
    "clip",
    "decode",
    "encode",
    "epsilon_of",
    "noisy",
    "normals",
    "renyi",
    "spend",
]

# Orders at which divergences are kept: those of the usual tools, so that figures can be compared.  Small
# orders decide with little noise, large ones with much.
ORDERS: tuple[float, ...] = (*(1 + x / 10 for x in range(1, 100)), *(float(x) for x in range(12, 64)))
# A series at a fractional order has converged when a term is e^-30 of a probability.
_NEGLIGIBLE = -30.0
_MOST_TERMS = 10_000
# Pairs of normal numbers drawn at once: 16 MB of random bytes, whatever the model's size.
_PAIRS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Everything that was released about `data_set`, in any run; equal mechanisms are one entry."""

    data_set: str = ""
    spent: tuple[Release, ...] = ()


def spend(account: Account, *, sigma: float, q: float = 1.0, steps: int = 1) -> Account:
    """`account` after `steps` more releases.  Raises ConfigError on a mechanism that protects nothing."""
    _check(sigma, q)
    if steps < 0:
        raise ConfigError(f"{steps} releases; the least is 0")
    if steps == 0:
        return account
    for i, entry in enumerate(account.spent):
        if (entry.sigma, entry.q) == (sigma, q):
            grown = replace(entry, steps=entry.steps + steps)
            return replace(account, spent=(*account.spent[:i], grown, *account.spent[i + 1 :]))
    return replace(account, spent=(*account.spent, Release(sigma=sigma, q=q, steps=steps)))


def encode(account: Account) -> bytes:
    """`account` as one MessagePack document."""
    return msgspec.msgpack.encode(account)


def decode(data: bytes) -> Account:
    """The inverse of `encode`.  Raises StoreError."""
    try:
        return msgspec.msgpack.decode(data, type=Account)
    except msgspec.MsgspecError as error:
        raise StoreError(
            f"the saved privacy account cannot be read ({error}); restore a backup with `p2pfl node restore`"
        ) from error


def epsilon_of(account: Account, delta: float) -> float:
    """The least epsilon for which all releases together are (epsilon, delta)-differentially private.

    Two data sets are neighbours when one has a row (for a site's updates: the site) that the other lacks.
    0 for an empty account.   Raises ConfigError unless 0 < delta < 1.

    >>> round(epsilon_of(spend(Account(), sigma=1.1, q=0.01, steps=1000), 1e-5), 3)
    1.712
    """
    if not 0 < delta < 1:
        raise ConfigError(f"privacy.delta is {delta:g}; give a number between 0 and 1, below 1 / rows")
    if not account.spent:
        return 0.0
    total = [0.0] * len(ORDERS)
    for entry in account.spent:
        divergences = renyi(entry.sigma, entry.q)
        total = [a + entry.steps * r for a, r in zip(total, divergences, strict=True)]
    found = [
        r - (math.log(delta) + math.log(a)) / (a - 1) + math.log1p(-1 / a)
        for a, r in zip(ORDERS, total, strict=True)
    ]
    return max(0.0, min(found))


def renyi(sigma: float, q: float, orders: Iterable[float] = ORDERS) -> tuple[float, ...]:
    """The Renyi divergence of one release at each order.   sigma: noise multiplier.   q: sampling rate."""
    _check(sigma, q)
    if q == 1.0:
        return tuple(a / (2 * sigma**2) for a in orders)
    return tuple(
        (_log_moment_whole(int(a), q, sigma) if a == int(a) else _log_moment(a, q, sigma)) / (a - 1)
        for a in orders
    )


def clip(delta: Vector, bound: float) -> Vector:
    """`delta`, (d,) float32, of a Euclidean norm of `bound` at most.  Raises AggregationError."""
    if not bound > 0:
        raise AggregationError(f"a clipping bound of {bound:g}; it is above 0")
    length = float(np.linalg.norm(delta.astype(np.float64)))
    if not math.isfinite(length):
        raise AggregationError("an update that is not finite cannot be clipped")
    return delta if length <= bound else (delta * (bound / length)).astype(np.float32)


def noisy(delta: Vector, bound: float, sigma: float, key: bytes) -> Vector:
    """`delta` clipped to `bound`, with Gaussian noise of deviation sigma * bound on every coordinate.

    key: secret, and of this release alone: whoever has it takes the noise away again, and two releases under
    one key give their difference away.   Raises AggregationError as `clip` does.
    """
    clipped = clip(delta, bound).astype(np.float64)
    return (clipped + normals(key, delta.size) * (sigma * bound)).astype(np.float32)


def normals(key: bytes, size: int) -> NDArray[np.float64]:
    """`size` standard normal numbers that nobody without `key` can tell from random ones.

    SHAKE-256 gives the bits, Box & Muller 1958 (doi:10.1214/aoms/1177706645) the shape.  numpy's generators
    are not used: from outputs of PCG64 its state can be found (Bouillaguet, Martinez, Sauvage 2020,
    doi:10.13154/tosc.v2020.i3.175-196), and with it the rest of the noise.
    """
    found = np.empty(size + size % 2)
    for start in range(0, len(found), 2 * _PAIRS):
        pairs = min(_PAIRS, (len(found) - start) // 2)
        raw = hashlib.shake_256(key + start.to_bytes(8, "big")).digest(16 * pairs)
        # 53 bits each, in (0, 1]: the logarithm of 0 never comes.
        u = ((np.frombuffer(raw, "<u8") >> np.uint64(11)) + 1.0) * 2.0**-53
        radius, angle = np.sqrt(-2 * np.log(u[:pairs])), 2 * np.pi * u[pairs:]
        found[start : start + pairs] = radius * np.cos(angle)
        found[start + pairs : start + 2 * pairs] = radius * np.sin(angle)
    return found[:size]


def _check(sigma: float, q: float) -> None:
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ConfigError(f"a noise multiplier of {sigma:g} protects nothing; it is above 0, often about 1")
    if not 0 < q <= 1:
        raise ConfigError(f"a sampling rate of {q:g}; it is above 0 and at most 1")


def _log_sum(terms: Sequence[float]) -> float:
    top = max(terms)
    return top if top == -math.inf else top + math.log(math.fsum(math.exp(t - top) for t in terms))


def _log_moment_whole(a: int, q: float, sigma: float) -> float:
    """Log of the moment at a whole order: a binomial sum (arXiv:1908.10530, section 3.3)."""
    return _log_sum(
        [
            math.lgamma(a + 1) - math.lgamma(k + 1) - math.lgamma(a - k + 1)
            + k * math.log(q) + (a - k) * math.log1p(-q)
            + (k * k - k) / (2 * sigma**2)
            for k in range(a + 1)
        ]
    )  # fmt: skip


def _log_moment(a: float, q: float, sigma: float) -> float:
    """Log of the moment at a fractional order: two alternating series that meet where the densities cross."""
    crossing = sigma**2 * math.log(1 / q - 1) + 0.5
    plus: list[float] = []
    minus: list[float] = []
    log_binomial, sign = 0.0, 1
    for k in range(_MOST_TERMS):
        j = a - k
        below = log_binomial + k * math.log(q) + j * math.log1p(-q) + (k * k - k) / (2 * sigma**2)
        below += _log_half_erfc((k - crossing) / (math.sqrt(2) * sigma))
        above = log_binomial + j * math.log(q) + k * math.log1p(-q) + (j * j - j) / (2 * sigma**2)
        above += _log_half_erfc((crossing - j) / (math.sqrt(2) * sigma))
        (plus if sign > 0 else minus).extend((below, above))
        if max(below, above) < _NEGLIGIBLE:
            break
        factor = (a - k) / (k + 1)
        log_binomial, sign = log_binomial + math.log(abs(factor)), sign if factor > 0 else -sign
    total = _log_sum(plus)
    return total if not minus else total + math.log1p(-math.exp(_log_sum(minus) - total))


def _log_half_erfc(x: float) -> float:
    """log(erfc(x) / 2), also where erfc underflows: there by its asymptotic series."""
    if x < 25:
        return math.log(math.erfc(x) / 2)
    return -x * x - math.log(2 * x) - 0.5 * math.log(math.pi) + math.log1p(-0.5 / x**2 + 0.75 / x**4)
