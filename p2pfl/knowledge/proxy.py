"""A small model that travels and a private one that stays: ProxyFL.

The two teach each other on the own samples.  The vector that gossip mixes is the proxy's alone, by push-sum
as any model's, with whatever compression, screening and privacy the agreement has for vectors; so this
exchange offers nothing itself, and its bytes are those of the proxy's shares.  The private model may be
anything that predicts the same classes, and is learner state: durable here, never sent.
Source: Kalra et al. 2023, arXiv:2111.11343 (ProxyFL), eq. 3 and 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from p2pfl.errors import ConfigError, RemoteError
from p2pfl.ids import PeerId
from p2pfl.knowledge.bodies import Body
from p2pfl.knowledge.exchange import Heading, Offer, Phase, Reason
from p2pfl.knowledge.options import ExchangeOptions
from p2pfl.work import Fit, Fitted, Job, Mutual, Result

__all__ = ["PROXY", "check_travelling", "ProxyState", "ProxyExchange"]

# The names of the proxy's tensors begin with it; no other tensor may be in a proxy run's vector.
PROXY = "proxy."


def check_travelling(names: Iterable[str]) -> None:
    """`names`, of the tensors that gossip would send, are all the proxy's.  Raises ConfigError."""
    private = sorted(name for name in names if not name.startswith(PROXY))
    if private:
        raise ConfigError(
            f"tensor {private[0]!r} would travel, and is not the proxy's; with knowledge.exchange.kind ="
            f" 'proxy' learner.share has only names that begin with {PROXY!r}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyState:
    """Whether the fit of `round` is done."""

    round: int = -1
    phase: Phase = Phase.A
    is_fitted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyExchange:
    """Mutual learning; gossip does the rest."""

    options: ExchangeOptions

    def start(self) -> ProxyState:
        """Before the first fit."""
        return ProxyState()

    def begin(
        self,
        state: ProxyState,  # noqa: ARG002
        round_: int,
        *,
        hears: frozenset[PeerId],  # noqa: ARG002
        tells: frozenset[PeerId],  # noqa: ARG002
    ) -> ProxyState:
        """Phase A."""
        return ProxyState(round=round_)

    def jobs(self, state: ProxyState) -> tuple[Job, ...]:
        """One Fit of both models."""
        if state.is_fitted or state.phase is Phase.B:
            return ()
        o = self.options
        return (Fit(mutual=Mutual(alpha=o["alpha"], beta=o["beta"], temperature=o["temperature"])),)

    def made(self, state: ProxyState, result: Result) -> ProxyState:
        """The fit is done."""
        return replace(state, is_fitted=state.is_fitted or isinstance(result, Fitted))

    def offers(self, state: ProxyState) -> tuple[Offer, ...]:  # noqa: ARG002
        """Nothing: the proxy travels as a share."""
        return ()

    def verdict(self, state: ProxyState, heading: Heading) -> Reason | None:  # noqa: ARG002
        """No packet is expected."""
        return "kind"

    def absorb(self, state: ProxyState, heading: Heading, body: Body) -> ProxyState:  # noqa: ARG002
        """Nothing passes the verdict.  Raises RemoteError."""
        raise RemoteError(f"a {heading.kind.name}, which this run does not exchange", heading.sender)

    def awaited(self, state: ProxyState) -> frozenset[PeerId]:  # noqa: ARG002
        """Nobody; gossip has its own rule."""
        return frozenset()

    def turn(self, state: ProxyState) -> ProxyState:
        """Phase B."""
        return replace(state, phase=Phase.B)

    def peer_gone(self, state: ProxyState, peer: PeerId) -> ProxyState:  # noqa: ARG002
        """Nothing depends on anyone."""
        return state
