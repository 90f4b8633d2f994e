"""Names of peers and runs.

A PeerId is the libp2p id of an Ed25519 key: base58btc of the identity multihash of the protobuf-encoded
public key (libp2p peer-ids spec), so the key can be read back out of the name.  A RunId is the SHA-256 of
an agreement's canonical form, in hex.
"""

from functools import lru_cache
from typing import NewType

from p2pfl.errors import ConfigError

__all__ = ["PeerId", "RunId", "parse_peer_id", "peer_id_of", "public_key_of", "short"]

PeerId = NewType("PeerId", str)
RunId = NewType("RunId", str)

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
# identity multihash (0x00, 36 bytes) of protobuf {1: Ed25519 (1), 2: 32 bytes}: libp2p peer-ids spec.
_PREFIX = bytes.fromhex("002408011220")
# Base58 text of 38 bytes is 52 characters; anything longer is refused before it is converted.
_PEER_ID_CHARACTERS = 64
# Conversions remembered: the members of the largest run there can be (trust/membership.py).
_NAMES_KEPT = 4096


# Base58 is long division; every header, statement and commit names the same few peers.
@lru_cache(maxsize=_NAMES_KEPT)
def peer_id_of(public_key: bytes) -> PeerId:
    """The name of an Ed25519 public key.   public_key: 32 bytes."""
    if len(public_key) != 32:
        raise ConfigError(f"an Ed25519 public key has 32 bytes, this one has {len(public_key)}")
    data = _PREFIX + public_key
    number = int.from_bytes(data, "big")
    digits = ""
    while number:
        number, digit = divmod(number, 58)
        digits = _ALPHABET[digit] + digits
    return PeerId("1" * (len(data) - len(data.lstrip(b"\0"))) + digits)


@lru_cache(maxsize=_NAMES_KEPT)
def public_key_of(peer_id: PeerId) -> bytes:
    """The 32-byte Ed25519 public key inside a PeerId.  Raises ConfigError on anything else."""
    if not 0 < len(peer_id) <= _PEER_ID_CHARACTERS:
        raise ConfigError(f"not a peer id: {peer_id[:80]!r}; it looks like 12D3KooW... and has 52 characters")
    number = 0
    for character in peer_id:
        digit = _ALPHABET.find(character)
        if digit < 0:
            raise ConfigError(f"not a peer id: {peer_id[:80]!r} has {character!r}, which base58 lacks")
        number = number * 58 + digit
    zeros = len(peer_id) - len(peer_id.lstrip("1"))
    data = b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")
    if len(data) != 38 or not data.startswith(_PREFIX):
        raise ConfigError(f"not the id of an Ed25519 key: {peer_id[:80]!r}; it looks like 12D3KooW...")
    return data[6:]


def parse_peer_id(text: str) -> PeerId:
    """`text` as a PeerId, checked.  Raises ConfigError."""
    peer_id = PeerId(text.strip())
    public_key_of(peer_id)
    return peer_id


def short(name: PeerId | RunId) -> str:
    """A name short enough for a table: the last six characters of a peer, the first eight of a run."""
    return f"…{name[-6:]}" if name.startswith("12D3") else name[:8]
