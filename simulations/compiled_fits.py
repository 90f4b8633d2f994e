"""What one peer's training is, compiled by numba (the extra `sim`, in the files compiled*.py alone).

What may differ in the last bit is said in compiled_layers.py.
A step of plain descent goes into the parameters as its derivatives are found, layer by layer from the last,
and there is no gradient.  Where it is the only step of a model with one layer, no parameter is copied either:
`learn` leaves derivatives by the outputs, and `add` adds what follows from them to whatever row it is due.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from p2pfl.learn.philox import BATCHES, KEY_STEPS, MULTIPLIERS, ROUNDS

from .compiled_layers import OPTIONS, affine, outer, softmax
from .kernels import Drill, Rows

__all__ = ["OPTIONS", "Scratch", "add", "block", "learn", "scratch"]

_M0, _M1 = (np.uint64(m) for m in MULTIPLIERS)
_K0, _K1 = (np.uint64(k) for k in KEY_STEPS)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_ROUNDS, _BATCHES = ROUNDS, BATCHES
_ZERO, _ONE = np.float32(0), np.float32(1)


class Scratch(NamedTuple):
    """What fits write over, and x: all rows, one behind the other.

    z, theta, g, v: (d,).   at, y: a batch's rows and labels.   A: hidden layers and derivatives by them.
    Z, P, bits, top: the last, class by class.   order: of a peer's rows.   straight: 0, 1, ...
    """

    x: Any
    z: Any
    theta: Any
    g: Any
    v: Any
    at: Any
    y: Any
    A: Any
    Z: Any
    P: Any
    bits: Any
    top: Any
    order: Any
    straight: Any


def _block(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    for _ in range(_ROUNDS):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _K0) & _LOW, (k1 + _K1) & _LOW
    return c0, c1, c2, c3


block = numba.njit(**OPTIONS)(_block)


def _shuffle(order: Any, epoch: int, peer: int, number: int, k0: Any, k1: Any) -> None:
    """order, (c,), becomes the epoch's permutation of 0..c-1; see philox.shuffled."""
    count = len(order)
    for j in range(count):
        order[j] = j
    word = np.uint64(epoch) * np.uint64(count)
    c1, c2, c3 = np.uint64(peer), np.uint64(number), np.uint64(_BATCHES)
    at = np.uint64(0xFFFFFFFFFFFFFFFF)
    w0 = w1 = w2 = w3 = np.uint64(0)
    for j in range(count - 1, 0, -1):
        if word >> np.uint64(2) != at:
            at = word >> np.uint64(2)
            w0, w1, w2, w3 = block(at, c1, c2, c3, k0, k1)
        lane = word & np.uint64(3)
        drawn = w0 if lane == 0 else w1 if lane == 1 else w2 if lane == 2 else w3
        other = np.int64((drawn * np.uint64(j + 1)) >> _HALF)
        order[j], order[other] = order[other], order[j]
        word += np.uint64(1)


_shuffle_c = numba.njit(**OPTIONS)(_shuffle)


def _forward(theta: Any, factor: Any, drill: Drill, at: Any, s: Scratch) -> Any:
    """The mean loss of rows `at`; s.P becomes its derivative by the logits.

    factor: of the parameters, 1 where there are hidden layers.
    """
    layers, b, last = drill.layers, len(at), len(drill.layers) - 2
    below, those, end = s.x, at, 0
    for layer in range(last):
        o = layers[layer + 1]
        h = s.A[0, end : end + b * o]
        affine(below, layers[layer], those, theta, drill.places[2 * layer], o, factor, h, o, 1)
        for j in range(b * o):
            h[j] = max(h[j], _ZERO)
        below, those = h, s.straight[:b]
        end += b * o
    o = layers[last + 1]
    affine(below, layers[last], those, theta, drill.places[2 * last], o, factor, s.Z, 1, b)
    return softmax(s.Z, s.P, s.bits, s.top, s.y, o, b)


_forward_c = numba.njit(inline="always", **OPTIONS)(_forward)


def _backward(theta: Any, out: Any, factor: Any, drill: Drill, at: Any, s: Scratch) -> Any:
    """Add factor times the gradient at theta, as `_forward` left it, to `out`, (d,), which may be theta.

    0 where all of it is finite then.
    """
    layers, b, last, odd = drill.layers, len(at), len(drill.layers) - 2, _ZERO
    # The derivatives by what a layer gives, and how far apart two rows and two classes are in them.
    dz, down, across = s.P, 1, b
    end = 0
    for layer in range(last):
        end += b * layers[layer + 1]
    for layer in range(last, 0, -1):
        o, k, first = layers[layer + 1], layers[layer], drill.places[2 * layer]
        end -= b * k
        h, dh = s.A[0, end : end + b * k], s.A[1, end : end + b * k]
        for r in range(b):
            one, held = dh[r * k : (r + 1) * k], h[r * k : (r + 1) * k]
            one[:] = _ZERO
            for c in range(o):
                p, w = dz[r * down + c * across], theta[first + c * k : first + (c + 1) * k]
                for j in range(k):
                    one[j] += p * w[j]
            for j in range(k):
                one[j] = one[j] if held[j] > _ZERO else _ZERO
        odd += outer(dz, down, across, h, k, s.straight[:b], factor, out, first, o)
        dz, down, across = dh, k, 1
    return odd + outer(dz, down, across, s.x, layers[0], at, factor, out, drill.places[0], layers[1])


_backward_c = numba.njit(inline="always", **OPTIONS)(_backward)


def _scratch(d: int, drill: Drill, rows: Rows) -> Scratch:
    """Room for the fits of peers whose models have d parameters."""
    o, most = drill.layers[-1], min(drill.batch_size, rows.table.shape[1])
    return Scratch(
        rows.x.reshape(rows.x.size),
        np.empty(d, np.float32),
        np.empty(d, np.float32),
        np.empty(d, np.float32),
        np.empty(d, np.float32),
        np.empty(most, np.int64),
        np.empty(most, np.int64),
        np.empty((2, most * (drill.layers[1:-1].sum() + o)), np.float32),
        np.empty(most * o, np.float32),
        np.empty(most * o, np.float32),
        np.empty(most * o, np.int32),
        np.empty(most, np.float32),
        np.empty(rows.table.shape[1], np.int64),
        np.arange(rows.table.shape[1]),
    )


scratch = numba.njit(**OPTIONS)(_scratch)


def _is_single(steps: int, drill: Drill) -> bool:
    """Whether a fit is a step of plain descent of one layer.  The first step of a fit has no momentum yet."""
    return bool(steps == 1 and len(drill.layers) == 2 and drill.decay == _ZERO)


_is_single_c = numba.njit(inline="always", **OPTIONS)(_is_single)


def _learn(
    me: Any,
    factor: Any,
    i: int,
    steps: int,
    drill: Drill,
    rows: Rows,
    rate: Any,
    number: int,
    k0: Any,
    k1: Any,
    s: Scratch,
) -> Any:
    """The mean loss of a fit of peer i from z = factor me; NaN where it diverged.  `add` adds the rest."""
    d, count = len(me), rows.counts[i]
    at = s.at[: min(drill.batch_size, count)]
    b = len(at)
    z, theta, g, v, order = s.z, s.theta, s.g, s.v, s.order
    is_single = _is_single_c(steps, drill)
    is_plain = drill.decay == _ZERO and (drill.momentum == _ZERO or steps == 1)
    if not is_single:
        for j in range(d):
            z[j] = me[j] * factor
            theta[j] = z[j]
        if not is_plain:
            v[:] = _ZERO
    loss, epoch, drawn, odd = 0.0, 0, count, _ZERO
    for _ in range(steps):
        for r in range(b):
            if drawn == count:
                if b < count:
                    _shuffle_c(order[:count], epoch, rows.ids[i], number, k0, k1)
                else:
                    order[:count] = s.straight[:count]
                epoch += 1
                drawn = 0
            at[r] = rows.table[i, order[drawn]]
            s.y[r] = rows.y[at[r]]
            drawn += 1
        if is_single:
            return _forward_c(me, factor, drill, at, s)
        loss += _forward_c(theta, _ONE, drill, at, s)
        if is_plain:
            odd = _backward_c(theta, theta, -rate, drill, at, s)
            continue
        g[:] = _ZERO
        _backward_c(theta, g, _ONE, drill, at, s)
        for j in range(d):
            v[j] = drill.momentum * v[j] + g[j] + drill.decay * theta[j]
            theta[j] -= rate * v[j]
        odd = _ZERO
        for j in range(d):
            odd += theta[j] * _ZERO
    return loss / max(steps, 1) if odd == _ZERO else np.nan


learn = numba.njit(inline="always", **OPTIONS)(_learn)


def _add(out: Any, gain: Any, i: int, steps: int, drill: Drill, rows: Rows, rate: Any, s: Scratch) -> bool:
    """Add gain (fit(z) - z) of the fit that was just learned to a row, (d,).

    False where that makes the row infinite; then it is of no use.
    """
    if not _is_single_c(steps, drill):
        for j in range(len(out)):
            out[j] += gain * (s.theta[j] - s.z[j])
        return True
    at = s.at[: min(drill.batch_size, rows.counts[i])]
    return bool(_backward_c(out, out, -(gain * rate), drill, at, s) == _ZERO)


add = numba.njit(inline="always", **OPTIONS)(_add)
