"""What a layer of every built-in model is for one peer's batch, compiled by numba.

Functions release the interpreter's lock, so plain threads run them side by side.  Sums over a batch or a
layer may be taken in another order than written (`reassoc`, one order for a machine), and a product and a sum
in one instruction; NaN and infinity stay what they are, because a diverged fit is known by them.
A batch is given as places in a matrix of rows, and not copied.  Outputs of the last layer lie class by class,
(o, b), so that a softmax runs over rows side by side.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

__all__ = ["OPTIONS", "affine", "exponential", "outer", "softmax"]

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
}
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


exponential = numba.njit(**OPTIONS)(_exponential)


def _affine(x: Any, at: Any, W: Any, bias: Any, factor: Any, out: Any) -> None:
    """Fill `out` with factor (a W' + bias), a being rows `at` of x.

    x: (., k).   at: (b,).   W: (o, k).   out: (b, o), of any layout.
    """
    b, (o, k) = len(at), W.shape
    # Two rows by five classes are seven loads for ten products; of an odd batch the last row comes twice.
    for r in range(0, b, 2):
        q = min(r + 1, b - 1)
        one, two = x[at[r]], x[at[q]]
        c = 0
        while c + 5 <= o:
            w0, w1, w2, w3, w4 = W[c], W[c + 1], W[c + 2], W[c + 3], W[c + 4]
            s0, s1, s2, s3, s4 = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
            t0, t1, t2, t3, t4 = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
            for f in range(k):
                u, v = one[f], two[f]
                s0 += u * w0[f]
                s1 += u * w1[f]
                s2 += u * w2[f]
                s3 += u * w3[f]
                s4 += u * w4[f]
                t0 += v * w0[f]
                t1 += v * w1[f]
                t2 += v * w2[f]
                t3 += v * w3[f]
                t4 += v * w4[f]
            out[r, c], out[r, c + 1], out[r, c + 2], out[r, c + 3], out[r, c + 4] = s0, s1, s2, s3, s4
            out[q, c], out[q, c + 1], out[q, c + 2], out[q, c + 3], out[q, c + 4] = t0, t1, t2, t3, t4
            c += 5
        while c < o:
            w, s, t = W[c], _ZERO, _ZERO
            for f in range(k):
                s += one[f] * w[f]
                t += two[f] * w[f]
            out[r, c], out[q, c] = s, t
            c += 1
    for c in range(o):
        beta = bias[c]
        for r in range(b):
            out[r, c] = factor * (out[r, c] + beta)


affine = numba.njit(**OPTIONS)(_affine)


def _outer(dz: Any, x: Any, at: Any, factor: Any, W: Any, bias: Any) -> Any:
    """Add factor dz' a to W and factor 1' dz to bias, a being rows `at` of x.  0 where all are finite then.

    dz: (b, o), of any layout.   x: (., k).   at: (b,).   W: (o, k).   bias: (o,).
    """
    b, (o, k) = len(at), W.shape
    # A sum of zeros, unless something is infinite or NaN.
    r, odd = 0, _ZERO
    while r + 8 <= b:
        a0, a1, a2, a3 = x[at[r]], x[at[r + 1]], x[at[r + 2]], x[at[r + 3]]
        a4, a5, a6, a7 = x[at[r + 4]], x[at[r + 5]], x[at[r + 6]], x[at[r + 7]]
        for c in range(o):
            p0, p1, p2, p3 = dz[r, c], dz[r + 1, c], dz[r + 2, c], dz[r + 3, c]
            p4, p5, p6, p7 = dz[r + 4, c], dz[r + 5, c], dz[r + 6, c], dz[r + 7, c]
            bias[c] += factor * (p0 + p1 + p2 + p3 + p4 + p5 + p6 + p7)
            p0, p1, p2, p3 = factor * p0, factor * p1, factor * p2, factor * p3
            p4, p5, p6, p7 = factor * p4, factor * p5, factor * p6, factor * p7
            w = W[c]
            for f in range(k):
                v = (
                    w[f] + p0 * a0[f] + p1 * a1[f] + p2 * a2[f] + p3 * a3[f]
                    + p4 * a4[f] + p5 * a5[f] + p6 * a6[f] + p7 * a7[f]
                )  # fmt: skip
                w[f] = v
                odd += v * _ZERO
        r += 8
    if r + 4 <= b:
        a0, a1, a2, a3 = x[at[r]], x[at[r + 1]], x[at[r + 2]], x[at[r + 3]]
        for c in range(o):
            p0, p1, p2, p3 = dz[r, c], dz[r + 1, c], dz[r + 2, c], dz[r + 3, c]
            bias[c] += factor * (p0 + p1 + p2 + p3)
            p0, p1, p2, p3 = factor * p0, factor * p1, factor * p2, factor * p3
            w = W[c]
            for f in range(k):
                v = w[f] + p0 * a0[f] + p1 * a1[f] + p2 * a2[f] + p3 * a3[f]
                w[f] = v
                odd += v * _ZERO
        r += 4
    while r < b:
        one = x[at[r]]
        for c in range(o):
            p, w = factor * dz[r, c], W[c]
            bias[c] += p
            for f in range(k):
                v = w[f] + p * one[f]
                w[f] = v
                odd += v * _ZERO
        r += 1
    for c in range(o):
        odd += bias[c] * _ZERO
    return odd


outer = numba.njit(**OPTIONS)(_outer)


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
    exponential(Z.reshape(o * b), bits, P.reshape(o * b))
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


softmax = numba.njit(**OPTIONS)(_softmax)
