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


def _affine(
    x: Any, k: int, at: Any, theta: Any, first: int, o: int, factor: Any, out: Any, down: int, across: int
) -> None:
    """Let out[r down + c across] be factor (a W' + bias)[r, c] of rows a = `at` of x.

    x: (. k,), rows of k behind each other.   at: (b,).   W: (o, k) from theta[first] on, then bias, (o,).
    """
    b = len(at)
    # Two rows by five classes are seven loads for ten products; of an odd batch the last row comes twice.
    for r in range(0, b, 2):
        q = min(r + 1, b - 1)
        one, two = x[at[r] * k : at[r] * k + k], x[at[q] * k : at[q] * k + k]
        c = 0
        while c + 5 <= o:
            w = first + c * k
            w0, w1, w2 = theta[w : w + k], theta[w + k : w + 2 * k], theta[w + 2 * k : w + 3 * k]
            w3, w4 = theta[w + 3 * k : w + 4 * k], theta[w + 4 * k : w + 5 * k]
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
            y = r * down + c * across
            out[y], out[y + across], out[y + 2 * across] = s0, s1, s2
            out[y + 3 * across], out[y + 4 * across] = s3, s4
            y = q * down + c * across
            out[y], out[y + across], out[y + 2 * across] = t0, t1, t2
            out[y + 3 * across], out[y + 4 * across] = t3, t4
            c += 5
        while c < o:
            w0, s0, t0 = theta[first + c * k : first + (c + 1) * k], _ZERO, _ZERO
            for f in range(k):
                s0 += one[f] * w0[f]
                t0 += two[f] * w0[f]
            out[r * down + c * across], out[q * down + c * across] = s0, t0
            c += 1
    for c in range(o):
        beta = theta[first + o * k + c]
        for r in range(b):
            out[r * down + c * across] = factor * (out[r * down + c * across] + beta)


affine = numba.njit(**OPTIONS)(_affine)


def _outer(
    dz: Any, down: int, across: int, x: Any, k: int, at: Any, factor: Any, theta: Any, first: int, o: int
) -> Any:
    """Add factor dz' a to W and factor 1' dz to its bias, a being rows `at` of x.  0: all is finite.

    dz: (b, o) as out of `affine`; theta, x, at as there.
    """
    b, last = len(at), first + o * k
    # A sum of zeros, unless something is infinite or NaN.
    r, odd = 0, _ZERO
    while r + 8 <= b:
        a0, a1 = x[at[r] * k : at[r] * k + k], x[at[r + 1] * k : at[r + 1] * k + k]
        a2, a3 = x[at[r + 2] * k : at[r + 2] * k + k], x[at[r + 3] * k : at[r + 3] * k + k]
        a4, a5 = x[at[r + 4] * k : at[r + 4] * k + k], x[at[r + 5] * k : at[r + 5] * k + k]
        a6, a7 = x[at[r + 6] * k : at[r + 6] * k + k], x[at[r + 7] * k : at[r + 7] * k + k]
        for c in range(o):
            y = r * down + c * across
            p0, p1 = factor * dz[y], factor * dz[y + down]
            p2, p3 = factor * dz[y + 2 * down], factor * dz[y + 3 * down]
            p4, p5 = factor * dz[y + 4 * down], factor * dz[y + 5 * down]
            p6, p7 = factor * dz[y + 6 * down], factor * dz[y + 7 * down]
            theta[last + c] += p0 + p1 + p2 + p3 + p4 + p5 + p6 + p7
            w = theta[first + c * k : first + (c + 1) * k]
            for f in range(k):
                v = (
                    w[f] + p0 * a0[f] + p1 * a1[f] + p2 * a2[f] + p3 * a3[f]
                    + p4 * a4[f] + p5 * a5[f] + p6 * a6[f] + p7 * a7[f]
                )  # fmt: skip
                w[f] = v
                odd += v * _ZERO
        r += 8
    if r + 4 <= b:
        a0, a1 = x[at[r] * k : at[r] * k + k], x[at[r + 1] * k : at[r + 1] * k + k]
        a2, a3 = x[at[r + 2] * k : at[r + 2] * k + k], x[at[r + 3] * k : at[r + 3] * k + k]
        for c in range(o):
            y = r * down + c * across
            p0, p1 = factor * dz[y], factor * dz[y + down]
            p2, p3 = factor * dz[y + 2 * down], factor * dz[y + 3 * down]
            theta[last + c] += p0 + p1 + p2 + p3
            w = theta[first + c * k : first + (c + 1) * k]
            for f in range(k):
                v = w[f] + p0 * a0[f] + p1 * a1[f] + p2 * a2[f] + p3 * a3[f]
                w[f] = v
                odd += v * _ZERO
        r += 4
    while r < b:
        a0 = x[at[r] * k : at[r] * k + k]
        for c in range(o):
            p0 = factor * dz[r * down + c * across]
            theta[last + c] += p0
            w = theta[first + c * k : first + (c + 1) * k]
            for f in range(k):
                v = w[f] + p0 * a0[f]
                w[f] = v
                odd += v * _ZERO
        r += 1
    for c in range(o):
        odd += theta[last + c] * _ZERO
    return odd


outer = numba.njit(**OPTIONS)(_outer)


def _softmax(Z: Any, P: Any, bits: Any, top: Any, y: Any, o: int, b: int) -> Any:
    """The mean loss of logits Z, (o b,) class by class, overwritten; P becomes its derivative by them."""
    inverse = np.float32(1.0 / b)
    if o == 1:
        loss = 0.0
        for r in range(b):
            z = Z[r]
            tail = np.exp(-abs(z))
            loss += max(z, _ZERO) - z * y[r] + np.log1p(tail)
            one = _ONE / (_ONE + tail)
            P[r] = ((one if z >= 0 else _ONE - one) - y[r]) * inverse
        return loss / b
    for r in range(b):
        top[r] = Z[r]
    for c in range(1, o):
        row = Z[c * b : (c + 1) * b]
        for r in range(b):
            top[r] = max(top[r], row[r])
    for c in range(o):
        row = Z[c * b : (c + 1) * b]
        for r in range(b):
            row[r] -= top[r]
    exponential(Z[: o * b], bits, P)
    for r in range(b):
        top[r] = P[r]
    for c in range(1, o):
        row = P[c * b : (c + 1) * b]
        for r in range(b):
            top[r] += row[r]
    product, loss = 1.0, 0.0
    for r in range(b):
        product *= top[r]
        if product > _FULL:
            loss += np.log(product)
            product = 1.0
        top[r] = inverse / top[r]
    for c in range(o):
        row = P[c * b : (c + 1) * b]
        for r in range(b):
            row[r] *= top[r]
    for r in range(b):
        loss -= Z[y[r] * b + r]
        P[y[r] * b + r] -= inverse
    return (loss + np.log(product)) / b


softmax = numba.njit(**OPTIONS)(_softmax)
