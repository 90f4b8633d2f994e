"""Stochastic gradient descent with momentum on perceptrons: one of a site, or those of many sites at once.

`m` networks, `d` parameters of each, `b` rows a batch, `k` features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import LearnerError
from p2pfl.learn.options import OptimizerOptions
from p2pfl.learn.perceptron import Perceptron

__all__ = ["Course", "descend", "descend_by", "diverged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What a fit does, but for its rows and its draws: fits of equal courses can be done together."""

    layers: tuple[int, ...]
    batch_size: int
    local_steps: int
    optimizer: OptimizerOptions


def descend(
    net: Perceptron,
    v: NDArray[np.float32],
    options: OptimizerOptions,
    rate: np.float32,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    order: NDArray[np.int64],
    should_stop: Callable[[], bool],
) -> list[NDArray[np.float64]]:
    """Move `net.theta` and the momentum `v`, (m, d), one step a batch, until `should_stop`.

    x: (rows, k), y: (rows,), of all networks.   order: (steps, m, b) row numbers.
    returns: for each step taken the mean loss of each network's batch before it, (m,).  What diverges becomes
    infinite or NaN in place, and nothing is raised.
    v <- mu v + g,  theta <- theta - eta v: heavy ball (Polyak 1964) in the form of torch.optim.SGD.
    """
    x_batch = np.empty((*order.shape[1:], x.shape[1]), np.float32)
    y_batch = np.empty(order.shape[1:], np.int64)

    def backward(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        # "clip" lets numpy write straight into the buffer; row numbers are in range by construction.
        np.take(x, rows, axis=0, out=x_batch, mode="clip")
        np.take(y, rows, out=y_batch, mode="clip")
        return net.backward(x_batch, y_batch)

    return descend_by(backward, net, v, options, rate, order, should_stop)


def descend_by(
    backward: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    net: Perceptron,
    v: NDArray[np.float32],
    options: OptimizerOptions,
    rate: np.float32,
    order: NDArray[np.int64],
    should_stop: Callable[[], bool],
) -> list[NDArray[np.float64]]:
    """As `descend`, on any loss: `backward(rows)` leaves its derivative in `net.gradient` and gives it, (m,).

    rows: (m, b), one step's part of `order`.
    """
    mu, decay = np.float32(options.momentum), np.float32(options.weight_decay)
    step = np.empty_like(v)
    losses = []
    with np.errstate(over="ignore", invalid="ignore"):
        for rows in order:
            if should_stop():
                break
            losses.append(backward(rows))
            v *= mu
            v += net.gradient
            if decay:
                np.multiply(net.theta, decay, out=step)
                v += step
            np.multiply(v, rate, out=step)
            net.theta -= step
    return losses


def diverged(options: OptimizerOptions) -> LearnerError:
    """What to tell a site whose parameters are no longer finite."""
    return LearnerError(
        f"training diverged at learning rate {options.lr:g}; lower optimizer.lr or set standardise"
    )
