"""How the learning rate falls over a run."""

from math import cos, pi

from p2pfl.learn.options import OptimizerOptions

__all__ = ["rate_factor"]


def rate_factor(options: OptimizerOptions, progress: float) -> float:
    """The learning rate over its start when a share `progress`, 0..1, of the rounds is done.

    It follows the run and not the site's own steps, so a late joiner takes the network's rate.
    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, equation (5), without restarts.
    """
    if options.schedule == "constant":
        return 1.0
    return options.final + (1 - options.final) * (1 + cos(pi * min(max(progress, 0.0), 1.0))) / 2
