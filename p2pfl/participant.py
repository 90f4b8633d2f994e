"""What a driver drives: a Peer, or whatever answers like one."""

from __future__ import annotations

from typing import Protocol

from p2pfl.events import Effect, Event, Vector
from p2pfl.ids import PeerId
from p2pfl.state import State
from p2pfl.view import PeerView

__all__ = ["Participant"]


class Participant(Protocol):
    """The interface of `p2pfl.peer.Peer`; the simulator's attackers have it, too."""

    @property
    def state(self) -> State:
        """Everything it knows."""
        ...

    @property
    def deadline(self) -> float | None:
        """When `expire` is to be called, unless an event comes first."""
        ...

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event; returns what is to be done, in order."""
        ...

    def expire(self, now: float) -> list[Effect]:
        """`deadline` has passed."""
        ...

    def view(self) -> PeerView:
        """What can be shown of it now."""
        ...

    def wanted(self) -> tuple[PeerId, ...]:
        """The members it wants a connection to."""
        ...

    def knows(self, peer: PeerId) -> bool:
        """Whether `peer` is a member that it talks to."""
        ...

    def model(self) -> Vector:
        """Its model now, (d,) float32."""
        ...
