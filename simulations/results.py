"""Results as tables: SQLite, CSV, and Parquet where pyarrow is.  The simulator's only file with SQL.

trials: one row a trial, its verdict without what is nested deeper than one level.   rounds: one row a trial
and recorded round.   peers: one row a trial and peer.   expectations: one row each.
"""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlite_utils

from p2pfl.errors import StoreError

__all__ = ["TABLES", "tables", "write"]

TABLES = ("trials", "rounds", "peers", "expectations")
_Row = dict[str, Any]
# Of a verdict, what has tables of its own, or is only about files.
_NOT_COLUMNS = ("v", "per_peer", "per_round", "cell", "file", "report")


def tables(
    verdicts: Sequence[Mapping[str, Any]],
    rounds: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]],
    outcomes: Sequence[Mapping[str, Any]],
) -> dict[str, list[_Row]]:
    """The rows of each of TABLES, all rows of a table with the same columns.

    rounds: (verdict, `round` event) in order.
    """
    peers = [{**_place(verdict), **_flat(row)} for verdict in verdicts for row in verdict["per_peer"]]
    found = {
        "trials": [
            {**_place(verdict), **_flat({k: v for k, v in verdict.items() if k not in _NOT_COLUMNS})}
            for verdict in verdicts
        ],
        "rounds": [
            {
                **_place(verdict),
                **_flat({k: v for k, v in event.items() if k not in ("v", "event", "by_peer")}),
            }
            for verdict, event in rounds
        ],
        "peers": peers,
        "expectations": [_flat(outcome) for outcome in outcomes],
    }
    return {name: _squared(rows) for name, rows in found.items()}


def write(folder: Path, found: Mapping[str, Sequence[_Row]]) -> list[Path]:
    """Write `results.sqlite`, `trials.csv` and `rounds.csv`, and with pyarrow `trials.parquet` and
    `rounds.parquet`, each whole or not at all; returns their paths.   Raises StoreError.
    """
    written = []
    try:
        for name in ("trials", "rounds"):
            written.append(_csv(folder / f"{name}.csv", found[name]))
            if importlib.util.find_spec("pyarrow") is not None:
                written.append(_parquet(folder / f"{name}.parquet", found[name]))
        written.append(_sqlite(folder / "results.sqlite", found))
    except OSError as error:
        raise StoreError(f"{folder} cannot be written to: {error.strerror}; is there room?") from error
    return written


def _csv(path: Path, rows: Sequence[_Row]) -> Path:
    fresh = path.with_suffix(".tmp")
    with fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
    return fresh.replace(path)


def _parquet(path: Path, rows: Sequence[_Row]) -> Path:
    import pyarrow
    import pyarrow.parquet

    fresh = path.with_suffix(".tmp")
    pyarrow.parquet.write_table(pyarrow.table(_alike(rows)), fresh)
    return fresh.replace(path)


def _sqlite(path: Path, found: Mapping[str, Sequence[_Row]]) -> Path:
    fresh = path.with_suffix(".tmp")
    fresh.unlink(missing_ok=True)
    database = sqlite_utils.Database(fresh)
    try:
        for name in TABLES:
            if found[name]:
                database[name].insert_all(found[name])
        if found["trials"] and found["rounds"]:
            database["rounds"].create_index(["trial"])
    finally:
        database.close()
    return fresh.replace(path)


def _place(verdict: Mapping[str, Any]) -> _Row:
    """What tells a trial from the others: its key, its case on each axis, its seed."""
    cell = {f"cell.{axis}": case for axis, case in (verdict.get("cell") or {}).items()}
    return {"trial": verdict.get("trial"), **cell, "seed": verdict["seed"]}


def _flat(row: Mapping[str, Any], before: str = "") -> _Row:
    """One level: `{"metric": {"mean": 1}}` is `{"metric.mean": 1}`; lists are JSON."""
    flat: _Row = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[before + key] = json.dumps(value) if isinstance(value, (list, tuple)) else value
    return flat


def _squared(rows: Sequence[_Row]) -> list[_Row]:
    """The rows with the columns of all of them, in the order they come first; None where one is absent."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    # A value that is a table in some rows is its columns there, and in the others nothing.
    inner = {name for name in names if any(other.startswith(f"{name}.") for other in names)}
    return [{name: row.get(name) for name in names if name not in inner} for row in rows]


def _alike(rows: Sequence[_Row]) -> dict[str, list[Any]]:
    """Columns, each of one type: a column with a fraction in it is of fractions, one with a text of texts."""
    columns: dict[str, list[Any]] = {}
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        kinds = {type(value) for value in values if value is not None}
        make = str if str in kinds else float if float in kinds else None
        columns[name] = [make(v) if make and v is not None else v for v in values]
    return columns
