"""Which classes lie at which site, as a verdict has it."""

from typing import Any

import numpy as np
import pytest
from populations import workload

from p2pfl.learn.data import Dataset
from p2pfl.simulations import histogram
from p2pfl.simulations.histogram import class_counts
from p2pfl.simulations.workload import Workload


def site(*labels: int) -> Dataset:
    y = np.array(labels, np.int64)
    x = np.zeros((len(y), 1), np.float32)
    return Dataset(x_train=x, y_train=y, x_test=x, y_test=y, n_classes=3)


def sites(*datasets: Any, pooled: Dataset | None) -> Workload:
    made = workload(len(datasets), datasets=datasets)
    return Workload(factory=made.factory, datasets=made.datasets, sources=made.sources, pooled=pooled)


def test_training_rows_are_counted_by_site_and_class() -> None:
    found = class_counts(sites(site(0, 0, 2), site(1), pooled=site(0, 1, 2)))
    assert found == {
        "classes": ["0", "1", "2"],
        "sites": [[2, 0, 1], [0, 1, 0]],
        "left_out": 0,
        "rows": {"mean": 2.0, "min": 1, "max": 3},
        "classes_held": 1.5,
    }


def test_many_sites_are_not_all_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histogram, "_MOST_COUNTS", 7)
    found = class_counts(sites(*[site(0, 1)] * 5, pooled=site(0, 1, 2)))
    assert found is not None
    assert (len(found["sites"]), found["left_out"], found["rows"]["mean"]) == (2, 3, 2.0)


def test_rows_that_are_not_ours_are_not_counted() -> None:
    assert class_counts(sites(None, None, pooled=None)) is None
