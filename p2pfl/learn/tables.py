"""csv files, one a site: columns by name, missing values, and a label or a test on a column.

Cells are numbers but for the label, which may be any text.  Comma, semicolon or tab, whichever the first line
has most of.  Blank lines are skipped.
"""

import csv
import glob
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError
from p2pfl.learn.options import DataOptions, Operator, parse_target

__all__ = ["Table", "read_tables"]

_TESTS: dict[Operator, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One file's rows.   x: (n, k) float32, NaN where missing.   y: (n,) int64, positions in `classes`.

    groups: (n,) what the column that was asked for says, as text; none when none was.
    """

    path: Path
    features: tuple[str, ...]
    classes: tuple[str, ...]
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cells:
    """A file as text: column names, and each row's line number and cells."""

    path: Path
    names: tuple[str, ...]
    rows: list[tuple[int, list[str]]]


def read_tables(place: str, options: DataOptions, column: str = "") -> list[Table]:
    """The tables of a path or glob, in the order of their paths, all with the same columns and classes.

    column: the one whose values are kept as `groups`; it is a feature, too, unless `options` leave it out.
    Raises ConfigError that names the file, the line, the column and the cure.
    """
    pattern = str(Path(place).expanduser())
    # glob, not Path.glob: the pattern may be absolute or relative, and may have no wildcard at all.
    found = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern))  # noqa: PTH207
    paths = [Path(name) for name in found]
    if not paths:
        raise ConfigError(f"no file matches {pattern}; check the data source")
    files = [_read_cells(path, options) for path in paths]
    for other in files[1:]:
        if other.names != files[0].names:
            raise ConfigError(
                f"{other.path} has columns {', '.join(other.names)};"
                f" {files[0].path} has {', '.join(files[0].names)}"
            )
    labels = [_labels(file, options) for file in files]
    classes = _classes(labels, options)
    position = {label: index for index, label in enumerate(classes)}
    features = _features(files[0], options)
    tables = []
    for file, of_file in zip(files, labels, strict=True):
        for (line, _), label in zip(file.rows, of_file, strict=True):
            if label not in position:
                raise ConfigError(
                    f"{file.path} line {line}: label {label!r} is not in classes {list(classes)}"
                )
        y = np.array([position[label] for label in of_file], np.int64)
        x = _matrix(file, features, options)
        groups = _groups(file, column, options) if column else ()
        tables.append(Table(path=file.path, features=features, classes=classes, x=x, y=y, groups=groups))
    return tables


def _read_cells(path: Path, options: DataOptions) -> _Cells:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); is it a csv file?") from error
    first = next((line for line in text.splitlines() if line.strip()), "")
    reader = csv.reader(text.splitlines(), delimiter=max(",;\t", key=first.count))
    rows = []
    try:
        for cells in reader:
            row = [cell.strip() for cell in cells]
            if any(row):
                rows.append((reader.line_num, row))
    except csv.Error as error:
        raise ConfigError(f"{path} line {reader.line_num}: {error}") from error
    if not rows:
        raise ConfigError(f"{path} is empty")
    has_header = options.header
    if has_header is None:
        has_header = not any(_is_number(cell) for cell in rows[0][1])
    header = rows.pop(0)[1] if has_header else None
    names = tuple(options.columns or header or (str(n + 1) for n in range(len(rows[0][1]))))
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: two columns have one name in {', '.join(names)}")
    if header is not None and len(header) != len(names):
        raise ConfigError(f"{path} has {len(header)} columns, data.columns names {len(names)}")
    for line, cells in rows:
        if len(cells) != len(names):
            raise ConfigError(
                f"{path} line {line} has {len(cells)} cells, expected {len(names)}: {', '.join(names)}"
            )
    if not rows:
        raise ConfigError(f"{path} has a header and no rows")
    return _Cells(path=path, names=names, rows=rows)


def _label_column(options: DataOptions) -> str:
    target = parse_target(options.target).column if options.target else ""
    if options.label and target and options.label != target:
        raise ConfigError(f"label is {options.label!r} and target tests {target!r}; name one column")
    if not (options.label or target):
        raise ConfigError("a csv source needs data.label = a column, or data.target such as 'num > 0'")
    return options.label or target


def _column(file: _Cells, name: str, option: str) -> int:
    if name not in file.names:
        raise ConfigError(
            f"{file.path} has no column {name!r}, named by {option}; there are {', '.join(file.names)}"
        )
    return file.names.index(name)


def _features(file: _Cells, options: DataOptions) -> tuple[str, ...]:
    label = _label_column(options)
    for name in options.features:
        _column(file, name, "data.features")
    for name in options.zero_is_missing:
        _column(file, name, "data.zero_is_missing")
    if label in options.features:
        raise ConfigError(f"data.features has the label {label!r}, which the model would simply copy")
    features = options.features or tuple(name for name in file.names if name != label)
    if not features:
        raise ConfigError(f"{file.path} has no column but the label {label!r}")
    return features


def _labels(file: _Cells, options: DataOptions) -> list[str]:
    """The label of each row as text; whole numbers lose their decimals, so 1 and 1.0 are one class."""
    column = _column(file, _label_column(options), "data.target" if options.target else "data.label")
    target = parse_target(options.target) if options.target else None
    labels = []
    for line, cells in file.rows:
        cell = cells[column]
        if cell in options.missing:
            raise ConfigError(
                f"{file.path} line {line} has no {file.names[column]}; remove the row or fill it in"
            )
        if target is None:
            whole = _is_number(cell) and float(cell).is_integer()
            labels.append(str(int(float(cell))) if whole else cell)
            continue
        if not _is_number(cell):
            raise ConfigError(
                f"{file.path} line {line}: {file.names[column]} is {cell!r}, and target needs a number"
            )
        labels.append(str(int(_TESTS[target.operator](float(cell), target.number))))
    return labels


def _classes(labels: list[list[str]], options: DataOptions) -> tuple[str, ...]:
    if options.classes:
        return options.classes
    if options.target:
        return ("0", "1")
    found = {label for of_file in labels for label in of_file}
    if len(found) < 2:
        raise ConfigError(
            f"all rows have the label {found.pop()!r}; name every class of the agreement in data.classes"
        )
    if all(_is_number(label) for label in found):
        return tuple(sorted(found, key=float))
    return tuple(sorted(found))


def _groups(file: _Cells, name: str, options: DataOptions) -> tuple[str, ...]:
    column = _column(file, name, "partition.column")
    for line, cells in file.rows:
        if cells[column] in options.missing:
            raise ConfigError(
                f"{file.path} line {line} has no {name}: it is no site's; remove the row or fill it in"
            )
    return tuple(cells[column] for _, cells in file.rows)


def _matrix(file: _Cells, features: tuple[str, ...], options: DataOptions) -> NDArray[np.float32]:
    columns = [file.names.index(name) for name in features]
    x = np.empty((len(file.rows), len(columns)), np.float32)
    for row, (line, cells) in enumerate(file.rows):
        for place, column in enumerate(columns):
            cell = cells[column]
            if cell in options.missing:
                x[row, place] = np.nan
                continue
            try:
                value = float(cell)
            except ValueError:
                value = math.nan
            if not abs(value) <= float(np.finfo(np.float32).max):
                raise ConfigError(
                    f"{file.path} line {line}: {file.names[column]} is {cell!r}, not a number; list it in"
                    " data.missing if it means unknown, or leave the column out with data.features"
                )
            x[row, place] = value
    for name in set(options.zero_is_missing) & set(features):
        place = features.index(name)
        x[x[:, place] == 0, place] = np.nan
    return x


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False
