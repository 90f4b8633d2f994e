"""What one peer's training is, compiled by numba (the extra `sim`, in the files compiled*.py alone).

Functions release the interpreter's lock, so plain threads run them side by side.  Sums over a batch or a
layer may be taken in another order than written (`reassoc`, one order for a machine), and a product and a sum
in one instruction; NaN and infinity stay what they are, because a diverged fit is known by them.
Outputs of the last layer lie class by class, (o, b), so that a softmax runs over rows side by side.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from p2pfl.learn.philox import BATCHES, KEY_STEPS, MULTIPLIERS, ROUNDS

from .kernels import Drill, Rows

__all__ = ["OPTIONS", "Scratch", "block", "learn", "scratch"]

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
}
_M0, _M1 = (np.uint64(m) for m in MULTIPLIERS)
_K0, _K1 = (np.uint64(k) for k in KEY_STEPS)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_ROUNDS, _BATCHES = ROUNDS, BATCHES
_ZERO, _ONE = np.float32(0), np.float32(1)
# exp(v) = 2^n exp(r) with r = v - n ln 2: ln 2 in two parts, the first with trailing zeros, and the
# polynomial of Cephes' expf (Moshier 1989), off by 7e-8.  numba calls the C library for each number
# otherwise, which took a third of a step.
_LOG2E, _LN2_HIGH, _LN2_LOW = (np.float32(v) for v in (1.4426950408889634, 0.693359375, -2.12194440e-4))
_E = tuple(
    np.float32(v)
    for v in (
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    )
)
# exp of less is 0 to float32 beside a term of 1.
_LEAST = np.float32(-87.0)
# A product of softmax denominators is logged when it comes this far: the largest float64 is 1.8e308, and one
# denominator is at most the number of classes.
_FULL = 1e200


class Scratch(NamedTuple):
    """What fits write over: z, theta, g, v: (d,).   x, y: a batch.   A: hidden layers.   Z, P, bits, top: the
    last.   order: of the rows.
    """

    z: Any
    theta: Any
    g: Any
    v: Any
    x: Any
    y: Any
    A: Any
    Z: Any
    P: Any
    bits: Any
    top: Any
    order: Any


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


def _exponential(z: Any, bits: Any, out: Any) -> None:
    """Fill `out` with exp(z) of non-positive z.   bits: int32 scratch of that length."""
    for j in range(len(z)):
        v = z[j]
        v = max(v, _LEAST)
        n = np.floor(v * _LOG2E + np.float32(0.5))
        r = v - n * _LN2_HIGH - n * _LN2_LOW
        p = ((((_E[0] * r + _E[1]) * r + _E[2]) * r + _E[3]) * r + _E[4]) * r + _E[5]
        out[j] = p * r * r + r + _ONE
        bits[j] = (np.int32(n) + np.int32(127)) << np.int32(23)
    scale = bits.view(np.float32)
    for j in range(len(z)):
        out[j] *= scale[j]


_exponential_c = numba.njit(**OPTIONS)(_exponential)


def _affine(a: Any, W: Any, bias: Any, out: Any) -> None:
    """Fill `out` with a W' + bias.   a: (b, k).   W: (o, k).   out: (b, o), of any layout."""
    b, k = a.shape
    r = 0
    # Rows outside, classes inside: four rows of 784 and all weights stay in the first cache.
    while r + 4 <= b:
        a0, a1, a2, a3 = a[r], a[r + 1], a[r + 2], a[r + 3]
        for c in range(W.shape[0]):
            w, beta = W[c], bias[c]
            s0, s1, s2, s3 = _ZERO, _ZERO, _ZERO, _ZERO
            for f in range(k):
                v = w[f]
                s0 += v * a0[f]
                s1 += v * a1[f]
                s2 += v * a2[f]
                s3 += v * a3[f]
            out[r, c], out[r + 1, c] = s0 + beta, s1 + beta
            out[r + 2, c], out[r + 3, c] = s2 + beta, s3 + beta
        r += 4
    while r < b:
        one = a[r]
        for c in range(W.shape[0]):
            w, s = W[c], _ZERO
            for f in range(k):
                s += w[f] * one[f]
            out[r, c] = s + bias[c]
        r += 1


_affine_c = numba.njit(**OPTIONS)(_affine)


def _outer(dz: Any, a: Any, dW: Any, db: Any) -> None:
    """Add dz' a to dW and 1' dz to db.   dz: (b, o), of any layout.   a: (b, k).   dW: (o, k).   db: (o,)."""
    b, k = a.shape
    r = 0
    while r + 8 <= b:
        a0, a1, a2, a3 = a[r], a[r + 1], a[r + 2], a[r + 3]
        a4, a5, a6, a7 = a[r + 4], a[r + 5], a[r + 6], a[r + 7]
        for c in range(dW.shape[0]):
            p0, p1, p2, p3 = dz[r, c], dz[r + 1, c], dz[r + 2, c], dz[r + 3, c]
            p4, p5, p6, p7 = dz[r + 4, c], dz[r + 5, c], dz[r + 6, c], dz[r + 7, c]
            g = dW[c]
            for f in range(k):
                g[f] += (
                    p0 * a0[f] + p1 * a1[f] + p2 * a2[f] + p3 * a3[f]
                    + p4 * a4[f] + p5 * a5[f] + p6 * a6[f] + p7 * a7[f]
                )  # fmt: skip
            db[c] += p0 + p1 + p2 + p3 + p4 + p5 + p6 + p7
        r += 8
    while r < b:
        one = a[r]
        for c in range(dW.shape[0]):
            p, g = dz[r, c], dW[c]
            for f in range(k):
                g[f] += p * one[f]
            db[c] += p
        r += 1


_outer_c = numba.njit(**OPTIONS)(_outer)


def _softmax(Z: Any, P: Any, bits: Any, top: Any, y: Any) -> Any:
    """The mean loss of logits Z, (o, b), overwritten; P becomes its derivative by them, (o, b)."""
    o, b = Z.shape
    inverse = np.float32(1.0 / b)
    if o == 1:
        loss = 0.0
        for r in range(b):
            z = Z[0, r]
            tail = np.exp(-abs(z))
            loss += max(z, _ZERO) - z * y[r] + np.log1p(tail)
            one = _ONE / (_ONE + tail)
            P[0, r] = ((one if z >= 0 else _ONE - one) - y[r]) * inverse
        return loss / b
    for r in range(b):
        top[r] = Z[0, r]
    for c in range(1, o):
        z = Z[c]
        for r in range(b):
            top[r] = max(top[r], z[r])
    for c in range(o):
        z = Z[c]
        for r in range(b):
            z[r] -= top[r]
    _exponential_c(Z.reshape(o * b), bits, P.reshape(o * b))
    for r in range(b):
        top[r] = P[0, r]
    for c in range(1, o):
        p = P[c]
        for r in range(b):
            top[r] += p[r]
    product, loss = 1.0, 0.0
    for r in range(b):
        product *= top[r]
        if product > _FULL:
            loss += np.log(product)
            product = 1.0
        top[r] = inverse / top[r]
    for c in range(o):
        p = P[c]
        for r in range(b):
            p[r] *= top[r]
    for r in range(b):
        loss -= Z[y[r], r]
        P[y[r], r] -= inverse
    return (loss + np.log(product)) / b


_softmax_c = numba.njit(**OPTIONS)(_softmax)


def _backward(
    theta: Any, g: Any, drill: Drill, xb: Any, yb: Any, A: Any, Z: Any, P: Any, bits: Any, top: Any
) -> Any:
    """The mean loss of a batch at theta; g, (d,), becomes its gradient.

    xb: (b, k).   A: hidden activations and derivatives, layer after layer, and room for the last's.
    Z, P: (o, b).
    """
    layers, places = drill.layers, drill.places
    b, last = xb.shape[0], len(layers) - 2
    below, at = xb, 0
    for layer in range(last):
        o, k = layers[layer + 1], layers[layer]
        W = theta[places[2 * layer] : places[2 * layer + 1]].reshape(o, k)
        h = A[0, at : at + b * o].reshape(b, o)
        _affine_c(below, W, theta[places[2 * layer + 1] : places[2 * layer + 2]], h)
        for r in range(b):
            one = h[r]
            for j in range(o):
                one[j] = max(one[j], _ZERO)
        below = h
        at += b * o
    o, k = layers[last + 1], layers[last]
    W = theta[places[2 * last] : places[2 * last + 1]].reshape(o, k)
    _affine_c(below, W, theta[places[2 * last + 1] : places[2 * last + 2]], Z.T)
    loss = _softmax_c(Z, P, bits, top, yb)
    g[:] = _ZERO
    _outer_c(
        P.T,
        below,
        g[places[2 * last] : places[2 * last + 1]].reshape(o, k),
        g[places[2 * last + 1] : places[2 * last + 2]],
    )
    for layer in range(last - 1, -1, -1):
        o, k, up = layers[layer + 1], layers[layer], layers[layer + 2]
        W = theta[places[2 * layer + 2] : places[2 * layer + 3]].reshape(up, o)
        h = A[0, at - b * o : at].reshape(b, o)
        dz = A[1, at - b * o : at].reshape(b, o)
        after = A[1, at : at + b * up].reshape(b, up)
        for r in range(b):
            one, held = dz[r], h[r]
            one[:] = _ZERO
            for c in range(up):
                p = P[c, r] if layer == last - 1 else after[r, c]
                w = W[c]
                for j in range(o):
                    one[j] += p * w[j]
            for j in range(o):
                one[j] = one[j] if held[j] > _ZERO else _ZERO
        at -= b * o
        below = xb if layer == 0 else A[0, at - b * k : at].reshape(b, k)
        _outer_c(
            dz,
            below,
            g[places[2 * layer] : places[2 * layer + 1]].reshape(o, k),
            g[places[2 * layer + 1] : places[2 * layer + 2]],
        )
    return loss


_backward_c = numba.njit(**OPTIONS)(_backward)


def _scratch(d: int, drill: Drill, rows: Rows) -> Scratch:
    """Room for the fits of peers whose models have d parameters."""
    k, o, most = drill.layers[0], drill.layers[-1], min(drill.batch_size, rows.table.shape[1])
    return Scratch(
        np.empty(d, np.float32),
        np.empty(d, np.float32),
        np.empty(d, np.float32),
        np.empty(d, np.float32),
        np.empty(most * k, np.float32),
        np.empty(most, np.int64),
        np.empty((2, most * (drill.layers[1:-1].sum() + o)), np.float32),
        np.empty(most * o, np.float32),
        np.empty(most * o, np.float32),
        np.empty(most * o, np.int32),
        np.empty(most, np.float32),
        np.empty(rows.table.shape[1], np.int64),
    )


scratch = numba.njit(**OPTIONS)(_scratch)


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
    """The mean loss of a fit of peer i from z = factor me, left in s.z, to s.theta; NaN where it diverged."""
    k, o, d, count = drill.layers[0], drill.layers[-1], len(me), rows.counts[i]
    b = min(drill.batch_size, count)
    xb, Z, P = s.x[: b * k].reshape(b, k), s.Z[: b * o].reshape(o, b), s.P[: b * o].reshape(o, b)
    z, theta, g, v, order = s.z, s.theta, s.g, s.v, s.order
    for j in range(d):
        z[j] = me[j] * factor
        theta[j] = z[j]
    v[:] = _ZERO
    # The first step of a fit has no momentum yet.
    is_plain = drill.decay == _ZERO and (drill.momentum == _ZERO or steps == 1)
    loss, epoch, at = 0.0, 0, count
    for _ in range(steps):
        for r in range(b):
            if at == count:
                if b < count:
                    _shuffle_c(order[:count], epoch, rows.ids[i], number, k0, k1)
                else:
                    for j in range(count):
                        order[j] = j
                epoch += 1
                at = 0
            row = rows.table[i, order[at]]
            at += 1
            s.y[r] = rows.y[row]
            one, mine = rows.x[row], xb[r]
            for f in range(k):
                mine[f] = one[f]
        loss += _backward_c(theta, g, drill, xb, s.y, s.A, Z, P, s.bits[: b * o], s.top)
        if is_plain:
            for j in range(d):
                theta[j] -= rate * g[j]
            continue
        for j in range(d):
            v[j] = drill.momentum * v[j] + g[j] + drill.decay * theta[j]
            theta[j] -= rate * v[j]
    # A sum of zeros, unless something is infinite or NaN.
    odd = _ZERO
    for j in range(d):
        odd += theta[j] * _ZERO
    return loss / max(steps, 1) if odd == _ZERO else np.nan


learn = numba.njit(**OPTIONS)(_learn)
