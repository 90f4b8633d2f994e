"""Grids: axes along which a scenario varies; every combination of one case an axis is a cell.

    [simulation.grid]
    "trust.aggregator.kind" = ["none", "monna"]             # one key, its values; the axis is `aggregator`

    [simulation.grid.method]                                # named cases of any keys; the axis is `method`
    push-sum = { "gossip.averaging.kind" = "push-sum" }
    ring = { "gossip.averaging.kind" = "d-psgd", "gossip.topology" = { kind = "ring" } }

A dotted key is quoted, and set as `--set` sets it: a table replaces the whole table.  An axis of one key is
named after the key's last part, or after the one before where that is `kind`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2pfl.errors import ConfigError

__all__ = ["AXIS", "LABEL", "Axis", "Case", "axes_of", "combinations", "shown"]

# How an axis and a case are spelled: in expectations, and in the names of files.
AXIS = r"[a-z_][a-z0-9_]*"
LABEL = r"[A-Za-z0-9_.+-]{1,64}"
# More cells than this are a mistake in a file rather than a study.
_MAX_CELLS = 10_000
# A trial's seed is --seeds' to say; a cell has neither a grid nor expectations of its own.
_NOT_AXES = ("run.seed", "simulation.seeds", "simulation.grid", "simulation.expect")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One value of an axis: its name, and the dotted keys that it sets."""

    label: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One direction of a grid."""

    name: str
    cases: tuple[Case, ...]


def axes_of(table: Mapping[str, Any]) -> tuple[Axis, ...]:
    """The axes that `[simulation.grid]` describes.  Raises ConfigError.

    >>> [axis] = axes_of({"trust.aggregator.kind": ["none", "monna"]})
    >>> axis.name, [case.label for case in axis.cases]
    ('aggregator', ['none', 'monna'])
    """
    axes = tuple(_axis(key, cases) for key, cases in table.items())
    names = [axis.name for axis in axes]
    moved = [(axis.name, key) for axis in axes for case in axis.cases for key in case.settings]
    for name in names:
        if not re.fullmatch(AXIS, name):
            raise ConfigError(f"the axis {name!r} of simulation.grid is not lowercase letters, digits and _")
    if len(set(names)) < len(names):
        raise ConfigError(
            f"simulation.grid has two axes of one name among {', '.join(names)}; give the cases of one of"
            ' them names, as in [simulation.grid.rule] with monna = { "trust.aggregator.kind" = "monna" }'
        )
    for name, key in moved:
        for other_name, other in moved:
            if name != other_name and f"{key}.".startswith(f"{other}."):
                raise ConfigError(
                    f"the axes {name} and {other_name} of simulation.grid both set {key}; let one do it"
                )
        if "." not in key:
            raise ConfigError(
                f"simulation.grid: the axis {name} sets {key!r}, which is no key of a scenario;"
                ' quote dotted keys, as in "learner.optimizer.lr" = [0.1, 0.2]'
            )
        if any(f"{key}.".startswith(f"{fixed}.") for fixed in _NOT_AXES):
            raise ConfigError(f"simulation.grid cannot vary {key}; seeds are given with --seeds")
    cells = math.prod(len(axis.cases) for axis in axes)
    if cells > _MAX_CELLS:
        raise ConfigError(f"simulation.grid has {cells:,} cells; at most {_MAX_CELLS:,} are run at once")
    return axes


def combinations(axes: Sequence[Axis]) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """(label by axis, value by dotted key) of each cell, the last axis fastest; empty ones without axes."""
    for cases in itertools.product(*(axis.cases for axis in axes)):
        labels = {axis.name: case.label for axis, case in zip(axes, cases, strict=True)}
        yield labels, {key: value for case in cases for key, value in case.settings.items()}


def shown(cell: Mapping[str, str]) -> str:
    """A cell as a person reads it.

    >>> shown({"attack": "alie", "aggregator": "monna"})
    'attack alie, aggregator monna'
    """
    return ", ".join(f"{axis} {label}" for axis, label in cell.items())


def _axis(key: str, cases: Any) -> Axis:
    if isinstance(cases, list):
        parts = key.split(".")
        named = parts[-2] if parts[-1] == "kind" and len(parts) > 1 else parts[-1]
        values = [(_label(key, value), {key: value}) for value in cases]
    elif isinstance(cases, Mapping) and all(isinstance(case, Mapping) for case in cases.values()):
        named = key
        values = [(label, dict(settings)) for label, settings in cases.items()]
    else:
        raise ConfigError(
            f"simulation.grid.{key} is neither a list nor a table of cases; write a key and its values,"
            ' "learner.optimizer.lr" = [0.1, 1], or cases, x = { high = { "learner.optimizer.lr" = 1 } }'
        )
    labels = [label for label, _ in values]
    if not labels or len(set(labels)) < len(labels):
        raise ConfigError(f"the axis {named} of simulation.grid has no cases, or one twice: {labels}")
    for label in labels:
        if not re.fullmatch(LABEL, label):
            raise ConfigError(
                f"the case {label!r} of simulation.grid's axis {named} has no short name;"
                f' name it, as in [simulation.grid.{named}] with mine = {{ "{key}" = ... }}'
            )
    return Axis(name=named, cases=tuple(Case(label=label, settings=settings) for label, settings in values))


def _label(key: str, value: Any) -> str:
    match value:
        case str():
            return value
        case bool():
            return str(value).lower()
        case int() | float():
            return f"{value:g}" if float(f"{value:g}") == value else str(value)
        case {"kind": str(kind)}:
            return kind
        case _:
            raise ConfigError(
                f"simulation.grid: {value!r} has no short name; give the cases of {key} names of their own"
            )
