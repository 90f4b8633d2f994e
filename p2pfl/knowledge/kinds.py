"""The exchange that an agreement names."""

from __future__ import annotations

from typing import Any

from p2pfl.errors import ConfigError
from p2pfl.ids import PeerId, RunId
from p2pfl.knowledge.exchange import Exchange
from p2pfl.knowledge.hub import HubExchange
from p2pfl.knowledge.options import KnowledgeOptions
from p2pfl.knowledge.probe import ProbeExchange
from p2pfl.knowledge.proto import ProtoExchange
from p2pfl.knowledge.proxy import ProxyExchange
from p2pfl.work import Expected

__all__ = ["exchange_of"]


def exchange_of(
    options: KnowledgeOptions, *, expected: Expected, me: PeerId, run: RunId, last: int | None = None
) -> Exchange[Any] | None:
    """The policy of `options`, None when nothing is exchanged.   last: the last round of training.

    Raises ConfigError when packets would need a width and the learner has none.
    """
    chosen = options.exchange
    if chosen.kind in ("hub", "proto") and not expected.width:
        raise ConfigError(
            f"knowledge.exchange.kind = {chosen.kind!r} needs a learner with hidden features, and this one"
            " has none; choose another learner, or 'probe'"
        )
    match chosen.kind:
        case "none":
            return None
        case "hub":
            return HubExchange(
                options=chosen, expected=expected, me=me, run=run, last=last, probe=options.probe
            )
        case "probe":
            assert options.probe is not None
            return ProbeExchange(options=chosen, probe=options.probe, expected=expected, me=me)
        case "proto":
            return ProtoExchange(options=chosen, expected=expected, me=me)
        case "proxy":
            return ProxyExchange(options=chosen)
