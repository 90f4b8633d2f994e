"""The `[trust]` table of an agreement: who may admit, and what is checked before anything is mixed."""

from __future__ import annotations

import msgspec

from p2pfl.errors import ConfigError
from p2pfl.ids import parse_peer_id
from p2pfl.trust.membership import check_root

__all__ = ["AggregatorOptions", "PrivacyOptions", "TrustOptions"]


class AggregatorOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[trust] aggregator`: only `none`, plain mixing after screening, in this release."""

    kind: str = "none"

    def __post_init__(self) -> None:
        if self.kind != "none":
            raise ValueError(f'trust.aggregator.kind = "{self.kind}" is not in this release; it has "none"')


class PrivacyOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[trust] privacy`: only `none` in this release."""

    kind: str = "none"

    def __post_init__(self) -> None:
        if self.kind != "none":
            raise ValueError(f'trust.privacy.kind = "{self.kind}" is not in this release; it has "none"')


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
