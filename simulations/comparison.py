"""Two folders of results side by side: the same scenario and cell in both, seed by seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p2pfl.errors import ConfigError, StoreError

from . import summary
from .student import interval

__all__ = ["compare", "read"]

_Place = tuple[str, tuple[tuple[str, str], ...]]


def read(folder: Path) -> list[dict[str, Any]]:
    """The verdicts that `p2pfl simulate -o` kept in `folder`, with the `file` each is in now.

    Raises StoreError, ConfigError.
    """
    verdicts = []
    for path in sorted(folder.glob("*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read: {error}; remove it") from error
        if isinstance(found, dict) and "trial" in found:
            verdicts.append({**found, "file": str(path)})
    if not verdicts:
        raise ConfigError(f"{folder} holds no results; `p2pfl simulate SCENARIO -o {folder}` puts some there")
    return verdicts


def compare(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One object for each scenario and cell of either: both summaries, and second minus first of the metric.

    seeds: those in both, over which the difference is taken; interval: its 95% interval (Student's t), where
    there are two seeds or more.  What one side lacks is None.
    """
    sides = [_by_place(verdicts) for verdicts in (first, second)]
    rows = []
    for place in dict.fromkeys(place for side in sides for place in side):
        a, b = (side.get(place, {}) for side in sides)
        both = sorted(a.keys() & b.keys())
        differences = [b[seed]["metric"]["mean"] - a[seed]["metric"]["mean"] for seed in both]
        rows.append(
            {
                "scenario": place[0],
                "cell": dict(place[1]),
                "first": summary.over_seeds(list(a.values())) if a else None,
                "second": summary.over_seeds(list(b.values())) if b else None,
                "seeds": both,
                "difference": sum(differences) / len(both) if both else None,
                "interval": interval(differences) if len(both) > 1 else None,
            }
        )
    return rows


def _by_place(verdicts: Sequence[dict[str, Any]]) -> dict[_Place, dict[int, dict[str, Any]]]:
    places: dict[_Place, dict[int, dict[str, Any]]] = {}
    for verdict in verdicts:
        place = (verdict["scenario"], tuple(verdict["cell"].items()))
        places.setdefault(place, {})[verdict["seed"]] = verdict
    return places
