"""Attacks: what a Byzantine peer sends instead of its own model, as pure functions of what it knows.

Four families.  *Model* attacks forge the vector itself (`forge`).  *Data* attacks train honestly on poisoned
rows (poisoning.py) and *knowledge* attacks lie in an exchange (false_knowledge.py): `forge` gives their own
model.  *Protocol* attacks lie about what surrounds it (protocol_lies.py) and need whole peers: `forge`
refuses them.  Sybils and eclipsers flip signs; what they are lies in how they came in (placement.py).

An attacker is omniscient, as in the literature: for each target it sees the models that the target will mix,
and forges a vector for this target alone.  Byzantine peers are the last of a run (placement.py).

Sizes: `n` inputs of the target with its own, `b` of them Byzantine, `h` honest ones seen, `d` parameters.
mu and sigma are the honest models' mean and standard deviation, each coordinate's own, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import LocalError
from p2pfl.events import Vector
from p2pfl.gossip.mixing import Floats, Vectors

__all__ = [
    "CONCERTED_KINDS",
    "DATA_KINDS",
    "FORGE",
    "KINDS",
    "KNOWLEDGE_KINDS",
    "PROTOCOL_KINDS",
    "TRIGGERED_KINDS",
    "WORLD_KINDS",
    "AttackOptions",
    "Sight",
    "forge",
]

_Floats = NDArray[np.float64]
# Whoever attacks so lies in an exchange of knowledge of this kind (false_knowledge.py).
KNOWLEDGE_KINDS = {
    "poisoned-labels": "hub", "poisoned-hub": "hub", "poisoned-prototypes": "proto",
    "poisoned-probe": "probe", "poisoned-probe-prior": "probe",
}  # fmt: skip
# The attacks, and which options each one takes beside `byzantine`, `placement` and `starts_at`.
KINDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "silent": (),
    "sign-flip": (),
    "gaussian": ("sigma",),
    "alie": ("z",),
    "ipm": ("epsilon",),
    "foe": ("epsilon",),
    "mimic": (),
    "dissensus": ("epsilon",),
    "spectral": ("epsilon",),
    "min-max": (),
    "min-sum": (),
    "free-ride": ("sigma",),
    "nan": (),
    "inf": (),
    "huge": (),
    "label-flip": ("fraction",),
    "backdoor": ("fraction", "target"),
    "model-replacement": ("fraction", "target", "scale"),
    "weight-lie": ("weight",),
    "wrong-shape": (),
    "replay": (),
    "equivocation": (),
    "bomb": (),
    "sybil": (),
    "eclipse": (),
    **dict.fromkeys(KNOWLEDGE_KINDS, ()),
}
# Whoever attacks so trains on poisoned rows.
DATA_KINDS = ("label-flip", "backdoor", "model-replacement")
# Their rows carry a trigger.
TRIGGERED_KINDS = ("backdoor", "model-replacement")
# All attackers say the same to one target: nothing of their own and no draw is in it.
CONCERTED_KINDS = (
    "silent", "sign-flip", "alie", "ipm", "foe", "mimic", "dissensus", "spectral", "min-max", "min-sum",
    "nan", "inf", "huge",
)  # fmt: skip
# These have no vector of their own.
PROTOCOL_KINDS = ("weight-lie", "wrong-shape", "replay", "equivocation", "bomb")
# These need whole peers, their membership and their network.
WORLD_KINDS = (*PROTOCOL_KINDS, *KNOWLEDGE_KINDS, "sybil", "eclipse")

# Purpose of an attacker's random draws: "forg" in ASCII.
FORGE = 0x666F7267
# Near the largest float32, 3.4e38: finite, and its square is not.
_HUGE = 3e38


class AttackOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[simulation] attack`: the last `byzantine` of the run's peers attack, from round `starts_at` on.

    placement: `members` are peers of the topology like the others; with `everywhere` the topology is that of
    the honest peers, and each attacker is joined to every one of them, both ways.
    starts_at: training round; before it they behave (a sleeper).
    A field left out (None) takes the attack's default; one that the attack does not take is refused.
    z: ALIE's standard deviations (1.5), or "formula".   epsilon: ipm .5, foe 10, dissensus and spectral 1.5.
    sigma: standard deviation of the noise; gaussian 10, free-ride .01.   scale: model-replacement (n/b).
    fraction: of the attacker's rows that are poisoned (label-flip 1, the others .5).   target: the class that
    a trigger gives (0).   weight: what is multiplied into the weight of every share (1e6); may be nan.
    """

    kind: str = "none"
    byzantine: int = 0
    placement: Literal["members", "everywhere"] = "members"
    starts_at: int = 0
    z: float | Literal["formula"] | None = None
    epsilon: float | None = None
    sigma: float | None = None
    scale: float | None = None
    fraction: float | None = None
    target: int | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"attack.kind is {self.kind!r}; choose one of {', '.join(KINDS)}")
        for name in ("z", "epsilon", "sigma", "scale", "fraction", "target", "weight"):
            if getattr(self, name) is not None and name not in KINDS[self.kind]:
                takes = ", ".join(KINDS[self.kind]) or "no options"
                raise ValueError(f"attack.{name} does not apply to {self.kind!r}, which takes {takes}")
        numbers = (self.epsilon, self.sigma, self.scale, *([] if self.z == "formula" else [self.z]))
        checks = (
            (0 <= self.byzantine <= 4095, "attack.byzantine is 0 to 4095"),
            (self.starts_at >= 0, "attack.starts_at is a training round, 0 or more"),
            (all(map(_is_finite, numbers)), "attack.z, epsilon, sigma and scale are finite numbers"),
            (self.sigma is None or self.sigma >= 0, "attack.sigma is 0 or more"),
            (self.fraction is None or 0 < self.fraction <= 1, "attack.fraction is more than 0, at most 1"),
            (self.target is None or self.target >= 0, "attack.target is the number of a class, from 0"),
            (
                self.starts_at == 0 or self.kind not in ("label-flip", "backdoor"),
                "attack.starts_at does not apply to poisoned rows, which are so from the start",
            ),
        )
        for holds, rule in checks:
            if not holds:
                raise ValueError(rule)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What an attacker knows when it makes what it sends to one target in one round.

    honest: (h, d) float32, the models that the target will mix and that are honest, its own as row 0.
    own: (d,) float32, what the attacker would have sent honestly.   before: (d,), its model before this
    round's training.   n: inputs of the target, its own included; `byzantine` of them are attackers'.
    weights: (h,) float64, those that the target gives the rows of `honest` in plain mixing (the rest, to 1,
    goes to attackers); None where it gives every input 1/n.
    slowest: (d,) the target's part in the slowest disagreement of the honest (`placement.slowest`), which
    only the spectral attack needs.
    """

    honest: Vectors
    own: Vector
    before: Vector
    n: int
    byzantine: int
    round: int
    rng: np.random.Generator
    weights: Floats | None = None
    slowest: Vector | None = None


def forge(options: AttackOptions, sight: Sight) -> Vector | None:
    """What the attacker sends to this target in this round: (d,) float32, or None when it stays silent.

    Before `options.starts_at`, and for attacks on data, that is its own model.  O(h d); mimic O(h^2 d).
    Raises LocalError for an attack on the protocol.
    """
    if options.kind in PROTOCOL_KINDS:
        raise LocalError(f'"{options.kind}" is an attack on the protocol; only engine = "world" has one')
    if sight.round < options.starts_at:
        return sight.own
    forged = _FORGERS[options.kind](options, sight)
    if forged is None:
        return None
    # What float32 cannot hold becomes infinite, which is an attack, too.
    with np.errstate(over="ignore"):
        return forged.astype(np.float32)


# --- without knowledge of others ----------------------------------------------------------------------


def _own(_: AttackOptions, sight: Sight) -> Vector:
    return sight.own


def _silent(*_: object) -> None:
    return None


def _constant(value: float) -> Callable[[AttackOptions, Sight], Vector]:
    return lambda _, sight: np.full_like(sight.own, value)


def _free_ride(options: AttackOptions, sight: Sight) -> _Floats:
    """x(t-1) + N(0, sigma^2): no training, and enough noise not to look like it.

    Source: Fraboni, Vidal, Lorenzi 2021, arXiv:2006.11901 (disguised free-riders).
    """
    return sight.before + _default(options.sigma, 0.01) * sight.rng.standard_normal(len(sight.before))


# --- from the mean ------------------------------------------------------------------------------------


def _sign_flip(_: AttackOptions, sight: Sight) -> _Floats:
    """Minus mu.  Source: Li et al. 2019, arXiv:1811.03761 (there -4 times the own model)."""
    return -_mean(sight)


def _gaussian(options: AttackOptions, sight: Sight) -> _Floats:
    """Noise around mu: N(mu, sigma^2).  Source: Blanchard et al. 2017, arXiv:1703.02757 (there around 0)."""
    return _mean(sight) + _default(options.sigma, 10.0) * sight.rng.standard_normal(len(sight.own))


def _alie(options: AttackOptions, sight: Sight) -> _Floats:
    """A Little Is Enough: mu - z sigma, inside the honest spread, all attackers on one side.

    With "formula", z is the largest at which enough honest inputs lie further out than the attackers:
    Phi^-1((n - b - s) / (n - b)) with s = floor(n/2 + 1) - b supporters, at least 0.
    Source: Baruch, Baruch, Goldberg 2019, arXiv:1902.06156, section 3.
    """
    z = _alie_z(sight.n, sight.byzantine) if options.z == "formula" else _default(options.z, 1.5)
    return _mean(sight) - z * _deviation(sight)


def _alie_z(n: int, b: int) -> float:
    """The formula's z.  Attackers in the majority need no supporter; then one is counted all the same."""
    supporters = max(1, math.floor(n / 2 + 1) - b)
    share = (n - b - supporters) / (n - b)
    return max(0.0, NormalDist().inv_cdf(share)) if share > 0 else 0.0


def _scaled_mean(epsilon: float) -> Callable[[AttackOptions, Sight], _Floats]:
    """Minus epsilon mu: small for inner-product manipulation, large for the fall of empires.

    Source: Xie, Koyejo, Gupta 2019, arXiv:1903.03936.
    """
    return lambda options, sight: -_default(options.epsilon, epsilon) * _mean(sight)


def _model_replacement(options: AttackOptions, sight: Sight) -> _Floats:
    """With x the attacker's poisoned model, mu + (n/b) (x - mu): b such and the honest n - b average to x.

    Source: Bagdasaryan et al. 2020, arXiv:1807.00459; what is the global model there is mu here.
    """
    mu = _mean(sight)
    return mu + _default(options.scale, sight.n / max(1, sight.byzantine)) * (sight.own - mu)


# --- from the spread ----------------------------------------------------------------------------------


def _mimic(_: AttackOptions, sight: Sight) -> Vector:
    """The honest model x_k, k = argmax |<x_k - mu, v>|, v the direction of most variance: one voice doubled.

    v comes from this round's models alone, exactly; the paper tracks it over rounds (Oja's rule) and keeps k.
    Source: Karimireddy, He, Jaggi 2022, arXiv:2006.09365.
    """
    centred = sight.honest - _mean(sight)
    vectors = np.linalg.eigh(centred @ centred.T)[1]
    chosen: Vector = sight.honest[int(np.argmax(np.abs(vectors[:, -1])))]
    return chosen


def _min_max(_: AttackOptions, sight: Sight) -> _Floats:
    """The farthest mu - gamma sigma at which max_j |m - x_j| <= max_ij |x_i - x_j|.

    Each j bounds gamma by the positive root of a quadratic; the paper bisects.
    Source: Shejwalkar, Houmansadr 2021, "Manipulating the Byzantine" (NDSS), min-max along -std.
    """
    mu, sigma, distances, squares = _spread(sight)
    along = (sight.honest - mu) @ sigma
    a, c = float(sigma @ sigma), squares - distances.max()
    if a == 0.0:
        return mu
    # |mu - gamma sigma - x_j|^2 = a gamma^2 + 2 <x_j - mu, sigma> gamma + |x_j - mu|^2; c <= 0.
    return mu - float(((np.sqrt(np.maximum(along**2 - a * c, 0.0)) - along) / a).min()) * sigma


def _min_sum(_: AttackOptions, sight: Sight) -> _Floats:
    """The farthest mu - gamma sigma at which sum_j |m - x_j|^2 <= max_i sum_j |x_i - x_j|^2.

    The cross terms of the left side vanish, so gamma is closed.  Source: as min-max.
    """
    mu, sigma, distances, squares = _spread(sight)
    a = len(sight.honest) * float(sigma @ sigma)
    room = float(distances.sum(axis=1).max() - squares.sum())
    return mu - math.sqrt(max(0.0, room) / a) * sigma if a > 0 else mu


# --- against consensus --------------------------------------------------------------------------------


def _dissensus(options: AttackOptions, sight: Sight) -> _Floats:
    """x_i - epsilon sum_j W_ij (x_j - x_i) / sum_byz W_ij: with 1, i mixes nothing of the honest.

    Source: He, Karimireddy, Jaggi 2022, arXiv:2202.01545, the attack called dissensus.
    """
    x, weights = sight.honest.astype(np.float64), _weights(sight)
    pull: _Floats = weights[1:] @ (x[1:] - x[0])
    target: _Floats = x[0]
    return target - _default(options.epsilon, 1.5) * pull / _byzantine_weight(sight, weights)


def _spectral(options: AttackOptions, sight: Sight) -> _Floats:
    """As dissensus, but only the slowest disagreement of the honest graph is fed: it dies out last, and all
    that a bounded attacker can add goes there.

    Source: Gaucher, Dieuleveut, Hendrikx 2025, arXiv:2410.10418, the attack called spectral heterogeneity.
    The scale is ours: epsilon = 1 undoes one round's mixing of that disagreement.
    Raises LocalError without `sight.slowest`.
    """
    if sight.slowest is None:
        raise LocalError("the spectral attack needs Sight.slowest; take it from placement.slowest")
    target: _Floats = sight.honest[0].astype(np.float64)
    push: _Floats = _default(options.epsilon, 1.5) * sight.slowest.astype(np.float64)
    return target + push / _byzantine_weight(sight, _weights(sight))


# --- arithmetic ---------------------------------------------------------------------------------------


def _mean(sight: Sight) -> _Floats:
    mean: _Floats = sight.honest.mean(axis=0, dtype=np.float64)
    return mean


def _deviation(sight: Sight) -> _Floats:
    deviation: _Floats = sight.honest.std(axis=0, dtype=np.float64)
    return deviation


def _spread(sight: Sight) -> tuple[_Floats, _Floats, _Floats, _Floats]:
    """(mu, sigma, squared distances (h, h) between honest models, and (h,) from each to mu)."""
    mu = _mean(sight)
    centred = sight.honest - mu
    gram = centred @ centred.T
    squares = np.diag(gram).copy()
    distances = np.maximum(squares[:, None] + squares[None] - 2 * gram, 0.0)
    return mu, _deviation(sight), distances, squares


def _weights(sight: Sight) -> _Floats:
    h = len(sight.honest)
    return np.full(h, 1.0 / sight.n) if sight.weights is None else sight.weights


def _byzantine_weight(sight: Sight, weights: _Floats) -> float:
    """What the target gives to all attackers; one of them at least is heard, or nobody would forge."""
    if sight.weights is None:
        return max(1, sight.byzantine) / sight.n
    return max(1.0 - math.fsum(weights), 1e-9)


def _default(value: float | str | None, default: float) -> float:
    return default if value is None else float(value)


def _is_finite(value: float | str | None) -> bool:
    return value is None or math.isfinite(float(value))


_FORGERS: dict[str, Callable[[AttackOptions, Sight], Vector | _Floats | None]] = {
    "none": _own,
    "silent": _silent,
    "sign-flip": _sign_flip,
    "gaussian": _gaussian,
    "alie": _alie,
    "ipm": _scaled_mean(0.5),
    "foe": _scaled_mean(10.0),
    "mimic": _mimic,
    "dissensus": _dissensus,
    "spectral": _spectral,
    "min-max": _min_max,
    "min-sum": _min_sum,
    "free-ride": _free_ride,
    "nan": _constant(math.nan),
    "inf": _constant(math.inf),
    "huge": _constant(_HUGE),
    "label-flip": _own,
    "backdoor": _own,
    "model-replacement": _model_replacement,
    "sybil": _sign_flip,
    "eclipse": _sign_flip,
    **dict.fromkeys(KNOWLEDGE_KINDS, _own),
}
