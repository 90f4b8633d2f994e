"""An honest peer in a world that keeps what it hears."""

from __future__ import annotations

import numpy as np

from p2pfl.events import Effect, Event, Message, Offered, Received, Vector
from p2pfl.ids import PeerId
from p2pfl.peer import Peer
from p2pfl.state import State
from p2pfl.view import PeerView

__all__ = ["Ear"]


class Ear:
    """An honest peer that keeps what it hears."""

    def __init__(self, inner: Peer, heard: list[Message]) -> None:
        self._inner, self._heard = inner, heard

    @property
    def state(self) -> State:
        return self._inner.state

    @property
    def deadline(self) -> float | None:
        return self._inner.deadline

    def handle(self, event: Event, now: float) -> list[Effect]:
        if isinstance(event, Received):
            self._heard.append(event.message)
        if isinstance(event, Offered):
            self._heard.append(Message(header=event.header, body=np.zeros(0, np.uint8)))
        return self._inner.handle(event, now)

    def expire(self, now: float) -> list[Effect]:
        return self._inner.expire(now)

    def view(self) -> PeerView:
        return self._inner.view()

    def wanted(self) -> tuple[PeerId, ...]:
        return self._inner.wanted()

    def knows(self, peer: PeerId) -> bool:
        return self._inner.knows(peer)

    def model(self) -> Vector:
        return self._inner.model()
