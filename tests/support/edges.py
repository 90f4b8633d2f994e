"""Two peers' books on the edges between them, and what passes over those."""

from __future__ import annotations

from typing import Any

from p2pfl.events import Header, Hello, Kind
from p2pfl.gossip.links import Links, Meeting
from p2pfl.ids import PeerId, RunId

__all__ = ["INC", "A", "B", "hello", "introduce", "paired", "share"]

A, B = PeerId("12D3KooA"), PeerId("12D3KooB")
INC = {A: 11, B: 22}


def share(seq: int, w: float = 0.25, sender: PeerId = A, recipient: PeerId = B) -> Header:
    """The header of share number `seq`."""
    return Header(
        run=RunId("0" * 64),
        sender=sender,
        recipient=recipient,
        incarnation=INC[sender],
        boot_session=1,
        kind=Kind.SHARE,
        round=seq,
        edge_seq=seq,
        weights=(w,),
        issued_at=0.0,
    )


def hello(links: Links, peer: PeerId, **changes: Any) -> Hello:
    """What the owner of `links` says to `peer`."""
    fields: dict[str, Any] = {
        "agreement": "{}",
        "begun": True,
        "phase": "running",
        "initial_digest": b"",
        **links.greet(peer),
        **changes,
    }
    return Hello(**fields)


def introduce(a: Links, b: Links, inc: dict[PeerId, int] | None = None) -> tuple[Meeting, Meeting]:
    """HELLO both ways, and once more where the pairing changed, as reception does."""
    inc = inc or INC
    first = b.meet(A, inc[A], hello(a, B), inc[B])[0]
    second = a.meet(B, inc[B], hello(b, A), inc[A])[0]
    if first is not Meeting.UP:
        first = b.meet(A, inc[A], hello(a, B), inc[B])[0]
    return second, first


def paired() -> tuple[Links, Links]:
    """The books of A and B after they met."""
    a, b = Links(entered=1.0), Links(entered=1.0)
    assert introduce(a, b) == (Meeting.UP, Meeting.UP)
    return a, b
