"""Results as tables: the same numbers in SQLite, CSV and Parquet."""

from __future__ import annotations

import csv
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import sqlite_utils

from p2pfl.errors import StoreError
from p2pfl.simulations import results

_VERDICTS: list[dict[str, Any]] = [
    {
        "v": 1,
        "trial": f"key-{seed}",
        "cell": {"lr": "0.1"},
        "seed": seed,
        "metric": {"name": "accuracy", "mean": 0.5 + seed},
        "mass": None if seed else {"error": 0.0},
        "bytes_sent": 2**40,
        "pooled": seed or 0.25,
        "per_round": [{"round": 0}],
        "per_peer": [{"peer": i, "w": 1.0, "metrics": {"accuracy": 0.5}} for i in range(2)],
    }
    for seed in (0, 1)
]
_ROUND = {
    "v": 1,
    "event": "round",
    "round": 0,
    "loss": {"mean": 1.5, "min": 1.0, "max": 2.0},
    "by_peer": {"0": 0.5},
}
_OUTCOME = {"text": "a < b", "is_met": True, "value": 0.5, "bound": None, "cell": {}, "interval": (0.1, 0.2)}


def _tables() -> dict[str, list[dict[str, Any]]]:
    return results.tables(_VERDICTS, [(verdict, _ROUND) for verdict in _VERDICTS], [_OUTCOME])


def test_what_is_nested_becomes_columns_and_every_row_has_all_of_them() -> None:
    found = _tables()
    assert found["trials"][0] == {
        "trial": "key-0",
        "cell.lr": "0.1",
        "seed": 0,
        "metric.name": "accuracy",
        "metric.mean": 0.5,
        "mass.error": 0.0,
        "bytes_sent": 2**40,
        "pooled": 0.25,
    }
    assert found["trials"][1] == {**found["trials"][1], "mass.error": None, "metric.mean": 1.5}
    assert found["trials"][0].keys() == found["trials"][1].keys()
    assert found["rounds"][0] == {
        "trial": "key-0",
        "cell.lr": "0.1",
        "seed": 0,
        "round": 0,
        "loss.mean": 1.5,
        "loss.min": 1.0,
        "loss.max": 2.0,
    }
    assert [(row["seed"], row["peer"]) for row in found["peers"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert found["expectations"] == [
        {"text": "a < b", "is_met": True, "value": 0.5, "bound": None, "interval": "[0.1, 0.2]"}
    ]


def test_sqlite_csv_and_parquet_hold_the_same(tmp_path: Path) -> None:
    written = {path.name for path in results.write(tmp_path, _tables())}
    assert written == {"results.sqlite", "trials.csv", "rounds.csv", "trials.parquet", "rounds.parquet"}
    assert {path.name for path in tmp_path.iterdir()} == written
    with closing(sqlite_utils.Database(tmp_path / "results.sqlite")) as database:
        assert set(database.table_names()) == set(results.TABLES)
        query = 'select r."loss.mean" * t."metric.mean" as x from rounds r join trials t using (trial, seed)'
        assert [row["x"] for row in database.query(query)] == [0.75, 2.25]
        assert database["peers"].count == 4
    with (tmp_path / "trials.csv").open(newline="") as file:
        assert [row["metric.mean"] for row in csv.DictReader(file)] == ["0.5", "1.5"]
    columns = pyarrow.parquet.read_table(tmp_path / "trials.parquet").to_pydict()
    assert columns["metric.mean"] == [0.5, 1.5]
    assert columns["mass.error"] == [0.0, None]
    assert columns["bytes_sent"] == [2**40] * 2
    # A whole number beside a fraction is a fraction.
    assert columns["pooled"] == [0.25, 1.0]


def test_without_pyarrow_there_is_no_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert {path.name for path in results.write(tmp_path, _tables())} == {
        "results.sqlite",
        "trials.csv",
        "rounds.csv",
    }


def test_results_are_written_over_those_of_the_run_before(tmp_path: Path) -> None:
    for _ in range(2):
        results.write(tmp_path, _tables())
    with closing(sqlite_utils.Database(tmp_path / "results.sqlite")) as database:
        assert database["trials"].count == 2


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be written to"):
        results.write(tmp_path / "none", _tables())
