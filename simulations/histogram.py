"""Which classes lie at which site: what a partition made of the rows, for the verdict to publish."""

from __future__ import annotations

from typing import Any

import numpy as np

from .workload import Workload

__all__ = ["class_counts"]

# Counts that a verdict lists at most: 100 classes at 160 sites, or 10 at 1,638.
_MOST_COUNTS = 1 << 14


def class_counts(workload: Workload) -> dict[str, Any] | None:
    """Training rows of each class at each site; None where the rows are not ours to count.

    `classes`: their names.   `sites`: one list of counts a site, in that order, of as many sites as make
    16,384 counts; `left_out`: how many more there are.   `rows`: mean, least and greatest, over all sites.
    `classes_held`: how many classes a site has on average.
    """
    datasets = [dataset for dataset in workload.datasets if dataset is not None]
    if workload.pooled is None or not datasets:
        return None
    C = workload.pooled.n_classes
    counts = np.stack([np.bincount(dataset.y_train, minlength=C) for dataset in datasets])
    rows, shown = counts.sum(axis=1), max(1, _MOST_COUNTS // C)
    return {
        "classes": list(workload.pooled.classes) or [str(c) for c in range(C)],
        "sites": counts[:shown].tolist(),
        "left_out": max(0, len(counts) - shown),
        "rows": {"mean": float(rows.mean()), "min": int(rows.min()), "max": int(rows.max())},
        "classes_held": float((counts > 0).sum(axis=1).mean()),
    }
