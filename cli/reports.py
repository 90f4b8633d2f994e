"""What `p2pfl simulate -o` leaves beside the verdicts: the page, and the results as tables."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["write_comparison", "write_study"]


def write_study(
    folder: Path,
    verdicts: Sequence[Mapping[str, Any]],
    *,
    scenario: str,
    axes: Mapping[str, Sequence[str]],
    outcomes: Sequence[Mapping[str, Any]],
) -> Path:
    """Write report.html, results.sqlite, trials.csv and rounds.csv; returns the page.  Raises StoreError."""
    from p2pfl.simulations import report, results

    rounds = ((verdict, event) for verdict in verdicts for event in report.rounds_of(verdict))
    results.write(folder, results.tables(verdicts, rounds, outcomes))
    events = report.study_events(
        verdicts, scenario=scenario, axes=axes, outcomes=outcomes, command=_command()
    )
    return report.write(folder / "report.html", events)


def write_comparison(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    names: tuple[str, str],
    sides: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]],
) -> Path:
    """Write report.html on two folders; returns it.  Raises StoreError."""
    from p2pfl.simulations import report

    events = report.comparison_events(rows, names, sides, command=_command())
    return report.write(folder / "report.html", events)


def _command() -> str:
    """What was typed, as it may be typed again."""
    return shlex.join(["p2pfl", *sys.argv[1:]])
