"""Signed messages: whose header it is, and whether it is for us, now, and for the first time.

Theory of operation.  A message comes over a connection whose other end has proved its key, and its header
names sender and recipient under that same key's signature; so nobody can pass on what was meant for another.
What remains is a peer's own old messages: after a crash, from a restored backup, or on purpose.  `Known` is
what this node remembers of a peer between messages, and it is kept in every Commit, so that the rule holds
across restarts of either side:

  * a HELLO opens a boot session; an incarnation that was replaced by a later one is retired for good;
  * everything else must be of the incarnation in force, and of its boot session, except shares and
    statements, which are persisted before they are sent and may be sent again, byte for byte, by a later one;
  * a share's number on the edge must be above the last one settled.

Incarnations and boot sessions are random 64-bit numbers: they are compared for equality, never ordered.
A clock that is off is information, never a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from p2pfl.errors import LocalError
from p2pfl.events import Header, Kind
from p2pfl.ids import PeerId, RunId
from p2pfl.trust.identity import Identity, verify

__all__ = [
    "DOMAIN",
    "MAX_RETIRED",
    "Known",
    "Refusal",
    "verify_header",
    "signer_of",
    "verify_signed",
    "refusal",
    "greet",
    "settle",
]

# What every header is signed under; the version of the protocol is part of it.
DOMAIN = b"p2pfl-node/1"
# Retired incarnations remembered of one peer.  Each costs its site a lost disk or a restored backup.
MAX_RETIRED = 64

Refusal: TypeAlias = Literal[
    "sender", "recipient", "run", "epoch", "retired", "incarnation", "boot-session", "duplicate"
]

# Sent again after a restart as the very bytes that were persisted, so their boot session may be an older one.
_PERSISTED = frozenset({Kind.SHARE, Kind.STATEMENT})
# Amendments reach a node that lags behind by these, so they pass in any epoch.
_ANY_EPOCH = frozenset({Kind.HELLO, Kind.ROSTER, Kind.NOTICE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is remembered of a peer.

    incarnation, boot_session: those in force, None while it was never met.   last_seq: of its last settled
    share.   retired: the incarnations that are over, oldest first.
    """

    incarnation: int | None = None
    boot_session: int | None = None
    last_seq: int = 0
    retired: tuple[int, ...] = ()


def verify_header(sender: PeerId, header: bytes, signature: bytes) -> bool:
    """Whether `sender` signed these exact header bytes.  Never raises."""
    return verify(sender, DOMAIN, header, signature)


def signer_of(identity: Identity) -> Callable[[bytes], bytes]:
    """A function from `DOMAIN + header` to its signature, as `net.messages.seal` takes it.

    It raises LocalError on bytes without the domain, so that it cannot be made to sign anything else.
    """

    def sign(data: bytes) -> bytes:
        if not data.startswith(DOMAIN):
            raise LocalError(f"only headers are signed here, under {DOMAIN!r}")
        return identity.sign(b"", data)

    return sign


def verify_signed(sender: PeerId, data: bytes, signature: bytes) -> bool:
    """Whether `sender` signed `data`, which is `DOMAIN + header`, as `net.messages.open_frame` asks."""
    return data.startswith(DOMAIN) and verify(sender, b"", data, signature)


def refusal(
    header: Header, *, me: PeerId, peer: PeerId, run: RunId, epoch: int, known: Known
) -> Refusal | None:
    """Why the message under `header` is not to be handled, or None.

    me: this node.   peer: the key that the connection proved.   epoch: ours; the one before passes too.
    """
    if header.sender != peer:
        return "sender"
    if header.recipient != me:
        return "recipient"
    if header.run != run:
        return "run"
    if header.kind not in _ANY_EPOCH and header.epoch not in (epoch, epoch - 1):
        return "epoch"
    if header.incarnation in known.retired:
        return "retired"
    if header.kind is Kind.HELLO:
        return None
    if header.incarnation != known.incarnation:
        return "incarnation"
    if header.kind not in _PERSISTED and header.boot_session != known.boot_session:
        return "boot-session"
    if header.kind is Kind.SHARE and header.edge_seq <= known.last_seq:
        return "duplicate"
    return None


def greet(known: Known, hello: Header) -> Known:
    """`known` after a HELLO that was not refused: its boot session is in force.

    Another incarnation than before retires that one, and numbers its shares from the start.
    """
    if known.incarnation in (None, hello.incarnation):
        return replace(known, incarnation=hello.incarnation, boot_session=hello.boot_session)
    retired = (*known.retired, known.incarnation)[-MAX_RETIRED:]
    return Known(
        incarnation=hello.incarnation,
        boot_session=hello.boot_session,
        retired=tuple(number for number in retired if number is not None),
    )


def settle(known: Known, seq: int) -> Known:
    """`known` after the share numbered `seq`, and all before it, were absorbed or refused."""
    return replace(known, last_seq=max(known.last_seq, seq))
