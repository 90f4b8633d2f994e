"""Expectations: one line each, such as `metric.mean >= 0.94`, judged on verdicts; parsed, never evaluated.

    [each | paired] PATH OPERATOR TERM [+|- NUMBER] [when AXIS is CASE | CASE [and AXIS is CASE]]

PATH names a number in a verdict by dots, TERM is a number or another PATH.  Every cell of the scenario's grid
must meet it, or those that `when` names.  `PATH[AXIS=CASE]` reads the number in the cell that has this case
and is otherwise the same, so that cells can be compared with each other.

With `each` every seed must meet it, two cells being compared seed by seed; without, the means over the seeds
must.  With `paired` the mean over the seeds of (left - right) must be on the right side of 0 with its whole
95% interval (Student's t): more than chance.  A number that is missing meets nothing.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from p2pfl.errors import ConfigError

from .grid import AXIS, LABEL
from .student import interval

__all__ = ["Expectation", "Outcome", "Term", "check", "check_seeds", "judge", "parse"]

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_PATH = r"[a-z_][a-z0-9_]*(?:\.[a-z0-9_]+)*"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_PLACE = rf"{AXIS}\s*=\s*{LABEL}"
_TERM = rf"{_PATH}(?:\[\s*{_PLACE}(?:\s*,\s*{_PLACE})*\s*\])?"
_CASES = rf"{AXIS}\s+is\s+{LABEL}(?:\s*\|\s*{LABEL})*"
_CLAUSE = re.compile(
    rf"\s*(?:(?P<over>each|paired)\s+)?(?P<left>{_TERM})\s*(?P<operator><=|>=|==|<|>)\s*"
    rf"(?:(?P<number>{_NUMBER})|(?P<right>{_TERM})(?:\s*(?P<sign>[-+])\s*(?P<offset>{_NUMBER}))?)"
    rf"(?:\s+when\s+(?P<when>{_CASES}(?:\s+and\s+{_CASES})*))?\s*"
)

_Cell = tuple[tuple[str, str], ...]
_Verdicts = Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A path in a verdict, and the cases in which the cell it is read in differs from the cell at hand."""

    path: str
    cases: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """`left` compared with `right + offset`, or with `offset` alone when there is no right term.

    over: "means", "each" or "paired".   when: the cases in which it is judged, by axis.
    """

    text: str
    over: str
    left: Term
    operator: str
    right: Term | None
    offset: float
    when: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Whether an expectation was met, and the two numbers compared where it was met least.

    cell, seed: where that was (the left number's cell); no seed when means were compared.
    interval: for `paired`, the 95% interval of the difference.
    """

    text: str
    is_met: bool
    value: float | None
    bound: float | None
    cell: Mapping[str, str]
    seed: int | None = None
    interval: tuple[float, float] | None = None


def parse(text: str) -> Expectation:
    """An expectation.  Raises ConfigError.

    >>> parse("each metric.min >= metric.mean - 0.01").offset
    -0.01
    >>> parse("metric.mean >= 0.9 when rule is gts | monna").when
    {'rule': ('gts', 'monna')}
    """
    found = _CLAUSE.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"expectation {text!r} is not understood; write it like 'metric.mean >= 0.94',"
            " 'metric.mean >= alone.mean + 0.1', 'each mass.error <= 1e-9 when method is a | b'"
            " or 'paired metric.mean > metric.mean[method=alone]'"
        )
    over = found["over"] or "means"
    if over == "paired" and (found["right"] is None or found["operator"] == "=="):
        raise ConfigError(
            f"expectation {text!r} pairs nothing; `paired` compares two paths by <, <=, > or >=,"
            " as in 'paired metric.mean > metric.mean[method=alone]'"
        )
    offset = float(found["number"] or found["offset"] or 0)
    return Expectation(
        text=" ".join(text.split()),
        over=over,
        left=_term(found["left"]),
        operator=found["operator"],
        right=_term(found["right"]) if found["right"] else None,
        offset=-offset if found["sign"] == "-" else offset,
        when=dict(map(_condition, re.findall(_CASES, found["when"] or ""))),
    )


def check(expectations: Sequence[Expectation], axes: Mapping[str, Sequence[str]]) -> None:
    """Raise ConfigError when an expectation names an axis, or a case of one, that the grid does not have.

    axes: the cases of each.
    """
    for expectation in expectations:
        named = [(axis, case) for axis, cases in expectation.when.items() for case in cases]
        for term in (expectation.left, expectation.right):
            named += term.cases.items() if term else ()
        for axis, case in named:
            if axis not in axes:
                raise ConfigError(
                    f"expectation {expectation.text!r}: the grid has no axis {axis!r};"
                    f" it has {', '.join(axes) or 'none, see [simulation.grid]'}"
                )
            if case not in axes[axis]:
                raise ConfigError(
                    f"expectation {expectation.text!r}: the axis {axis} has no case {case!r};"
                    f" it has {', '.join(axes[axis])}"
                )


def check_seeds(expectations: Sequence[Expectation], seeds: int) -> None:
    """Raise ConfigError when an expectation pairs seeds, and there is only one."""
    for expectation in expectations:
        if expectation.over == "paired" and seeds < 2:
            raise ConfigError(f"expectation {expectation.text!r} needs two seeds or more; give --seeds 0-9")


def judge(expectation: Expectation, verdicts: Sequence[Mapping[str, Any]]) -> Outcome:
    """Whether `verdicts`, one a trial with its `cell` and `seed`, meet `expectation`.

    Raises ConfigError when there is no cell that it is about.
    """
    cells: dict[_Cell, dict[int, Mapping[str, Any]]] = {}
    for verdict in verdicts:
        cells.setdefault(_key(verdict.get("cell") or {}), {})[verdict["seed"]] = verdict
    outcomes = []
    for key in cells:
        cell = dict(key)
        if all(cell.get(axis) in cases for axis, cases in expectation.when.items()):
            left = cells.get(_key({**cell, **expectation.left.cases}), {})
            right = cells.get(_key({**cell, **expectation.right.cases}), {}) if expectation.right else left
            outcomes += _compared(expectation, {**cell, **expectation.left.cases}, left, right)
    if not outcomes:
        raise ConfigError(f"expectation {expectation.text!r} is about no cell that was run")
    return max(outcomes, key=lambda outcome: _violation(expectation, outcome))


def _compared(
    expectation: Expectation, cell: Mapping[str, str], left: _Verdicts, right: _Verdicts
) -> list[Outcome]:
    """One outcome a seed for `each`, otherwise one."""
    missing = Outcome(text=expectation.text, is_met=False, value=None, bound=None, cell=cell)
    pairs = []
    for seed in sorted(left.keys() | right.keys()):
        value = _number(left.get(seed, {}), expectation.left.path)
        bound = _number(right.get(seed, {}), expectation.right.path) if expectation.right else 0.0
        if value is None or bound is None:
            return [missing]
        pairs.append((seed, value, bound + expectation.offset))
    if not pairs:
        return [missing]
    compare = _OPERATORS[expectation.operator]
    if expectation.over == "each":
        return [
            replace(missing, is_met=compare(value, bound), value=value, bound=bound, seed=seed)
            for seed, value, bound in pairs
        ]
    n = len(pairs)
    value, bound = math.fsum(v for _, v, _ in pairs) / n, math.fsum(b for _, _, b in pairs) / n
    if expectation.over == "means":
        return [replace(missing, is_met=compare(value, bound), value=value, bound=bound)]
    low, high = interval([v - b for _, v, b in pairs])
    is_met = compare(low, 0) and compare(high, 0)
    return [replace(missing, is_met=is_met, value=value, bound=bound, interval=(low, high))]


def _violation(expectation: Expectation, outcome: Outcome) -> float:
    """By how much an outcome misses, negative where it is met with room; a missing number misses by all."""
    if outcome.value is None or outcome.bound is None:
        return math.inf
    low, high = outcome.interval or (outcome.value - outcome.bound,) * 2
    match expectation.operator:
        case "<" | "<=":
            return high
        case ">" | ">=":
            return -low
        case _:
            return abs(low)


def _term(text: str) -> Term:
    path, _, places = text.partition("[")
    return Term(path=path, cases=dict(re.split(r"\s*=\s*", place) for place in re.findall(_PLACE, places)))


def _condition(text: str) -> tuple[str, tuple[str, ...]]:
    axis, cases = re.split(r"\s+is\s+", text, maxsplit=1)
    return axis, tuple(re.split(r"\s*\|\s*", cases))


def _key(cell: Mapping[str, str]) -> _Cell:
    return tuple(sorted(cell.items()))


def _number(verdict: Mapping[str, Any], path: str) -> float | None:
    value: Any = verdict
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None
