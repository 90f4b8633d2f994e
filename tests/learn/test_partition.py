from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import ConfigError
from p2pfl.learn.options import PartitionOptions
from p2pfl.learn.partition import Parts, by_file, dirichlet, drawn, iid, quantity, shards, split

LABELS = np.repeat(np.arange(10), 60)
FILES = np.arange(600) % 4


def _rng(seed: int = 0) -> Any:
    return np.random.default_rng(seed)


def classes_of(parts: Parts) -> Any:
    """(sites, 10): how many rows of each class each site has."""
    return np.stack([np.bincount(LABELS[part], minlength=10) for part in parts])


@given(st.sampled_from(["iid", "dirichlet", "shards", "quantity", "by-file"]), st.integers(0, 100))
def test_every_partition_holds_every_row_once_and_repeats_with_its_seed(kind: Any, seed: int) -> None:
    options = PartitionOptions(kind=kind)
    parts = split(options, LABELS, 4, _rng(seed), FILES)
    assert len(parts) == 4
    assert sorted(np.concatenate(parts).tolist()) == list(range(600))
    again = split(options, LABELS, 4, _rng(seed), FILES)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_iid_sites_differ_by_at_most_one_row() -> None:
    sizes = [len(part) for part in iid(103, 10, _rng())]
    assert max(sizes) - min(sizes) == 1


def test_dirichlet_is_even_for_a_large_alpha_and_skewed_for_a_small_one() -> None:
    even = classes_of(dirichlet(LABELS, 5, 1e6, _rng()))
    assert abs(even - 12).max() <= 1
    skewed = classes_of(dirichlet(LABELS, 5, 0.05, _rng()))
    assert (skewed.max(axis=0) > 40).mean() > 0.7


def test_every_dirichlet_site_has_its_least_rows() -> None:
    for seed in range(20):
        assert min(map(len, dirichlet(LABELS, 8, 0.3, _rng(seed), min_rows=20))) >= 20


def test_a_skew_that_cannot_reach_the_least_rows_is_refused_with_the_cure() -> None:
    with pytest.raises(ConfigError, match="raise alpha, lower min_rows"):
        dirichlet(LABELS, 20, 0.01, _rng(), min_rows=25)
    with pytest.raises(ConfigError, match="raise alpha"):
        quantity(600, 20, 0.01, _rng(), min_rows=25)


def test_two_shards_a_site_give_about_two_classes() -> None:
    counts = classes_of(shards(LABELS, 5, 2, _rng()))
    assert ((counts > 0).sum(axis=1) <= 2).all()
    assert (counts.sum(axis=1) == 120).all()


def test_quantity_skews_the_sizes_and_not_the_labels() -> None:
    parts = quantity(600, 4, 0.5, _rng(1))
    sizes = np.array([len(part) for part in parts])
    assert sizes.max() > 2 * sizes.min()
    largest = classes_of(parts)[sizes.argmax()] / sizes.max()
    assert abs(largest - 0.1).max() < 0.06


def test_files_become_sites_and_their_number_must_fit() -> None:
    parts = by_file(FILES, 4)
    assert [set(FILES[part]) for part in parts] == [{0}, {1}, {2}, {3}]
    with pytest.raises(ConfigError, match="finds 4 files for 5 sites"):
        by_file(FILES, 5)
    with pytest.raises(ConfigError, match="one file a site"):
        split(PartitionOptions(kind="by-file"), LABELS, 4, _rng())


def test_values_of_a_column_become_sites() -> None:
    groups = np.array([2, 0, 1, 0, 2, 2])
    options = PartitionOptions(kind="by-column", column="ward")
    parts = split(options, np.zeros(6), 3, _rng(), groups=groups)
    assert [part.tolist() for part in parts] == [[1, 3], [2], [0, 4, 5]]
    with pytest.raises(ConfigError, match="finds 3 values of 'ward' among the training rows for 4 sites"):
        split(options, np.zeros(6), 4, _rng(), groups=groups)
    with pytest.raises(ConfigError, match="needs a csv source that has the column"):
        split(options, LABELS, 4, _rng())


@pytest.mark.parametrize("table", [{"kind": "by-column"}, {"kind": "iid", "column": "ward"}])
def test_a_column_goes_with_its_kind(table: dict[str, str]) -> None:
    with pytest.raises(msgspec.ValidationError, match="other kinds take none"):
        msgspec.convert(table, PartitionOptions)


def test_more_sites_than_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 rows cannot give 4"):
        iid(3, 4, _rng())
    with pytest.raises(ConfigError, match="cannot give"):
        dirichlet(LABELS, 301, 1.0, _rng(), min_rows=2)


def test_drawn_rows_are_of_few_classes_and_follow_from_a_site_s_number() -> None:
    rows = drawn(LABELS, np.arange(4000), 9, 2, seed=3)
    assert (np.diff(rows, axis=1) > 0).all()
    counts = classes_of(list(rows))
    assert {tuple(sorted(row[row > 0])) for row in counts} == {(4, 5)}
    # Every class and every row is somebody's, about as often.
    assert counts.sum(axis=0) == pytest.approx(np.full(10, 3600), rel=0.15)
    assert len(np.unique(rows)) == len(LABELS)
    np.testing.assert_array_equal(drawn(LABELS, np.array([250, 3]), 9, 2, seed=3), rows[[250, 3]])
    assert (drawn(LABELS, np.arange(4000), 9, 2, seed=4) != rows).any(axis=1).mean() > 0.99


def test_drawn_partitions_share_rows_and_refuse_what_the_data_lack() -> None:
    options = PartitionOptions(kind="drawn", rows=40, classes=3)
    parts = split(options, LABELS, 900, _rng())
    assert {len(part) for part in parts} == {40}
    assert (classes_of(parts) > 0).sum(axis=1).tolist() == [3] * 900
    for rows, classes in ((16, 11), (122, 2), (1, 2)):
        with pytest.raises(ConfigError, match="lower rows or classes"):
            drawn(LABELS, np.arange(3), rows, classes, seed=0)
