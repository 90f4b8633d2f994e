"""Who is a hub, and whose soft labels this site listens to; only in runs whose exchange has hubs."""

from __future__ import annotations

from p2pfl.errors import RemoteError
from p2pfl.events import Kind, Notice
from p2pfl.ids import PeerId
from p2pfl.knowledge.hub import HubExchange
from p2pfl.knowledge.ranking import Capability, pack_capability, rank, read_capability
from p2pfl.state import State

__all__ = ["announce", "announced", "gone", "note", "open_hub"]

_NO_HUB = Capability(capacity=0.0, model=bytes(32), split=bytes(32))


def open_hub(state: State) -> None:
    """Count this site itself among the hubs, if it is one."""
    if (own := _capability(state)) is not None:
        _announced(state, state.me, own)


def announce(state: State, peer: PeerId | None = None) -> None:
    """Tell `peer`, or everybody who is up, that this site is a hub, if it is."""
    if (own := _capability(state)) is None:
        return
    text = pack_capability(own).hex()
    for other in state.neighbours.up() if peer is None else [peer]:
        state.send(other, Kind.NOTICE, Notice(code="hub", text=text))


def announced(state: State, peer: PeerId, text: str) -> None:
    """`peer` says what hub it is."""
    knowing = state.knowing
    if knowing is None or not isinstance(knowing.exchange, HubExchange):
        return
    try:
        capability = read_capability(bytes.fromhex(text))
    except (RemoteError, ValueError):
        state.fault(peer, "notice")
        return
    _announced(state, peer, capability)


def gone(state: State, peer: PeerId) -> None:
    """`peer` is disconnected, or no longer trusted: nothing of it counts."""
    knowing = state.knowing
    if knowing is None:
        return
    knowing.state = knowing.exchange.peer_gone(knowing.state, peer)
    if isinstance(knowing.exchange, HubExchange):
        knowing.state = knowing.exchange.announced(knowing.state, peer, _NO_HUB)
        note(state)


def _announced(state: State, peer: PeerId, capability: Capability) -> None:
    knowing = state.knowing
    assert knowing is not None
    assert isinstance(knowing.exchange, HubExchange)
    knowing.state = knowing.exchange.announced(knowing.state, peer, capability)
    note(state)


def _capability(state: State) -> Capability | None:
    knowing = state.knowing
    if knowing is None or not isinstance(knowing.exchange, HubExchange) or knowing.expected.capacity <= 0:
        return None
    expected = knowing.expected
    return Capability(capacity=expected.capacity, model=expected.model, split=expected.split)


def note(state: State) -> None:
    """Note the hub of this site when it is another than before."""
    knowing = state.knowing
    if knowing is None or not isinstance(knowing.exchange, HubExchange):
        return
    hub = knowing.exchange.hub(knowing.state)
    if hub == knowing.hub or hub is None:
        return
    hubs = {peer: one.capacity for peer, one in knowing.state.hubs.items()}
    others = [peer for peer in rank(state.me, state.run, hubs) if peer != hub]
    state.fact("hub chosen", hub=hub, before=knowing.hub, standby=others[0] if others else None)
    knowing.hub = hub
