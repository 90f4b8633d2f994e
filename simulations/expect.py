"""Expectations: one line each, such as `metric.mean >= 0.94`, judged on verdicts; parsed, never evaluated.

    [each] PATH OPERATOR TERM [+|- NUMBER]

PATH names a number in a verdict by dots, TERM is a number or another PATH.  With `each` every seed must meet
it; without, the means over the seeds must.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2pfl.errors import ConfigError

__all__ = ["Expectation", "Outcome", "judge", "parse"]

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_PATH = r"[a-z_][a-z0-9_]*(?:\.[a-z0-9_]+)*"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_CLAUSE = re.compile(
    rf"\s*(?P<each>each\s+)?(?P<path>{_PATH})\s*(?P<operator><=|>=|==|<|>)\s*"
    rf"(?:(?P<number>{_NUMBER})|(?P<other>{_PATH})(?:\s*(?P<sign>[-+])\s*(?P<offset>{_NUMBER}))?)\s*"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """`path` compared with `other + offset`, or with `offset` alone when there is no other path."""

    text: str
    path: str
    operator: str
    other: str
    offset: float
    is_for_each: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Whether an expectation was met, and the two numbers compared (the worst seed's for `each`)."""

    text: str
    is_met: bool
    value: float | None
    bound: float | None


def parse(text: str) -> Expectation:
    """An expectation.  Raises ConfigError.

    >>> parse("each metric.min >= metric.mean - 0.01").offset
    -0.01
    """
    found = _CLAUSE.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"expectation {text!r} is not understood; write it like 'metric.mean >= 0.94',"
            " 'metric.mean >= alone.mean + 0.1' or 'each mass.error <= 1e-9'"
        )
    offset = float(found["number"] or found["offset"] or 0)
    return Expectation(
        text=" ".join(text.split()),
        path=found["path"],
        operator=found["operator"],
        other=found["other"] or "",
        offset=-offset if found["sign"] == "-" else offset,
        is_for_each=found["each"] is not None,
    )


def judge(expectation: Expectation, verdicts: Sequence[Mapping[str, Any]]) -> Outcome:
    """Whether `verdicts`, one a seed, meet `expectation`.  A number that is missing meets nothing."""
    pairs = [(_number(v, expectation.path), _bound(v, expectation)) for v in verdicts]
    known = [(value, bound) for value, bound in pairs if value is not None and bound is not None]
    if len(known) < len(pairs) or not known:
        return Outcome(text=expectation.text, is_met=False, value=None, bound=None)
    if not expectation.is_for_each:
        known = [(math.fsum(v for v, _ in known) / len(known), math.fsum(b for _, b in known) / len(known))]
    compare = _OPERATORS[expectation.operator]
    largest_is_worst = expectation.operator in ("<=", "<")
    value, bound = max(known, key=lambda p: (p[0] - p[1]) if largest_is_worst else (p[1] - p[0]))
    is_met = all(compare(v, b) for v, b in known)
    return Outcome(text=expectation.text, is_met=is_met, value=value, bound=bound)


def _bound(verdict: Mapping[str, Any], expectation: Expectation) -> float | None:
    if not expectation.other:
        return expectation.offset
    other = _number(verdict, expectation.other)
    return None if other is None else other + expectation.offset


def _number(verdict: Mapping[str, Any], path: str) -> float | None:
    value: Any = verdict
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None
