import contextlib
import gzip
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pfl.errors import ConfigError
from p2pfl.learn.data import Dataset, load, part, save
from p2pfl.learn.holdout import stratified_split
from p2pfl.learn.idx import read_idx
from p2pfl.learn.options import DataOptions


def _idx(array: Any) -> Any:
    code = {"uint8": 8, "int32": 0x0C, "float32": 0x0D}[array.dtype.name]
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def mnist(tmp_path: Path) -> Any:
    """A folder with MNIST's file names: 6 and 4 images of 5 x 4, one file gzipped."""
    rng = np.random.default_rng(0)
    for side, rows in (("train", 6), ("t10k", 4)):
        images = rng.integers(256, size=(rows, 5, 4)).astype(np.uint8)
        (tmp_path / f"{side}-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(images)))
        (tmp_path / f"{side}-labels-idx1-ubyte").write_bytes(_idx((np.arange(rows) % 3).astype(np.uint8)))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "rows", "features", "classes"),
    [("digits", 1797, 64, 10), ("breast_cancer", 569, 30, 2), ("wine", 178, 13, 3), ("iris", 150, 4, 3)],
)
def test_sklearn_sets_load_with_a_stratified_quarter_for_the_test(
    name: Any, rows: Any, features: Any, classes: Any
) -> None:
    dataset = load(f"sklearn:{name}")
    assert dataset.x_train.shape[1] == features
    assert dataset.n_classes == classes
    assert len(dataset.y_train) + len(dataset.y_test) == rows
    shares = np.bincount(dataset.y_test) / (np.bincount(dataset.y_train) + np.bincount(dataset.y_test))
    assert abs(shares - 0.25).max() < 0.02


def test_digits_are_scaled_to_one_unless_told() -> None:
    assert load("sklearn:digits").x_train.max() == 1.0
    assert load("sklearn:digits", DataOptions(scale=1.0)).x_train.max() == 16.0
    assert load("sklearn:digits").image == (1, 8, 8)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r"p2pfl-node\[sklearn\]"):
        load("sklearn:iris")


def test_idx_folders_load_plain_and_gzipped(mnist: Path) -> None:
    dataset = load(f"idx:{mnist}")
    assert dataset.x_train.shape == (6, 20)
    assert dataset.image == (1, 5, 4)
    assert dataset.x_train.max() <= 1.0
    assert dataset.y_test.tolist() == [0, 1, 2, 0]
    np.testing.assert_array_equal(load(str(mnist)).x_train, dataset.x_train)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_idx_values_of_every_type_come_back(tmp_path: Path, dtype: Any) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    (tmp_path / "a").write_bytes(_idx(array))
    np.testing.assert_array_equal(read_idx(tmp_path / "a"), array)
    assert read_idx(tmp_path / "a").dtype == dtype


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(body=st.binary(max_size=40), gz=st.booleans())
def test_any_bytes_are_an_idx_array_or_a_config_error(tmp_path: Path, body: Any, gz: Any) -> None:
    path = tmp_path / ("f.gz" if gz else "f")
    path.write_bytes(body)
    with contextlib.suppress(ConfigError):
        assert read_idx(path).nbytes <= 40 * 1032  # deflate expands at most so much


def test_a_damaged_idx_file_is_refused_by_what_is_wrong(mnist: Path) -> None:
    whole = _idx(np.zeros((2, 2), np.uint8))
    for damaged, message in [
        (whole[:-1], "has 3 bytes of values, its header says 4"),
        (whole + b"x", "has more bytes of values"),
        (whole[:6], "ends inside its header"),
        (b"PK\x03\x04", "is not an idx file"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "it is damaged"),
    ]:
        (mnist / "f").write_bytes(damaged)
        with pytest.raises(ConfigError, match=message):
            read_idx(mnist / "f")
    (mnist / "cut.gz").write_bytes(gzip.compress(whole)[:-9])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_idx(mnist / "cut.gz")
    (mnist / "train-labels-idx1-ubyte").write_bytes(_idx(np.zeros(5, np.uint8)))
    with pytest.raises(ConfigError, match=r"train images have shape \(6, 5, 4\) and labels \(5,\)"):
        load(f"idx:{mnist}")
    (mnist / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(ConfigError, match="lacks train-labels-idx1-ubyte"):
        load(f"idx:{mnist}")


def test_a_dataset_saved_as_npz_comes_back_whole(tmp_path: Path) -> None:
    dataset = load("sklearn:digits")
    site = part(dataset, np.flatnonzero(dataset.y_train < 3))
    save(tmp_path / "site.npz", site)
    back = load(str(tmp_path / "site.npz"))
    np.testing.assert_array_equal(back.x_train, site.x_train)
    np.testing.assert_array_equal(back.y_test, dataset.y_test)
    assert (back.n_classes, back.features, back.classes, back.image) == (
        10,
        dataset.features,
        dataset.classes,
        (1, 8, 8),
    )


def test_an_npz_of_images_without_a_split_is_split_and_flattened(tmp_path: Path) -> None:
    x, y = np.arange(20 * 12, dtype=np.float64).reshape(20, 3, 4), np.arange(20) % 2
    np.savez(tmp_path / "a.npz", x=x, y=y)
    dataset = load(f"npz:{tmp_path}/a.npz", DataOptions(scale=0.5))
    assert dataset.x_train.shape == (14, 12)
    assert dataset.image == (1, 3, 4)
    assert dataset.x_train.max() <= 120


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": np.zeros((2, 2))}, "lacks y_train, x_test, y_test"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(3)}, r"expected \(n, ...\) and \(n,\)"),
        ({"x": np.zeros((9, 2)), "y": np.arange(9) % 2 / 2}, "y_train is float64, expected integer classes"),
        ({"x": np.zeros((9, 2)), "y": np.arange(9) % 2 - 1}, "labels run from -1"),
        ({"x": np.full((9, 2), "a"), "y": np.arange(9) % 2}, "expected numbers"),
        ({"x": np.array([[{}]] * 9, object), "y": np.arange(9) % 2}, "not a readable npz of plain arrays"),
    ],
)
def test_an_npz_of_something_else_is_refused(tmp_path: Path, arrays: Any, message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ConfigError, match=message):
        load(f"npz:{tmp_path}/a.npz")


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(ConfigError, match="not a readable npz"):
        load(f"npz:{tmp_path}/a.npz")
    np.save(tmp_path / "c.npy", np.zeros(3))
    with pytest.raises(ConfigError, match="has arrays one array and lacks x_train"):
        load(f"npz:{tmp_path}/c.npy")
    with pytest.raises(ConfigError, match="does not exist"):
        load(f"npz:{tmp_path}/b.npz")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(place=st.integers(0, 10**6), value=st.integers(0, 255))
def test_an_npz_with_any_byte_changed_loads_or_is_refused(tmp_path: Path, place: Any, value: Any) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros((9, 2)), y=np.arange(9) % 2)
    body = bytearray(path.read_bytes())
    body[place % len(body)] = value
    path.write_bytes(body)
    with contextlib.suppress(ConfigError):
        load(f"npz:{path}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "no data source"),
        ("sklearn:mnist", "there are digits, breast_cancer, wine, iris"),
        ("parquet:a.pq", "no known kind"),
    ],
)
def test_an_unknown_source_is_refused_with_those_there_are(source: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(source)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "a.npz", x=np.zeros((9, 2)), y=np.arange(9) % 2)
    assert load("npz:~/a.npz").x_train.shape == (7, 2)
    assert load("~/a.npz").x_train.shape == (7, 2)


@given(st.lists(st.integers(0, 3), min_size=8, max_size=60), st.floats(0.2, 0.8))
def test_a_stratified_split_takes_its_share_of_each_class(labels: Any, fraction: Any) -> None:
    labels = np.array(labels)
    try:
        train, test = stratified_split(labels, fraction, np.random.default_rng(0))
    except ConfigError:
        return
    assert sorted([*train, *test]) == list(range(len(labels)))
    for label in set(labels.tolist()):
        assert abs((labels[test] == label).sum() - fraction * (labels == label).sum()) <= 0.5


def test_rows_that_do_not_fit_each_other_are_refused() -> None:
    x, y = np.zeros((3, 2), np.float32), np.zeros(3, np.int64)
    good: dict[str, Any] = {"x_train": x, "y_train": y, "x_test": x, "y_test": y, "n_classes": 2}
    Dataset(**good)
    for wrong in ({"y_test": y[:2]}, {"x_test": x[:, :1]}, {"x_train": x.astype(float)}, {"y_train": y + 2}):
        with pytest.raises(ConfigError):
            Dataset(**(good | wrong))


def test_a_split_of_its_own_seed_is_numpys_permutation_whatever_the_runs_seed() -> None:
    options = DataOptions(test_fraction=0.2, split_seed=0)
    one, other = (load("sklearn:digits", options, seed) for seed in (0, 1))
    np.testing.assert_array_equal(one.x_test, other.x_test)
    assert (len(one.x_train), len(one.x_test)) == (1437, 360)
    from sklearn.datasets import load_digits

    last = np.sort(np.random.default_rng(0).permutation(1797)[1437:])
    np.testing.assert_array_equal(one.y_test, load_digits(return_X_y=True)[1][last])
