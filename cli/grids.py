"""The results of many trials as a person reads them: of a grid, of expectations, of two folders."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .terminal import columns
from .verdicts import bytes_text, count_text

__all__ = ["comparison_text", "grid_text", "outcomes_text"]

# Distances between models that float32 cannot tell from 0, as a part of the first.
_ROUNDING = 1e-6


def grid_text(cells: Sequence[Mapping[str, Any]], axes: Mapping[str, Sequence[str]]) -> str:
    """All cells: the metric's mean over the seeds, the worst seed, and the worst peer of all seeds.

    A star says that more may lie than the cell's rule bears.
    A matrix that is wider than the terminal is written one line a cell, too.
    """
    from p2pfl.simulations.summary import is_lower_better

    name = cells[0]["metric"]["name"]
    worst = "max" if is_lower_better(name) else "min"
    who = "honest peer" if any(cell["byzantine"] for cell in cells) else "peer"
    numbers = {
        tuple(cell["cell"].values()): [
            *(f"{cell['metric'][part]:.3f}" for part in ("mean", "worst_seed", worst)),
            " *" if cell.get("bounds_broken") else "",
        ]
        for cell in cells
    }
    star = "\n* more may lie than the rule bears" if any(found[-1] for found in numbers.values()) else ""
    if len(axes) == 2 and not any(cell.get("knowledge") for cell in cells):
        (rows, row_cases), (_, column_cases) = axes.items()
        matrix = columns(
            [
                [row, *("{} ({}) {}{}".format(*numbers[row, column]) for column in column_cases)]
                for row in row_cases
            ],
            (rows, *column_cases),
        )
        if (
            not sys.stdout.isatty()
            or len(max(matrix.splitlines(), key=len)) <= shutil.get_terminal_size().columns
        ):
            return f"{name}: mean over the seeds (worst seed) worst {who}\n{matrix}{star}"
    if any(cell.get("knowledge") for cell in cells):
        return _exchanges_text(cells, numbers, axes, (name, "worst seed", f"worst {who}"))
    losses = [cell.get("online_loss") for cell in cells]
    paces = [_pace(cell.get("mixing")) for cell in cells]
    mixed = ("exact after", "slope", "contraction", "left") if any(map(any, paces)) else ()
    table = [
        [*cell, *found[:-1], None if loss is None else f"{loss:.4f}", *pace[: len(mixed)], found[-1]]
        for (cell, found), loss, pace in zip(numbers.items(), losses, paces, strict=True)
    ]
    return columns(table, (*axes, name, "worst seed", f"worst {who}", "online loss", *mixed, "")) + star


def _exchanges_text(
    cells: Sequence[Mapping[str, Any]],
    numbers: Mapping[tuple[str, ...], Sequence[str]],
    axes: Mapping[str, Sequence[str]],
    heads: tuple[str, ...],
) -> str:
    """What exchanges are worth and cost: bytes on the wire, computing at the site that has least of it."""
    table = []
    for cell, (place, found) in zip(cells, numbers.items(), strict=True):
        knowledge, compute, alone = (cell.get(key) for key in ("knowledge", "compute", "alone"))
        hub = knowledge and knowledge["hub"]
        table.append(
            [
                *place,
                *found[:-1],
                None if hub is None else f"{hub:.3f}",
                None if alone is None else f"{alone['mean']:.3f}",
                bytes_text(cell["bytes_per_peer_round"]),
                None if compute is None else count_text(compute["min"]),
            ]
        )
    return columns(table, (*axes, *heads, "hub's model", "alone", "sent", "multiply-adds"))


def _pace(mixing: Mapping[str, Any] | None) -> list[str | None]:
    """What rounds that only mixed did: rounds until exact, slope, contraction, and what is left."""
    if mixing is None:
        return [None] * 4
    exact, left = mixing["exact_after"], mixing["left"]
    # Beyond rounding of float32 there is nothing left to measure.
    return [
        None if exact is None else f"{exact:g}",
        *(f"{mixing[part]:.4f}" for part in ("slope", "contraction")),
        f"{left:.2g}" if left > _ROUNDING else "0",
    ]


def outcomes_text(outcomes: Sequence[Mapping[str, Any]]) -> str:
    """One line an expectation: whether it is met, the numbers compared, and where it is met least."""
    rows = []
    for outcome in outcomes:
        place = [f"{axis} {case}" for axis, case in outcome["cell"].items()]
        if outcome["seed"] is not None:
            place.append(f"seed {outcome['seed']}")
        found = [None if outcome[part] is None else f"{outcome[part]:.6g}" for part in ("value", "bound")]
        if outcome["interval"] is not None:
            place.append("difference {:.3g} to {:.3g}".format(*outcome["interval"]))
        rows.append(["met" if outcome["is_met"] else "NOT MET", outcome["text"], *found, ", ".join(place)])
    return columns(rows, ("", "expectation", "found", "bound", "where")) if rows else ""


def comparison_text(rows: Sequence[Mapping[str, Any]], names: tuple[str, str]) -> str:
    """One line a scenario and cell: the metric in both, the difference, and the bytes a peer and round."""
    from p2pfl.simulations.grid import shown

    table = []
    for row in rows:
        sides = (row["first"], row["second"])
        metric = next(side["metric"]["name"] for side in sides if side)
        table.append(
            [
                ", ".join(filter(None, (row["scenario"], shown(row["cell"])))),
                metric,
                *(f"{side['metric']['mean']:.4f}" if side else None for side in sides),
                None if row["difference"] is None else f"{row['difference']:+.4f}",
                "{:+.4f} to {:+.4f}".format(*row["interval"]) if row["interval"] else None,
                *(bytes_text(side["bytes_per_peer_round"]) if side else None for side in sides),
            ]
        )
    sent = (f"sent {name}" for name in names)
    return columns(table, ("", "metric", *names, "difference", "95% interval", *sent))
