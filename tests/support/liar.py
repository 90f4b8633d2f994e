"""A member with a good key and bad intentions, who says to one peer of a world whatever a test wants."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from worlds import agreement, tiny_world

from p2pfl.events import Body, Connected, Event, Header, Hello, Kind, Message, Offered, Received
from p2pfl.simulations.world import World
from p2pfl.state import State

__all__ = ["Liar", "world_with_a_liar"]


def world_with_a_liar(n: int = 4, **options: Any) -> World:
    """`n - 1` honest machines, and a last one that never starts: its key is the liar's."""
    options.setdefault("members_at_start", n - 1)
    memory_bytes = options.pop("memory_bytes", 10**9)
    spec = agreement(n, **options)
    return tiny_world(n, spec=spec, starts_at_s=[0.0] * (n - 1) + [1e9], memory_bytes=memory_bytes)


class Liar:
    """Its connection to machine `i`."""

    def __init__(self, world: World, i: int) -> None:
        self._world, self._machine = world, world.machines[i]
        self.name = world.machines[-1].name
        self.identity = world.machines[-1].identity
        self._greetings = 0

    @property
    def victim(self) -> State:
        """The state of the peer it talks to."""
        assert self._machine.peer is not None
        return self._machine.peer.state

    def header(self, kind: Kind, **fields: Any) -> Header:
        """A header of the liar's, addressed to the victim."""
        filled: dict[str, Any] = {
            "run": self.victim.run,
            "sender": self.name,
            "recipient": self._machine.name,
            "incarnation": 777,
            "boot_session": 6,
            "kind": kind,
            "round": 0,
            "issued_at": self._world.now,
            **fields,
        }
        return Header(**filled)

    def tell(self, event: Event) -> None:
        """Let the victim hear `event`, and its driver do what it asks."""
        self._world._tell(self._machine, event)

    def say(self, kind: Kind, body: Body, **fields: Any) -> None:
        """Send a message."""
        message = Message(header=self.header(kind, **fields), body=body)
        self.tell(Received(peer=self.name, message=message))

    def greet(self, header: dict[str, Any] | None = None, **fields: Any) -> None:
        """Connect, and say a HELLO that is right but for `fields` and `header`."""
        self.tell(Connected(peer=self.name))
        self._greetings += 1
        filled: dict[str, Any] = {
            "agreement": self.victim.agreement.decode(),
            "begun": False,
            "phase": "waiting",
            "initial_digest": self.victim.initial_digest,
            "their_incarnation": self.victim.incarnation,
            "absorbed": 0,
            "sent": 0,
            "acked": 0,
            **fields,
        }
        self.say(Kind.HELLO, Hello(**filled), edge_seq=self._greetings, **(header or {}))

    def offer(self, kind: Kind, seq: int, w: float, body: np.ndarray, **fields: Any) -> Header:
        """Offer a body; returns its header."""
        fields.setdefault("weights", (w,) if kind is Kind.SHARE else ())
        header = self.header(
            kind,
            edge_seq=seq,
            schema_hash=self.victim.schema_hash,
            size=body.nbytes,
            raw_size=body.nbytes,
            digest=hashlib.sha256(body.data).digest(),
            **fields,
        )
        self.tell(Offered(peer=self.name, header=header))
        return header

    def give(self, kind: Kind, seq: int, w: float, body: np.ndarray, **fields: Any) -> None:
        """Offer a body and deliver it, whether it was asked for or not."""
        header = self.offer(kind, seq, w, body, **fields)
        self.tell(Received(peer=self.name, message=Message(header=header, body=body)))
