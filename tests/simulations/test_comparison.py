import json
from pathlib import Path
from typing import Any

import pytest

from p2pfl.cli.grids import comparison_text
from p2pfl.errors import ConfigError, StoreError
from p2pfl.simulations import comparison


def _keep(folder: Path, values: dict[tuple[str, int], float]) -> Path:
    folder.mkdir()
    for (rule, seed), mean in values.items():
        verdict: dict[str, Any] = {
            "trial": "hash",
            "scenario": "study",
            "cell": {"rule": rule},
            "seed": seed,
            "metric": {"name": "accuracy", "mean": mean, "min": mean, "max": mean},
            "bytes_sent": 1000,
            "bytes_per_peer_round": 1500.0,
        }
        (folder / f"{rule}-{seed}.json").write_text(json.dumps(verdict))
    return folder


def test_seeds_in_both_folders_are_paired(tmp_path: Path) -> None:
    first = _keep(tmp_path / "a", {("gts", 0): 0.5, ("gts", 1): 0.7, ("gts", 2): 0.6, ("none", 0): 0.1})
    second = _keep(tmp_path / "b", {("gts", 2): 0.75, ("gts", 0): 0.6, ("gts", 1): 0.9, ("monna", 0): 0.9})
    (first / "notes.json").write_text("[1]")
    rows = comparison.compare(comparison.read(first), comparison.read(second))
    assert [(row["scenario"], row["cell"]["rule"], row["seeds"]) for row in rows] == [
        ("study", "gts", [0, 1, 2]),
        ("study", "none", []),
        ("study", "monna", []),
    ]
    # Differences .1, .2, .15: as in test_expect.py.
    assert rows[0]["difference"] == pytest.approx(0.15)
    assert rows[0]["interval"] == pytest.approx((0.02579, 0.27421), abs=1e-5)
    assert (rows[1]["second"], rows[1]["difference"], rows[2]["first"]) == (None, None, None)
    lines = comparison_text(rows, ("a", "b")).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "metric a b difference 95% interval sent a sent b",
        "study, rule gts accuracy 0.6000 0.7500 +0.1500 +0.0258 to +0.2742 1.5 kB 1.5 kB",
        "study, rule none accuracy 0.1000 - - - 1.5 kB -",
        "study, rule monna accuracy - 0.9000 - - - 1.5 kB",
    ]


def test_a_folder_without_results_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="simulate SCENARIO -o"):
        comparison.read(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(StoreError, match=r"bad\.json cannot be read"):
        comparison.read(tmp_path)
