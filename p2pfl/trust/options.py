"""The `[trust]` table of an agreement: who may admit, and what is checked before anything is mixed."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from p2pfl.errors import ConfigError
from p2pfl.ids import parse_peer_id
from p2pfl.trust.membership import check_root
from p2pfl.trust.reputation import TOLERANCE
from p2pfl.trust.rules import check

__all__ = ["AggregatorOptions", "PrivacyOptions", "ReputationOptions", "TrustOptions"]


class AggregatorOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[trust] aggregator`: how a site mixes what it hears; `none` is by `[gossip] averaging`.

    `capped-share` is push-sum with the caps and clipping of gossip/capped.py; it takes `tau`, and no `f`.

    f: how many of the sites that one site hears may lie: a whole number, or below 1 a fraction of its
    in-neighbours, rounded up.   The rest are parameters of single rules (trust/robust.py); None takes the
    rule's default, and one that the rule does not have is refused.
    """

    kind: str = "none"
    f: float = 0.2
    tau: float | None = None
    iterations: int | None = None
    m: int | None = None
    alpha: float | None = None
    gamma: float | None = None
    kappa: float | None = None
    limit: float | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.f < 0.5 or (self.f >= 1 and self.f == int(self.f))):
            raise ValueError(
                f"trust.aggregator.f = {self.f:g} is neither a whole number nor a fraction below one half"
            )
        if self.kind == "none":
            if self.given():
                raise ValueError(f'trust.aggregator.kind = "none" takes no {", ".join(self.given())}')
            return
        if self.kind == "capped-share":
            if odd := self.given().keys() - {"tau"}:
                raise ValueError(f'trust.aggregator.kind = "capped-share" takes no {", ".join(sorted(odd))}')
            if self.tau is not None and not 0 < self.tau < math.inf:
                raise ValueError(f"trust.aggregator.tau = {self.tau:g} is no distance above 0")
            return
        if self.kind == "ubar":
            # Every candidate's loss would have to be known before anything is mixed.
            raise ValueError('trust.aggregator.kind = "ubar" needs losses that a round does not measure')
        try:
            check(self.kind, None, 0, **self.given())
        except ConfigError as error:
            raise ValueError(f"trust.aggregator: {error}") from error

    def given(self) -> dict[str, Any]:
        """The rule's parameters that are not left to their defaults."""
        values = {name: getattr(self, name) for name in self.__struct_fields__ if name not in ("kind", "f")}
        return {name: value for name, value in values.items() if value is not None}


class PrivacyOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[trust] privacy`: what is done to a fit's result before anything of it leaves (trust/privacy.py).

    kind: `gaussian` clips and noises a round's movement, in the peer; `dp-sgd` every row's gradient, in the
    learner.   clip: the largest Euclidean norm of either.   noise_multiplier: the noise's deviation over
    `clip`.   delta: at which epsilon is told.   max_epsilon: a site adds nothing more of its own beyond it.
    """

    kind: str = "none"
    clip: float | None = None
    noise_multiplier: float | None = None
    delta: float = 1e-5
    max_epsilon: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("none", "gaussian", "dp-sgd"):
            raise ValueError(f'trust.privacy.kind = "{self.kind}"; it is "none", "gaussian" or "dp-sgd"')
        if not 0 < self.delta < 1:
            raise ValueError(f"trust.privacy.delta = {self.delta:g} is not between 0 and 1")
        for name in ("clip", "noise_multiplier", "max_epsilon"):
            value = getattr(self, name)
            if self.kind == "none" and value is not None:
                raise ValueError(f'trust.privacy.kind = "none" takes no {name}')
            if value is None and self.kind != "none" and name != "max_epsilon":
                raise ValueError(f"trust.privacy.{name} is missing: {self.kind} does nothing without it")
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"trust.privacy.{name} = {value:g} is not a number above 0")


class ReputationOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[trust] reputation`: whether a site scores its neighbours' models, and leaves out what it doubts.

    tolerance: how many times the usual distance between models is usual still.
    """

    kind: str = "none"
    tolerance: float = TOLERANCE

    def __post_init__(self) -> None:
        if self.kind not in ("none", "beta"):
            raise ValueError(f'trust.reputation.kind = "{self.kind}" is neither "none" nor "beta"')
        if not 1 < self.tolerance < float("inf"):
            raise ValueError(f"trust.reputation.tolerance = {self.tolerance:g} is not a number above 1")


class TrustOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[trust]`: the root of membership, and the checks on what comes in.

    founders: PeerIds; none is allowed only where nobody joins, as in a simulation.
    quorum: founders' signatures that admit or revoke, more than half of them.
    max_norm: the largest Euclidean norm of a model that is mixed; None is the bound of float32 arithmetic.
    """

    founders: tuple[str, ...] = ()
    quorum: int = 1
    aggregator: AggregatorOptions = msgspec.field(default_factory=AggregatorOptions)
    privacy: PrivacyOptions = msgspec.field(default_factory=PrivacyOptions)
    reputation: ReputationOptions = msgspec.field(default_factory=ReputationOptions)
    max_norm: float | None = None

    def __post_init__(self) -> None:
        # ValueError, not ConfigError: msgspec adds the path of the table to it.
        try:
            founders = tuple(parse_peer_id(founder) for founder in self.founders)
            if founders != self.founders:
                raise ConfigError("trust.founders has a name with spaces around it; remove them")
            if founders:
                check_root(founders, self.quorum)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if not founders and self.quorum != 1:
            raise ValueError(f"trust.quorum = {self.quorum} without trust.founders; name the founders")
        if self.max_norm is not None and not 0 < self.max_norm < float("inf"):
            raise ValueError(
                f"trust.max_norm = {self.max_norm} is not a number above 0; leave it out for none"
            )
