"""A part of a source's rows, and images made coarser."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.learn import probes
from p2pfl.learn.data import load, rows_in_order
from p2pfl.learn.learner import Site
from p2pfl.learn.options import DataOptions, LearnerOptions
from p2pfl.learn.selection import pooled, spanned


def _idx(array: Any) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    """Sources of every kind, with 20 rows that begin with their number."""
    x, y = np.arange(20, dtype=np.float32)[:, None] * [1, 10], np.arange(20) % 2
    np.savez(tmp_path / "whole.npz", x=x, y=y)
    np.savez(tmp_path / "cut.npz", x_train=x, y_train=y, x_test=-x, y_test=y)
    np.savez(tmp_path / "bare.npz", x=x)
    for name, part in (("a", slice(0, 10)), ("b", slice(10, 20))):
        rows = "\n".join(f"{v[0]},{v[1]},{c}" for v, c in zip(x[part], y[part], strict=True))
        (tmp_path / f"{name}.csv").write_text(f"one,ten,label\n{rows}\n")
    images = np.repeat(np.arange(20), 16).reshape(20, 4, 4)
    folder = tmp_path / "idx"
    folder.mkdir()
    for side, shift in (("train", 0), ("t10k", 100)):
        (folder / f"{side}-images-idx3-ubyte.gz").write_bytes(_idx(images + shift))
        (folder / f"{side}-labels-idx1-ubyte.gz").write_bytes(_idx(y))
    return {
        "npz": f"npz:{tmp_path / 'whole.npz'}",
        "cut": f"npz:{tmp_path / 'cut.npz'}",
        "bare": f"npz:{tmp_path / 'bare.npz'}",
        "csv": f"csv:{tmp_path / '*.csv'}",
        "idx": f"idx:{folder}",
    }


OPTIONS = DataOptions(label="label", scale=1.0, test_fraction=0.5)


@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_a_span_of_a_source_that_is_split_here_is_of_all_its_rows(kind: str, sources: dict[str, str]) -> None:
    found = load(f"{sources[kind]}#6-14", OPTIONS)
    first = np.concatenate([found.x_train[:, 0], found.x_test[:, 0]])
    assert sorted(first) == list(range(6, 14))
    assert len(found.x_test)


@pytest.mark.parametrize("kind", ["cut", "idx"])
def test_a_span_of_a_source_with_test_rows_leaves_those_whole(kind: str, sources: dict[str, str]) -> None:
    found = load(f"{sources[kind]}#6-14", OPTIONS)
    np.testing.assert_array_equal(found.x_train[:, 0], np.arange(6, 14))
    np.testing.assert_array_equal(found.y_train, np.arange(6, 14) % 2)
    assert len(found.x_test) == 20


@pytest.mark.parametrize("kind", ["npz", "cut", "bare", "csv", "idx"])
def test_a_probe_set_is_the_rows_in_their_order_without_their_labels(
    kind: str, sources: dict[str, str]
) -> None:
    rows = rows_in_order(f"{sources[kind]}#6-14", OPTIONS)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows[:, 0], np.arange(6, 14))
    assert len(rows_in_order(sources[kind], OPTIONS)) == 20


def test_digits_are_numbered_as_scikit_learn_has_them() -> None:
    from sklearn.datasets import load_digits

    np.testing.assert_allclose(
        rows_in_order("sklearn:digits#5-9", DataOptions()) * 16, load_digits().data[5:9]
    )


@pytest.mark.parametrize("span", ["#5-5", "#6-2"])
def test_a_span_without_a_row_is_refused(span: str) -> None:
    with pytest.raises(ConfigError, match="LAST above FIRST"):
        load(f"sklearn:iris{span}")


def test_a_span_beyond_the_end_says_how_many_rows_there_are(sources: dict[str, str]) -> None:
    for kind in ("npz", "cut", "csv", "idx"):
        with pytest.raises(ConfigError, match="20 rows"):
            load(f"{sources[kind]}#0-21", OPTIONS)


def test_a_number_sign_in_a_path_is_no_span(tmp_path: Path) -> None:
    assert spanned("npz:a#b.npz") == ("npz:a#b.npz", None)
    path = tmp_path / "#1.npz"
    np.savez(path, x=np.zeros((4, 2)), y=np.arange(4) % 2)
    assert load(f"npz:{path}", DataOptions(test_fraction=0.5)).n_classes == 2


def test_a_pooled_image_holds_the_means_of_squares() -> None:
    x = np.arange(2 * 1 * 4 * 6, dtype=np.float32).reshape(2, 24)
    small, image = pooled(x, (1, 4, 6), 2)
    assert image == (1, 2, 3)
    assert small[0].tolist() == [3.5, 5.5, 7.5, 15.5, 17.5, 19.5]
    cut, image = pooled(x, (1, 4, 6), 3)
    assert (cut.shape, image) == ((2, 2), (1, 1, 2))
    colours = np.arange(32, dtype=np.float32)[None]
    assert pooled(colours, (2, 4, 4), 4)[0].tolist() == [[7.5, 23.5]]


def test_pool_is_an_option_of_data(sources: dict[str, str]) -> None:
    coarse = DataOptions(scale=1.0, pool=2)
    found = load(f"{sources['idx']}#3-7", coarse)
    assert (found.x_train.shape, found.x_test.shape, found.image) == ((4, 4), (20, 4), (1, 2, 2))
    np.testing.assert_array_equal(rows_in_order(f"{sources['idx']}#3-7", coarse), found.x_train)
    with pytest.raises(ConfigError, match="pool is for images"):
        load("sklearn:wine", DataOptions(pool=2))
    with pytest.raises(ConfigError, match="larger than the images"):
        load("sklearn:digits", DataOptions(pool=9))


def test_an_npz_without_numbers_is_no_probe_set(tmp_path: Path) -> None:
    np.savez(tmp_path / "empty.npz", labels=np.zeros(3))
    with pytest.raises(ConfigError, match="x or x_train"):
        rows_in_order(f"npz:{tmp_path / 'empty.npz'}", DataOptions())


def test_a_probe_set_is_known_by_its_rows_and_their_order() -> None:
    options = LearnerOptions(data=DataOptions(pool=2))
    rows = probes.read("sklearn:digits#0-30", options.data)
    digest = probes.digest_of(rows)
    site = Site(options=options, probe_source="sklearn:digits#0-30", probe_digest=digest, probe_samples=30)
    found = probes.of_site(site)
    assert found is not None
    np.testing.assert_array_equal(found, rows)
    assert rows.shape == (30, 16)
    assert probes.digest_of(rows[::-1]) != digest
    assert probes.of_site(Site()) is None
    for wrong in ("sklearn:digits#1-31", "sklearn:digits#0-29"):
        other = Site(options=options, probe_source=wrong, probe_digest=digest, probe_samples=30)
        with pytest.raises(LearnerError, match="p2pfl run probe"):
            probes.of_site(other)
