"""Rows to learn from: `sklearn:NAME`, `npz:PATH`, `idx:DIR` and `csv:PATH-OR-GLOB`.

Behind it `#FIRST-LAST` takes a part of the rows: of all of them where the split into training and test is
ours, of the training rows where the source brings its own test rows, which stay whole.

Shapes: `n` rows, `k` features, `C` classes.  The split into training and test rows is stratified by class and
depends on the run's seed and the rows alone, so a site draws the same split in a simulation and at home.
"""

import json
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError
from p2pfl.learn.holdout import held_out
from p2pfl.learn.idx import read_idx_folder
from p2pfl.learn.options import DataOptions
from p2pfl.learn.selection import Image, Span, pooled, spanned
from p2pfl.learn.tables import Table, read_tables

__all__ = ["Dataset", "load", "rows_in_order", "save", "part", "rows_meaning"]

_Rows = NDArray[np.int64]

# The data sets scikit-learn carries inside its wheel, and the factor that brings features to about 0..1.
_SKLEARN = {"digits": 1 / 16, "breast_cancer": 1.0, "wine": 1.0, "iris": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Labelled rows, split into training and test.

    x: (n, k) float32, NaN where missing.   y: (n,) int64 in 0..C-1.   image: (channels, height, width).
    files, file_train, file_test: names of the files the rows came from, and the number of each row's file.
    groups, group_train: the values of the column that was asked for, and the number of each training row's.
    """

    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    n_classes: int
    features: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    image: Image | None = None
    files: tuple[str, ...] = ()
    file_train: _Rows | None = None
    file_test: _Rows | None = None
    groups: tuple[str, ...] = ()
    group_train: _Rows | None = None

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


def load(source: str, options: DataOptions | None = None, seed: int = 0, *, column: str = "") -> Dataset:
    """The rows of a source.   seed: the run's, for the split.   column: of a csv, to be kept as `groups`.

    A path without a kind is taken by its ending: `.npz`, a folder is idx, anything else is csv.
    Raises ConfigError that names the file, the line and the cure.
    """
    options = options or DataOptions()
    kind, place, span = _parsed(source)
    match kind:
        case "sklearn":
            dataset = _load_sklearn(place, options, seed, span)
        case "npz":
            dataset = _load_npz(Path(place).expanduser(), options, seed, span)
        case "idx":
            dataset = _load_idx(Path(place).expanduser(), options, span)
        case _:
            dataset = _split_tables(_tables(place, options, span, column), options, seed)
    if options.pool == 1:
        return dataset
    x_train, image = pooled(dataset.x_train, dataset.image, options.pool)
    x_test, _ = pooled(dataset.x_test, dataset.image, options.pool)
    return replace(dataset, x_train=x_train, x_test=x_test, image=image)


def rows_in_order(source: str, options: DataOptions) -> NDArray[np.float32]:
    """The rows of a source as they lie there, (n, k): training rows where it brings test rows of its own.

    An npz needs no labels: it has x, or x_train.   Raises ConfigError.
    """
    kind, place, span = _parsed(source)
    x: NDArray[np.float32]
    image: Image | None = None
    match kind:
        case "sklearn":
            x, image = _taken(_read_sklearn(place, options)[0], span), _image_of_sklearn(place)
        case "npz":
            path = Path(place).expanduser()
            arrays = _read_npz(path)
            raw = arrays.get("x", arrays.get("x_train"))
            if raw is None or raw.ndim < 2 or raw.dtype.kind not in "iufb":
                raise ConfigError(f"{path} has no numbers x or x_train of shape (n, ...); write one of them")
            x = _flat_rows(_taken(raw, span), 1.0 if options.scale is None else options.scale)
            image = _image_of_npz(arrays, raw)
        case "idx":
            arrays = read_idx_folder(Path(place).expanduser())
            x = _flat_rows(_taken(arrays["x_train"], span), _scale_of_idx(arrays, options))
            image = _image_of_idx(arrays)
        case _:
            x = np.concatenate([table.x for table in _tables(place, options, span)])
    return pooled(x, image, options.pool)[0]


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
        group_train=None if dataset.group_train is None else dataset.group_train[train],
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


def _parsed(source: str) -> tuple[str, str, Span | None]:
    """The kind of a source, its place, and its span."""
    whole, span = spanned(source)
    kind, separator, place = whole.partition(":")
    if not whole:
        raise ConfigError(
            "no data source; set [learner] data = {source = ...} or this site's data, such as csv:a.csv"
        )
    if not separator or kind not in ("sklearn", "npz", "idx", "csv"):
        if separator and "/" not in kind and not Path(whole).expanduser().exists():
            raise ConfigError(
                f"data source {source!r} has no known kind; there are sklearn:, npz:, idx: and csv:"
            )
        place = whole
        path = Path(whole).expanduser()
        kind = "npz" if path.suffix == ".npz" else "idx" if path.is_dir() else "csv"
    return kind, place, span


def _taken(rows: Any, span: Span | None) -> Any:
    return rows if span is None else span.of(rows)


def _read_sklearn(name: str, options: DataOptions) -> tuple[NDArray[np.float32], NDArray[np.int64], Any]:
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
    return (np.asarray(bunch.data) * scale).astype(np.float32), np.asarray(bunch.target, np.int64), bunch


def _image_of_sklearn(name: str) -> Image | None:
    return (1, 8, 8) if name == "digits" else None


def _load_sklearn(name: str, options: DataOptions, seed: int, span: Span | None) -> Dataset:
    x, y, bunch = _read_sklearn(name, options)
    x, y = _taken(x, span), _taken(y, span)
    train, test = held_out(x, y, options, seed)
    return Dataset(
        x_train=x[train],
        y_train=y[train],
        x_test=x[test],
        y_test=y[test],
        n_classes=len(bunch.target_names),
        features=tuple(str(feature) for feature in bunch.feature_names),
        classes=tuple(str(label) for label in bunch.target_names),
        image=_image_of_sklearn(name),
    )


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            return dict(archive) if isinstance(archive, np.lib.npyio.NpzFile) else {"one array": archive}
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; check the data source") from error
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path} is not a readable npz of plain arrays: {error}") from error


def _image_of_npz(arrays: dict[str, NDArray[Any]], x: NDArray[Any]) -> Image | None:
    shape = x.shape[1:]
    if arrays.get("image", np.zeros(0)).shape == (3,):
        channels, height, width = (int(side) for side in arrays["image"])
        return channels, height, width
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    return (1, shape[0], shape[1]) if len(shape) == 2 else None


def _load_npz(path: Path, options: DataOptions, seed: int, span: Span | None) -> Dataset:
    """Arrays x_train, y_train, x_test, y_test, or x and y to be split.

    A row may be an image: (n, h, w) or (n, c, h, w).
    """
    arrays = _read_npz(path)
    if {"x", "y"} <= arrays.keys():
        x, y = arrays["x"], arrays["y"]
        if x.ndim < 2 or y.shape != (len(x),):
            raise ConfigError(f"{path}: x has shape {x.shape} and y {y.shape}, expected (n, ...) and (n,)")
        x, y = _taken(x, span), _taken(y, span)
        train, test = held_out(x, y, options, seed)
        arrays |= {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}
    elif {"x_train", "y_train"} <= arrays.keys():
        arrays |= {name: _taken(arrays[name], span) for name in ("x_train", "y_train")}
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
        image=_image_of_npz(arrays, arrays["x_train"]),
    )


def _flat_rows(x: NDArray[Any], scale: float) -> NDArray[np.float32]:
    rows = x.reshape(len(x), -1).astype(np.float32)
    return rows if scale == 1.0 else rows * np.float32(scale)


def _scale_of_idx(arrays: dict[str, NDArray[Any]], options: DataOptions) -> float:
    if options.scale is not None:
        return options.scale
    # Bytes are intensities 0..255; other types are left as they are.
    return 1 / 255 if arrays["x_train"].dtype == np.uint8 else 1.0


def _image_of_idx(arrays: dict[str, NDArray[Any]]) -> Image | None:
    shape = arrays["x_train"].shape[1:]
    return (1, shape[0], shape[1]) if len(shape) == 2 else None


def _load_idx(folder: Path, options: DataOptions, span: Span | None) -> Dataset:
    arrays = read_idx_folder(folder)
    scale = _scale_of_idx(arrays, options)
    top = max(int(arrays["y_train"].max()), int(arrays["y_test"].max()))
    return Dataset(
        x_train=_flat_rows(_taken(arrays["x_train"], span), scale),
        y_train=_taken(arrays["y_train"], span).astype(np.int64),
        x_test=_flat_rows(arrays["x_test"], scale),
        y_test=arrays["y_test"].astype(np.int64),
        n_classes=max(top + 1, 2),
        image=_image_of_idx(arrays),
    )


def _tables(place: str, options: DataOptions, span: Span | None, column: str = "") -> list[Table]:
    """The tables of a path or glob; of a span the rows are numbered through all files."""
    tables = read_tables(place, options, column)
    if span is None:
        return tables
    ends = np.cumsum([len(table.y) for table in tables])
    numbers = span.of(np.arange(ends[-1]))
    taken = []
    for table, end in zip(tables, ends, strict=True):
        inside = numbers[(numbers < end) & (numbers >= end - len(table.y))] - (end - len(table.y))
        if inside.size:
            groups = tuple(table.groups[row] for row in inside) if table.groups else ()
            taken.append(replace(table, x=table.x[inside], y=table.y[inside], groups=groups))
    return taken


def _split_tables(tables: list[Table], options: DataOptions, seed: int) -> Dataset:
    train: list[Any] = []
    test: list[Any] = []
    groups = _in_order({group for table in tables for group in table.groups})
    position = {group: number for number, group in enumerate(groups)}
    for number, table in enumerate(tables):
        try:
            kept, chosen = held_out(table.x, table.y, options, seed)
        except ConfigError as error:
            raise ConfigError(f"{table.path}: {error}") from error
        of = np.array([position[group] for group in table.groups] or [0] * len(table.y), np.int64)
        train.append((table.x[kept], table.y[kept], np.full(len(kept), number), of[kept]))
        test.append((table.x[chosen], table.y[chosen], np.full(len(chosen), number)))
    x_train, y_train, file_train, group_train = (
        np.concatenate(column) for column in zip(*train, strict=True)
    )
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
        groups=groups,
        group_train=group_train if groups else None,
    )


def _in_order(values: set[str]) -> tuple[str, ...]:
    """Numbers by size, and otherwise by spelling."""
    try:
        return tuple(sorted(values, key=float))
    except ValueError:
        return tuple(sorted(values))
