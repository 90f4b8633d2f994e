"""Tickets: a certificate and where to present it, as text that survives being mailed.

A ticket is `p2pfl1` and base64url of a canonical document with four bytes of its SHA-256 behind it.  It is
not a secret: the certificate in it is bound to the invited key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from p2pfl import encoding
from p2pfl.errors import ConfigError, LocalError, RemoteError
from p2pfl.ids import PeerId, RunId
from p2pfl.trust.certificates import Certificate
from p2pfl.trust.successions import (
    MAX_PETITION_BYTES,
    Petition,
    Succession,
    decode_petition,
    encode_petition,
)

__all__ = ["MAX_ADDRESSES", "MAX_ADDRESS_BYTES", "Ticket", "write_ticket", "parse_ticket"]

# As in an address record: enough for the interfaces of a few founders.
MAX_ADDRESSES = 8
MAX_ADDRESS_BYTES = 128
_PREFIX = "p2pfl1"
# A slip of the hand goes unnoticed once in 2^32; against malice there are the signatures.
_CHECKSUM_BYTES = 4
_MAX_BYTES = MAX_PETITION_BYTES + MAX_ADDRESSES * (MAX_ADDRESS_BYTES + 2) + 16
# Its text in base64, with room for the line breaks of a mail program.
_MAX_CHARACTERS = 2 * _MAX_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A certificate, complete or still to be countersigned, and multiaddrs of members.

    successions: the keys that followed the certificate's, after `node rotate-key`.
    """

    certificate: Certificate
    addresses: tuple[str, ...] = ()
    successions: tuple[Succession, ...] = ()

    @property
    def run(self) -> RunId:
        """The run it is for."""
        return self.certificate.run

    @property
    def subject(self) -> PeerId:
        """The key it admits."""
        return self.successions[-1].new if self.successions else self.certificate.subject

    @property
    def petition(self) -> Petition:
        """What is presented in a lobby."""
        return Petition(certificate=self.certificate, successions=self.successions)


def write_ticket(
    certificate: Certificate, addresses: Iterable[str] = (), successions: Iterable[Succession] = ()
) -> str:
    """The text of a ticket.  Raises ConfigError on more or longer addresses than a ticket holds."""
    ticket = Ticket(certificate=certificate, addresses=tuple(addresses), successions=tuple(successions))
    try:
        _check_addresses(list(ticket.addresses))
        data = encoding.pack({1: encode_petition(ticket.petition), 2: list(ticket.addresses)})
    except (LocalError, RemoteError) as error:
        raise ConfigError(f"this ticket cannot be written: {error}") from error
    return _PREFIX + base64.urlsafe_b64encode(data + _checksum(data)).decode().rstrip("=")


def parse_ticket(text: str) -> Ticket:
    """The ticket in `text`; spaces and line breaks in it do not matter.

    Its signatures are not checked: that takes the founders, who are in the agreement.   Raises ConfigError.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ConfigError(f"not a ticket: {len(text)} characters, the most is {_MAX_CHARACTERS}")
    body = "".join(text.split())
    if not body.startswith(_PREFIX):
        cure = "; it is of another release" if body.startswith("p2pfl") else ""
        raise ConfigError(f"not a ticket: {body[:12]!r} does not begin with {_PREFIX!r}{cure}")
    body = body.removeprefix(_PREFIX)
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"the ticket is damaged: {error}; copy it again, whole") from error
    data, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if checksum != _checksum(data):
        raise ConfigError("the ticket is damaged: its checksum does not match; copy it again, whole")
    try:
        document = encoding.unpack(data, "its document", keys=(1, 2), limit=_MAX_BYTES)
        petition = decode_petition(encoding.blob(document[1], "its petition", most_bytes=MAX_PETITION_BYTES))
        return Ticket(
            certificate=petition.certificate,
            addresses=_check_addresses(document[2]),
            successions=petition.successions,
        )
    except RemoteError as error:
        raise ConfigError(f"the ticket is malformed: {error}; ask for a new one") from error


def _check_addresses(value: object) -> tuple[str, ...]:
    addresses = []
    for entry in encoding.items(value, "its addresses", most=MAX_ADDRESSES):
        address = encoding.printable(entry, "an address", most_bytes=MAX_ADDRESS_BYTES)
        if not address.startswith("/"):
            raise RemoteError(
                f"address {address!r} is not a multiaddr such as /ip4/10.0.0.1/tcp/4911/p2p/12D3..."
            )
        addresses.append(address)
    return tuple(addresses)


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:_CHECKSUM_BYTES]
