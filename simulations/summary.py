"""Many verdicts as few: one object for the seeds of each cell, and one for all cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["cells", "is_lower_better", "over_cells", "over_seeds"]

# What seeds spend together, and what is shown at its greatest; of the rest that is a number, the mean is.
_SUMS = ("bytes_sent", "wall_s", "events")
_MOST = ("max", "error", "peak_rss_mb")
# One trial's own.
_SINGLE = ("seed", "per_peer", "report", "file", "trial", "cell", "data")


def is_lower_better(metric: str) -> bool:
    """Whether less of a metric is better: of a loss or an error."""
    return metric.endswith(("loss", "error"))


def over_seeds(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One object for the verdicts of several seeds; what they do not share and no number stands for is None.

    Its metric has `worst_seed`, the mean of the seed that did worst, too.
    """
    merged: dict[str, Any] = {key: _merged(key, [v.get(key) for v in verdicts]) for key in verdicts[0]}
    metric = merged["metric"]
    worst = max if is_lower_better(metric["name"]) else min
    metric["worst_seed"] = worst(verdict["metric"]["mean"] for verdict in verdicts)
    return {**merged, **dict.fromkeys(_SINGLE)}


def cells(verdicts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One object a cell, in the order they come first, over its seeds, each with its `cell`."""
    groups: dict[tuple[tuple[str, str], ...], list[Mapping[str, Any]]] = {}
    for verdict in verdicts:
        groups.setdefault(tuple(verdict["cell"].items()), []).append(verdict)
    return [{**over_seeds(group), "cell": dict(cell)} for cell, group in groups.items()]


def over_cells(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One object for the verdicts of different cells: what they share, what they spent, None for the rest."""
    first = verdicts[0]
    shared = {
        key: value if all(v.get(key) == value for v in verdicts) else None for key, value in first.items()
    }
    spent = {key: sum(verdict[key] for verdict in verdicts) for key in ("bytes_sent", "wall_s")}
    return {**shared, **spent, **dict.fromkeys(_SINGLE)}


def _merged(key: str, values: Sequence[Any]) -> Any:
    if all(isinstance(value, Mapping) for value in values):
        return {name: _merged(name, [value.get(name) for value in values]) for name in values[0]}
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return values[0] if all(value == values[0] for value in values) else None
    if key in _SUMS:
        return sum(values)
    if key == "min" or key in _MOST:
        return min(values) if key == "min" else max(values)
    return values[0] if len(set(values)) == 1 else sum(values) / len(values)
