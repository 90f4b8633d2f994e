"""The aggregation rules by name: what each takes, and how many Byzantine rows it bears.

`n` rows, `f` of them Byzantine.  A name is a word of `RULES`, or one of `PRE`, a plus and such a word, as in
`nnm+trimmed-mean`.

Bounds.  Aggregating once for all, a rule has the bound of its paper.  Around an anchor every peer aggregates
for itself, and no rule survives f >= n/3 even on a complete graph (Gaucher et al. 2025, arXiv:2410.10418), so
a third is the most for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from p2pfl.errors import ConfigError

__all__ = [
    "RULES",
    "PRE",
    "ANCHORED",
    "PAIRWISE",
    "COORDINATES",
    "check",
    "parse",
    "options_of",
    "count_f",
    "largest_f",
]

PRE: tuple[str, ...] = ("nnm", "bucketing")
# The parameters of each rule, with their defaults.
_PARAMETERS: dict[str, dict[str, Any]] = {
    "coordinate-median": {},
    "trimmed-mean": {},
    "meamed": {},
    "krum": {},
    "multi-krum": {"m": None},
    "bulyan": {},
    "geometric-median": {},
    "centered-clipping": {"tau": None, "iterations": 3},
    "self-centered-clipping": {"tau": None, "weights": None},
    "cs-plus": {"weights": None},
    "gts": {"weights": None},
    "monna": {},
    "ubar": {"losses": None, "rho": None, "alpha": 0.5},
    "balance": {"gamma": 0.3, "kappa": 1.0, "alpha": 0.5, "progress": 0.0},
    "fltrust": {},
    "norm-filter": {"limit": 3.0},
    "mean": {"weights": None},
}
_PRE_PARAMETERS: dict[str, dict[str, Any]] = {"": {}, "nnm": {}, "bucketing": {"size": 2, "rng": None}}
# The numbers among them: the least and the most.
_RANGES: dict[str, tuple[float, float]] = {
    "m": (1, math.inf),
    "tau": (0, math.inf),
    "iterations": (1, 1000),
    "rho": (0, 1),
    "alpha": (0, 1),
    "gamma": (0, math.inf),
    "kappa": (0, math.inf),
    "progress": (0, 1),
    "limit": (0, math.inf),
    "size": (1, math.inf),
}
RULES: tuple[str, ...] = tuple(_PARAMETERS)
# Rules that mean nothing without the receiver's own model.
ANCHORED = frozenset(
    {"self-centered-clipping", "cs-plus", "gts", "monna", "ubar", "balance", "fltrust", "norm-filter"}
)
COORDINATES = frozenset({"coordinate-median", "trimmed-mean", "meamed"})
PAIRWISE = frozenset({"krum", "multi-krum", "bulyan", "geometric-median", "centered-clipping"})
# Rules that judge a row by more than where it lies, so that nothing can be mixed before.
_UNMIXED = frozenset({"ubar", "fltrust"})


def check(rule: str, n: int | None = None, f: float = 0, **parameters: object) -> None:
    """Nothing, if `weigh` would take these.

    n: of rows, None where not known yet.   Raises ConfigError for a rule or parameter that does not exist or
    is out of range, or an f that is no number of rows.  A broken bound is no error; see `largest_f`.
    """
    options_of(rule, parameters)
    count_f(f, n if n is not None else 1 + math.ceil(abs(f)))


def count_f(f: float, n: int) -> int:
    """How many of n rows may be Byzantine: f itself if it is an int, else that part of n - 1, rounded up.

    A fraction is of the in-edges, the rows without the receiver's own.   Raises ConfigError for an int below
    0 or a float outside [0, .5).
    """
    if isinstance(f, int):
        if f < 0:
            raise ConfigError(f"f = {f} Byzantine rows; give a number from 0, or a fraction below .5")
        return min(f, n)
    if not 0 <= f < 0.5:
        raise ConfigError(f"f = {f} is not a fraction from 0 to below .5; a number of rows is an int")
    # .1 * 30 is 3.0000000000000004, which is not 4 rows.
    return math.ceil(f * max(0, n - 1) - 1e-9)


def largest_f(rule: str, n: int, *, is_anchored: bool | None = None, size: int = 2) -> int:
    """The most Byzantine rows among n that `rule` is proved to bear; below 0 if n is too small for it.

    is_anchored: whether every peer aggregates around its own model; None: if the rule cannot do otherwise.
    size: of a bucket.   Raises ConfigError for an unknown rule.
    """
    pre, name = parse(rule)
    # A bad row spoils one bucket.
    rows = -(-n // size) if pre == "bucketing" else n
    match name:
        case "mean":
            return min(0, rows - 1)
        case "bulyan":
            bound = (rows - 3) // 4
        case _:
            bound = (rows - 1) // 2
    return min(bound, (n - 1) // 3) if (name in ANCHORED if is_anchored is None else is_anchored) else bound


def parse(rule: str) -> tuple[str, str]:
    """The pre-aggregation, "" if none, and the rule that `rule` names.  Raises ConfigError."""
    pre, _, name = rule.rpartition("+")
    if pre not in _PRE_PARAMETERS or name not in _PARAMETERS or (pre and name in _UNMIXED) or rule[:1] == "+":
        raise ConfigError(
            f"no aggregation rule {rule[:60]!r}; there are {', '.join(RULES)}, and all but "
            f"{' and '.join(sorted(_UNMIXED))} after {' or '.join(f'{word}+' for word in PRE)}"
        )
    return pre, name


def options_of(rule: str, parameters: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Pre-aggregation, rule, and every parameter it takes: those given, else the defaults.

    Raises ConfigError.
    """
    pre, name = parse(rule)
    options = _PRE_PARAMETERS[pre] | _PARAMETERS[name]
    for key, value in parameters.items():
        if key not in options:
            takes = ", ".join(sorted(options)) or "none"
            raise ConfigError(f"rule {rule!r} has no parameter {key!r}; it takes: {takes}")
        low, high = _RANGES.get(key, (-math.inf, math.inf))
        if key in _RANGES and value is not None and not low <= value <= high:
            raise ConfigError(f"{key} = {value} of rule {rule!r} is not between {low:g} and {high:g}")
        options[key] = value
    return pre, name, options
