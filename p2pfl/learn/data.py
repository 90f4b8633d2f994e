"""Rows to learn from: `sklearn:NAME`, `npz:PATH`, `idx:DIR` and `csv:PATH-OR-GLOB`.

Shapes: `n` rows, `k` features, `C` classes.  The split into training and test rows is stratified by class and
depends on the run's seed and the rows alone, so a site draws the same split in a simulation and at home.
"""

import hashlib
import json
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError
from p2pfl.learn.idx import read_idx_folder
from p2pfl.learn.options import DataOptions
from p2pfl.learn.tables import Table, read_tables

__all__ = ["Dataset", "load", "save", "part", "rows_meaning", "stratified_split"]

_Rows = NDArray[np.int64]

# Purpose number of the split's draw: keeps it apart from every other draw of the run's seed.
_SPLIT = 2
# The data sets scikit-learn carries inside its wheel, and the factor that brings features to about 0..1.
_SKLEARN = {"digits": 1 / 16, "breast_cancer": 1.0, "wine": 1.0, "iris": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Labelled rows, split into training and test.

    x: (n, k) float32, NaN where missing.   y: (n,) int64 in 0..C-1.   image: (channels, height, width).
    files, file_train, file_test: names of the files the rows came from, and the number of each row's file.
    """

    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    n_classes: int
    features: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    image: tuple[int, int, int] | None = None
    files: tuple[str, ...] = ()
    file_train: _Rows | None = None
    file_test: _Rows | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError when the arrays do not fit each other."""
        for name, x, y in (("train", self.x_train, self.y_train), ("test", self.x_test, self.y_test)):
            if x.ndim != 2 or y.shape != (len(x),) or x.shape[1] != self.x_train.shape[1]:
                raise ConfigError(
                    f"{name} rows have shapes {x.shape} and {y.shape}, expected (n, k) and (n,)"
                )
            if x.dtype != np.float32 or y.dtype != np.int64:
                raise ConfigError(f"{name} rows are {x.dtype} and {y.dtype}, expected float32 and int64")
            if len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.n_classes:
                raise ConfigError(
                    f"{name} labels run from {y.min()} to {y.max()}, expected 0 to {self.n_classes - 1}"
                )


def load(source: str, options: DataOptions | None = None, seed: int = 0) -> Dataset:
    """The rows of a source.   seed: the run's, for the split.

    A path without a kind is taken by its ending: `.npz`, a folder is idx, anything else is csv.
    Raises ConfigError that names the file, the line and the cure.
    """
    options = options or DataOptions()
    kind, separator, place = source.partition(":")
    if not source:
        raise ConfigError(
            "no data source; set [learner] data = {source = ...} or this site's data, such as csv:a.csv"
        )
    if not separator or kind not in ("sklearn", "npz", "idx", "csv"):
        if separator and "/" not in kind and not Path(source).expanduser().exists():
            raise ConfigError(
                f"data source {source!r} has no known kind; there are sklearn:, npz:, idx: and csv:"
            )
        place = source
        path = Path(source).expanduser()
        kind = "npz" if path.suffix == ".npz" else "idx" if path.is_dir() else "csv"
    match kind:
        case "sklearn":
            return _load_sklearn(place, options, seed)
        case "npz":
            return _load_npz(Path(place).expanduser(), options, seed)
        case "idx":
            return _load_idx(Path(place).expanduser(), options)
        case _:
            return _split_tables(read_tables(place, options), options, seed)


def save(path: Path, dataset: Dataset) -> None:
    """Writes a dataset as an npz that `load("npz:...")` reads back whole, but for the file numbers."""
    np.savez(
        path,
        x_train=dataset.x_train,
        y_train=dataset.y_train,
        x_test=dataset.x_test,
        y_test=dataset.y_test,
        n_classes=np.asarray(dataset.n_classes),
        features=np.asarray(dataset.features, dtype=np.str_),
        classes=np.asarray(dataset.classes, dtype=np.str_),
        image=np.asarray(dataset.image or (), np.int64),
    )


def part(dataset: Dataset, train: _Rows, test: _Rows | None = None) -> Dataset:
    """One site's share of a dataset: the given training rows, and the given test rows (None: all of them)."""
    taken = replace(
        dataset,
        x_train=dataset.x_train[train],
        y_train=dataset.y_train[train],
        file_train=None if dataset.file_train is None else dataset.file_train[train],
    )
    if test is None:
        return taken
    return replace(
        taken,
        x_test=dataset.x_test[test],
        y_test=dataset.y_test[test],
        file_test=None if dataset.file_test is None else dataset.file_test[test],
    )


def rows_meaning(dataset: Dataset) -> bytes:
    """What a model's tensors do not say and sites must agree on: feature columns and classes, in order.

    Hashed with the Schema, so that two sites whose class 1 is not the same class never mix.
    """
    return json.dumps([dataset.features, dataset.classes], separators=(",", ":")).encode()


def stratified_split(
    labels: NDArray[Any], test_fraction: float, rng: np.random.Generator
) -> tuple[_Rows, _Rows]:
    """Training and test row numbers, sorted; of each class round(n_c test_fraction) rows are for the test.

    Raises ConfigError when either side would be empty.
    """
    test: list[_Rows] = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        test.append(rows[: int(np.floor(len(rows) * test_fraction + 0.5))])
    chosen = np.sort(np.concatenate(test)) if test else np.zeros(0, np.int64)
    kept = np.setdiff1d(np.arange(len(labels)), chosen)
    if not len(chosen) or not len(kept):
        raise ConfigError(
            f"{len(labels)} rows with test_fraction {test_fraction:g} leave {len(kept)} to train on and"
            f" {len(chosen)} to test; bring more rows or change test_fraction"
        )
    return kept, chosen


def _split_rng(seed: int, x: NDArray[Any], y: NDArray[Any]) -> np.random.Generator:
    """A generator that two readers of the same rows share, wherever their file lies."""
    digest = hashlib.sha256(np.ascontiguousarray(x).tobytes() + np.ascontiguousarray(y).tobytes()).digest()
    return np.random.default_rng([seed, _SPLIT, int.from_bytes(digest[:8], "little")])


def _load_sklearn(name: str, options: DataOptions, seed: int) -> Dataset:
    if name not in _SKLEARN:
        raise ConfigError(f"no data set sklearn:{name}; there are {', '.join(_SKLEARN)}")
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ConfigError(
            f"sklearn:{name} needs scikit-learn; install the extra: pip install 'p2pfl-node[sklearn]'"
        ) from error
    bunch = getattr(datasets, f"load_{name}")()
    scale = _SKLEARN[name] if options.scale is None else options.scale
    x = (np.asarray(bunch.data) * scale).astype(np.float32)
    y = np.asarray(bunch.target, np.int64)
    train, test = stratified_split(y, options.test_fraction, _split_rng(seed, x, y))
    return Dataset(
        x_train=x[train],
        y_train=y[train],
        x_test=x[test],
        y_test=y[test],
        n_classes=len(bunch.target_names),
        features=tuple(str(feature) for feature in bunch.feature_names),
        classes=tuple(str(label) for label in bunch.target_names),
        image=(1, 8, 8) if name == "digits" else None,
    )


def _load_npz(path: Path, options: DataOptions, seed: int) -> Dataset:
    """Arrays x_train, y_train, x_test, y_test, or x and y to be split.

    A row may be an image: (n, h, w) or (n, c, h, w).
    """
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            arrays = dict(archive) if isinstance(archive, np.lib.npyio.NpzFile) else {"one array": archive}
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; check the data source") from error
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path} is not a readable npz of plain arrays: {error}") from error
    if {"x", "y"} <= arrays.keys():
        x, y = arrays["x"], arrays["y"]
        if x.ndim < 2 or y.shape != (len(x),):
            raise ConfigError(f"{path}: x has shape {x.shape} and y {y.shape}, expected (n, ...) and (n,)")
        train, test = stratified_split(y, options.test_fraction, _split_rng(seed, x, y))
        arrays |= {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}
    lost = [name for name in ("x_train", "y_train", "x_test", "y_test") if name not in arrays]
    if lost:
        raise ConfigError(
            f"{path} has arrays {', '.join(sorted(arrays))} and lacks {', '.join(lost)};"
            " write x_train, y_train, x_test, y_test, or x and y"
        )
    for name in ("y_train", "y_test"):
        if arrays[name].dtype.kind not in "iu":
            raise ConfigError(f"{path}: {name} is {arrays[name].dtype}, expected integer classes from 0")
    for name in ("x_train", "x_test"):
        if arrays[name].dtype.kind not in "iufb" or arrays[name].ndim < 2:
            raise ConfigError(
                f"{path}: {name} is {arrays[name].dtype} of shape {arrays[name].shape},"
                " expected numbers (n, k)"
            )
    shape = arrays["x_train"].shape[1:]
    image = {1: None, 2: (1, *shape)}.get(len(shape), shape if len(shape) == 3 else None)
    if arrays.get("image", np.zeros(0)).shape == (3,):
        image = tuple(int(side) for side in arrays["image"])
    top = max((int(arrays[name].max()) for name in ("y_train", "y_test") if arrays[name].size), default=0)
    scale = 1.0 if options.scale is None else options.scale
    return Dataset(
        x_train=_flat_rows(arrays["x_train"], scale),
        y_train=arrays["y_train"].astype(np.int64),
        x_test=_flat_rows(arrays["x_test"], scale),
        y_test=arrays["y_test"].astype(np.int64),
        n_classes=int(arrays["n_classes"]) if "n_classes" in arrays else max(top + 1, 2),
        features=tuple(str(feature) for feature in arrays.get("features", ())),
        classes=tuple(str(label) for label in arrays.get("classes", ())),
        image=image,
    )


def _flat_rows(x: NDArray[Any], scale: float) -> NDArray[np.float32]:
    rows = x.reshape(len(x), -1).astype(np.float32)
    return rows if scale == 1.0 else rows * np.float32(scale)


def _load_idx(folder: Path, options: DataOptions) -> Dataset:
    arrays = read_idx_folder(folder)
    x_train, x_test = arrays["x_train"], arrays["x_test"]
    scale = options.scale
    if scale is None:
        # Bytes are intensities 0..255; other types are left as they are.
        scale = 1 / 255 if x_train.dtype == np.uint8 else 1.0
    shape = x_train.shape[1:]
    top = max(int(arrays["y_train"].max()), int(arrays["y_test"].max()))
    return Dataset(
        x_train=_flat_rows(x_train, scale),
        y_train=arrays["y_train"].astype(np.int64),
        x_test=_flat_rows(x_test, scale),
        y_test=arrays["y_test"].astype(np.int64),
        n_classes=max(top + 1, 2),
        image=(1, shape[0], shape[1]) if len(shape) == 2 else None,
    )


def _split_tables(tables: list[Table], options: DataOptions, seed: int) -> Dataset:
    train: list[Any] = []
    test: list[Any] = []
    for number, table in enumerate(tables):
        try:
            kept, chosen = stratified_split(
                table.y, options.test_fraction, _split_rng(seed, table.x, table.y)
            )
        except ConfigError as error:
            raise ConfigError(f"{table.path}: {error}") from error
        train.append((table.x[kept], table.y[kept], np.full(len(kept), number)))
        test.append((table.x[chosen], table.y[chosen], np.full(len(chosen), number)))
    x_train, y_train, file_train = (np.concatenate(column) for column in zip(*train, strict=True))
    x_test, y_test, file_test = (np.concatenate(column) for column in zip(*test, strict=True))
    return Dataset(
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        n_classes=len(tables[0].classes),
        features=tables[0].features,
        classes=tables[0].classes,
        files=tuple(table.path.stem for table in tables),
        file_train=file_train,
        file_test=file_test,
    )
