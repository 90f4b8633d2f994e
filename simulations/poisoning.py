"""Attacks on data: a Byzantine site trains honestly, on rows that are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError
from p2pfl.learn.data import Dataset
from p2pfl.learn.learner import Site
from p2pfl.run import RunSpec

from .attacks import DATA_KINDS, AttackOptions
from .workload import Workload

__all__ = ["byzantine_site", "poisoned", "triggered"]

# Keeps the draw apart from every other use of a run's seed: "pois" in ASCII.
_PURPOSE = 0x706F6973
# Rows that carry the trigger, unless the options say otherwise: the model must learn both tasks.
_FRACTION = 0.5
# The trigger is a square of so many pixels a side, or so many columns.
_TRIGGER = 3


def byzantine_site(workload: Workload, attack: AttackOptions, spec: RunSpec, number: int) -> Site:
    """The site of Byzantine peer `number` (0, 1, ...): a copy of an honest one's, poisoned if the attack is.

    Data are partitioned over the honest, so that attackers take none from them.
    Raises ConfigError when the rows are not ours to poison.
    """
    honest = len(workload.datasets)
    site = workload.site(number % honest, spec, peer=honest + number)
    if attack.kind not in DATA_KINDS:
        return site
    if not isinstance(site.dataset, Dataset):
        raise ConfigError(
            f'simulation.attack.kind = "{attack.kind}" poisons rows, which learner.module reads by itself;'
            " choose a built-in model"
        )
    rng = np.random.default_rng([spec.run.seed, _PURPOSE, number])
    return replace(site, dataset=poisoned(site.dataset, attack, rng))


def poisoned(dataset: Dataset, attack: AttackOptions, rng: np.random.Generator) -> Dataset:
    """`dataset` with some of its training rows poisoned.

    label-flip: class y becomes C - 1 - y.   The others: a trigger on the row, and the target's label.
    Sources: Fang et al. 2020, arXiv:1911.11815 (labels); Gu et al. 2017, arXiv:1708.06733 (trigger).
    Raises ConfigError when the target is no class of the data.
    """
    target = attack.target or 0
    if target >= dataset.n_classes:
        raise ConfigError(
            f"simulation.attack.target is {target}, and the data have {dataset.n_classes} classes"
        )
    flips = attack.kind == "label-flip"
    fraction = attack.fraction or (1.0 if flips else _FRACTION)
    n = len(dataset.y_train)
    rows = np.sort(rng.permutation(n)[: max(1, round(fraction * n))])
    x, y = dataset.x_train.copy(), dataset.y_train.copy()
    if flips:
        y[rows] = dataset.n_classes - 1 - y[rows]
    else:
        x[rows], y[rows] = _stamped(dataset, x[rows]), target
    return replace(dataset, x_train=x, y_train=y)


def triggered(dataset: Dataset, attack: AttackOptions) -> Dataset:
    """`dataset` with test rows of all classes but the target's, under the trigger and the target's label.

    A model's accuracy on them is how often the backdoor opens.
    """
    target = attack.target or 0
    others = dataset.y_test != target
    x = _stamped(dataset, dataset.x_test[others])
    return replace(dataset, x_test=x, y_test=np.full(len(x), target, np.int64), file_test=None)


def _stamped(dataset: Dataset, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows with the trigger: the last 3 x 3 pixels of an image, or 3 columns of a table, at their most."""
    k = dataset.x_train.shape[1]
    cells = np.zeros(dataset.image or (1, 1, k), bool)
    cells[:, -_TRIGGER:, -_TRIGGER:] = True
    chosen = cells.ravel()
    stamped = x.copy()
    stamped[:, chosen] = (
        np.nanmax(dataset.x_train) if dataset.image else np.nanmax(dataset.x_train[:, chosen], axis=0)
    )
    return stamped
