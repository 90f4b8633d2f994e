"""How large a message is on the wire, without encoding it: for shaping links and counting bytes."""

from __future__ import annotations

from p2pfl.events import Ack, Hello, Message, Notice, Roster, Statement

__all__ = ["frame_bytes"]

# A signed header, measured on every kind of message: 300 to 330 bytes with its length and signature.
_HEADER_BYTES = 320
# MessagePack's frame around the fields of a structured body, and its integers and digests.
_FIELDS_BYTES = 32
_HELLO_BYTES = 160


def frame_bytes(message: Message) -> int:
    """Bytes of the frame of `message`, within about 10%; without the body of a SHARE or STATE."""
    match message.body:
        case Hello() as hello:
            return _HEADER_BYTES + _HELLO_BYTES + len(hello.agreement) + 16 * len(hello.taken)
        case Statement() as statement:
            return _HEADER_BYTES + _FIELDS_BYTES + len(statement.content) + len(statement.salt)
        case Ack() as ack:
            return _HEADER_BYTES + _FIELDS_BYTES + 16 * (len(ack.refused) + len(ack.taken))
        case Notice() as notice:
            return _HEADER_BYTES + _FIELDS_BYTES + len(notice.text)
        case Roster() as roster:
            records = (*roster.certificates, *roster.revocations, *roster.addresses)
            return _HEADER_BYTES + sum(map(len, records))
        case _:
            return _HEADER_BYTES
