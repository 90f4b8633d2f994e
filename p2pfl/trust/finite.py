"""One aggregation of rows that are finite: distances, pre-aggregation, rule, sum.

`n` rows of `d` parameters, `f` of them Byzantine.  Every precision has its limits: what does not fit in it
shows as a value that is not finite, and `solve` then says None.  What to do about that is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from p2pfl.trust import coordinates, gram, selection
from p2pfl.trust.gram import Floats, Rows, Vector
from p2pfl.trust.rules import ANCHORED, COORDINATES, PAIRWISE
from p2pfl.trust.screening import norm

__all__ = ["Task", "solve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One aggregation of finite rows: what `weigh` was given, after its checks."""

    pre: str
    name: str
    options: Mapping[str, Any]
    rows: Rows
    f: int
    anchor: Vector | None
    # The row that is the anchor, None if there is none.
    own: int | None
    # Mixing weights, (n,), of the rules that take them.
    weights: Floats
    wide: bool
    explain: bool


def solve(task: Task) -> tuple[Vector, Floats] | None:
    """The vector and the rows' weights, (n,), or None when something is not finite in this precision."""
    anchor, rows = task.anchor, task.rows
    if task.name == "fltrust":
        return _fltrust(task)
    k = len(rows)
    between, a = None, None
    if task.pre == "nnm" or task.name in PAIRWISE or (task.pre and task.name in ANCHORED):
        points = list(rows)
        if anchor is not None:
            a = task.own if task.own is not None else k
            points += [anchor] if a == k else []
        between = gram.squares(points, start=a or 0, wide=task.wide)
        if not np.isfinite(between).all():
            return None
    mixing = _mixing(task, between)
    weights = task.weights
    if mixing is not None:
        weights = weights if task.pre == "nnm" else (mixing > 0) @ weights
        if between is not None:
            lifted = np.zeros((len(mixing) + (a is not None), len(between)))
            lifted[: len(mixing), :k] = mixing
            if a is not None:
                lifted[-1, a] = 1.0
                a = len(mixing)
            between = gram.mixed_squares(between, lifted)
    if task.name in COORDINATES or task.name == "bulyan":
        return _by_coordinate(task, mixing, between)
    count = k if mixing is None else len(mixing)
    if task.name in ANCHORED:
        assert anchor is not None
        if between is None:
            squared = gram.squares_to(rows, anchor, wide=task.wide)
            if not np.isfinite(squared).all():
                return None
        else:
            squared = between[a, :count]
        own = task.own if mixing is None else None
        chosen = _around_anchor(task, np.sqrt(squared), weights, own)
    else:
        chosen = _among_points(task, between, weights, count, a)
    coefficients = chosen if mixing is None else chosen @ mixing
    is_anchored = anchor is not None and (task.name in ANCHORED or task.name == "centered-clipping")
    point = anchor if anchor is not None and is_anchored else rows[int(coefficients.argmax())]
    vector = gram.combine(rows, coefficients, point, wide=task.wide)
    with np.errstate(over="ignore", invalid="ignore"):
        # A sum that overflows costs another try, no more.
        if not task.wide and not np.isfinite(vector.sum()):
            return None
    if is_anchored and task.own is not None:
        coefficients = coefficients.copy()
        coefficients[task.own] += 1.0 - coefficients.sum()
    return vector, coefficients


def _mixing(task: Task, between: Floats | None) -> Floats | None:
    """The pre-aggregation as a matrix, (k, n), rows sum to 1."""
    n = len(task.rows)
    if task.pre == "nnm":
        assert between is not None
        return selection.nearest_neighbour_mixing(between[:n, :n], task.f)
    if task.pre == "bucketing":
        size, rng = int(task.options["size"]), task.options["rng"]
        order = np.arange(n) if rng is None else rng.permutation(n)
        return selection.bucket_mixing(order, size)
    return None


def _by_coordinate(task: Task, mixing: Floats | None, between: Floats | None) -> tuple[Vector, Floats] | None:
    rows, f = task.rows, task.f
    origin = np.eye(len(rows)) if mixing is None else mixing
    k = len(origin)
    match task.name:
        case "coordinate-median":
            window = coordinates.middle(k)
        case "trimmed-mean":
            window = coordinates.trimmed(k, min(f, (k - 1) // 2))
        case "meamed":
            window = coordinates.around_median(k, max(1, k - f))
        case _:
            assert between is not None
            picked = selection.bulyan_selection(between[:k, :k], f)
            window = coordinates.around_median(len(picked), max(1, len(picked) - 2 * f))
            origin = origin[picked]
            if mixing is None:
                rows = [rows[j] for j in picked]
            else:
                mixing = mixing[picked]
    averaged = coordinates.average_window(rows, window, mixing=mixing, wide=task.wide, explain=task.explain)
    return None if averaged is None else (averaged.vector, averaged.shares @ origin)


def _around_anchor(task: Task, distances: Floats, weights: Floats, own: int | None) -> Floats:
    """How far to go from the anchor to each row, (k,)."""
    options, f = task.options, task.f
    others = np.ones(len(distances))
    if own is not None:
        others[own] = 0.0
    b = float(np.sort(weights * others)[::-1][:f].sum())
    match task.name:
        case "self-centered-clipping":
            return selection.self_centered_clipping(distances, weights, b, options["tau"])
        case "cs-plus":
            return selection.clipped_sum(distances, weights, b)
        case "gts":
            return selection.trimmed_sum(distances, weights, b)
        case "monna":
            return selection.nearest_to_anchor(distances, f)
        case "ubar":
            assert own is not None
            losses, rho, count = options["losses"], options["rho"], int(others.sum())
            keep = max(1, count - f if rho is None else math.ceil(rho * count))
            chosen = selection.ubar(distances, others, losses, float(losses[own]), keep=keep)
            return (1.0 - float(options["alpha"])) * chosen
        case "balance":
            assert task.anchor is not None
            threshold = (
                options["gamma"] * math.exp(-options["kappa"] * options["progress"]) * norm(task.anchor)
            )
            return (1.0 - float(options["alpha"])) * selection.balance(distances, others, threshold)
        case _:
            return selection.norm_filter(distances, others, options["limit"])


def _among_points(task: Task, between: Floats | None, weights: Floats, k: int, a: int | None) -> Floats:
    """The weights of the k rows; they sum to 1, or leave the rest to the anchor, point `a` of `between`."""
    if task.name == "mean":
        total = weights.sum()
        return weights / total if total > 0 else np.full(k, 1.0 / k)
    assert between is not None
    among_rows = between[:k, :k]
    match task.name:
        case "krum":
            return selection.krum(among_rows, task.f)
        case "multi-krum":
            return selection.multi_krum(among_rows, task.f, task.options["m"])
        case "geometric-median":
            return selection.geometric_median(among_rows)
        case _:
            start = np.zeros(len(between))
            if a is None:
                start[:k] = selection.geometric_median(among_rows)
            else:
                start[a] = 1.0
            counted = (np.arange(len(between)) < k).astype(np.float64)
            tau, iterations = task.options["tau"], task.options["iterations"]
            return selection.centered_clipping(between, start, counted, tau=tau, iterations=iterations)[:k]


def _fltrust(task: Task) -> tuple[Vector, Floats] | None:
    """Rows as long as the anchor, weighted by the cosine between them where that is positive.

    Source: Cao et al. 2021, arXiv:2012.13995, algorithm 2, with the receiver's own update, which is among
    the rows, as the server's.
    """
    assert task.anchor is not None
    dots, squares = gram.products(task.rows, task.anchor, wide=task.wide)
    if not np.isfinite(dots).all() or not np.isfinite(squares).all():
        return None
    length = norm(task.anchor)
    lengths = np.sqrt(squares)
    scores = np.maximum(0.0, dots) / np.maximum(lengths * length, 1e-300)
    if not scores.any():
        # An anchor of length 0 has no direction that another could share.
        return task.anchor.copy(), (np.arange(len(task.rows)) == task.own).astype(np.float64)
    weights = scores / scores.sum()
    scale = np.divide(length, lengths, out=np.zeros_like(lengths), where=scores > 0)
    vector = gram.combine(task.rows, weights * scale, np.zeros_like(task.anchor), wide=task.wide)
    if task.wide:
        # A short row made as long as an anchor of 3e38 in every coordinate.
        np.nan_to_num(vector, copy=False)
    return (vector, weights) if np.isfinite(vector).all() else None
