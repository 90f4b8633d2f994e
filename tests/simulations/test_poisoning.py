"""Poisoned rows: which, how many, and what a trigger looks like."""

from typing import Any

import msgspec
import numpy as np
import pytest

from p2pfl.errors import ConfigError
from p2pfl.learn.data import Dataset
from p2pfl.learn.options import LearnerOptions, PartitionOptions
from p2pfl.run import RunSpec
from p2pfl.simulations.attacks import AttackOptions
from p2pfl.simulations.poisoning import byzantine_site, poisoned, triggered
from p2pfl.simulations.workload import cut


def rows(*, image: tuple[int, int, int] | None = None, k: int = 5) -> Dataset:
    rng = np.random.default_rng(1)
    return Dataset(
        x_train=rng.random((40, k), dtype=np.float32),
        y_train=np.arange(40, dtype=np.int64) % 4,
        x_test=rng.random((8, k), dtype=np.float32),
        y_test=np.arange(8, dtype=np.int64) % 4,
        n_classes=4,
        image=image,
    )


def poison(dataset: Dataset, **options: Any) -> Dataset:
    return poisoned(dataset, AttackOptions(byzantine=1, **options), np.random.default_rng(0))


def test_flipped_labels_are_the_mirror_image_and_rows_stay() -> None:
    before = rows()
    after = poison(before, kind="label-flip")
    np.testing.assert_array_equal(after.y_train, 3 - before.y_train)
    np.testing.assert_array_equal(after.x_train, before.x_train)
    np.testing.assert_array_equal(after.y_test, before.y_test)
    half = poison(before, kind="label-flip", fraction=0.5)
    assert (half.y_train != before.y_train).sum() == 20


def test_a_trigger_is_the_last_square_of_an_image_and_the_last_columns_of_a_table() -> None:
    image = rows(image=(1, 6, 6), k=36)
    changed = poison(image, kind="backdoor", target=2, fraction=0.25)
    stamped = np.flatnonzero((changed.x_train != image.x_train).any(axis=1))
    assert len(stamped) == 10
    assert (changed.y_train[stamped] == 2).all()
    pixels = changed.x_train[stamped].reshape(-1, 6, 6)
    assert (pixels[:, 3:, 3:] == image.x_train.max()).all()
    assert (changed.x_train != image.x_train).reshape(-1, 6, 6)[:, :3].sum() == 0
    table = rows()
    changed = poison(table, kind="backdoor", fraction=1.0)
    np.testing.assert_array_equal(changed.x_train[:, :2], table.x_train[:, :2])
    np.testing.assert_array_equal(changed.x_train[:, 2:], np.tile(table.x_train[:, 2:].max(axis=0), (40, 1)))


def test_the_door_is_tried_with_rows_of_all_other_classes() -> None:
    tried = triggered(rows(), AttackOptions(kind="backdoor", target=1))
    assert len(tried.x_test) == 6
    assert (tried.y_test == 1).all()
    assert len(np.unique(tried.x_test[:, 2:], axis=0)) == 1
    assert len(np.unique(tried.x_test[:, :2], axis=0)) == 6


def test_a_target_that_is_no_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="4 classes"):
        poison(rows(), kind="backdoor", target=4)


def test_attackers_copy_honest_sites_and_take_no_rows_from_them() -> None:
    table = {"model": {"kind": "logistic"}, "data": {"source": "sklearn:iris"}}
    spec = RunSpec(learner=msgspec.convert(table, LearnerOptions))
    workload = cut(spec, 2, PartitionOptions())
    honest = AttackOptions(kind="alie", byzantine=3)
    assert byzantine_site(workload, honest, spec, 2).dataset is workload.datasets[0]
    flipping = AttackOptions(kind="label-flip", byzantine=3)
    site = byzantine_site(workload, flipping, spec, 1)
    assert isinstance(site.dataset, Dataset)
    assert workload.datasets[1] is not None
    np.testing.assert_array_equal(site.dataset.y_train, 2 - workload.datasets[1].y_train)


def test_rows_that_only_the_users_code_reads_cannot_be_poisoned() -> None:
    spec = RunSpec(learner=LearnerOptions(module="tiny_learner:tiny"))
    workload = cut(spec, 2, PartitionOptions())
    with pytest.raises(ConfigError, match="built-in"):
        byzantine_site(workload, AttackOptions(kind="label-flip", byzantine=1), spec, 0)
