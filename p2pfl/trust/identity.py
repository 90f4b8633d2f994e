"""Who a peer is: an Ed25519 key, the PeerId that names it, and the file that keeps it.

The 32-byte seed is the one libp2p uses: one key proves the connection (Noise) and signs what travels on it.
Every signature is over `domain + data`.  No domain is the beginning of another, so a signature made for one
purpose never verifies for another.

Source: RFC 8032 (Ed25519, through libsodium), RFC 8410 (the key file: PKCS #8 in PEM, as OpenSSL reads it).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from p2pfl.errors import ConfigError, StoreError
from p2pfl.ids import PeerId, peer_id_of, public_key_of

__all__ = ["SEED_BYTES", "PUBLIC_KEY_BYTES", "SIGNATURE_BYTES", "Identity", "verify", "create", "load"]

# RFC 8032, section 5.1.
SEED_BYTES = 32
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64

# RFC 8410, section 7: everything of an Ed25519 PKCS #8 key that comes before its seed.
_PKCS8 = bytes.fromhex("302e020100300506032b657004220420")
_HEAD = "-----BEGIN PRIVATE KEY-----"
_TAIL = "-----END PRIVATE KEY-----"
# The file has 119 bytes; a key file that was edited or is something else is not read past this.
_MAX_FILE_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Identity:
    """An Ed25519 key pair.  Never shows its seed: neither in `repr` nor in an error.

    seed: 32 bytes.   Raises ConfigError on another length.

    >>> Identity(bytes(32)).peer_id
    '12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN'
    """

    seed: bytes = field(repr=False, compare=False)
    peer_id: PeerId = field(init=False)
    public_key: bytes = field(init=False, repr=False, compare=False)
    _key: SigningKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.seed) != SEED_BYTES:
            raise ConfigError(f"an Ed25519 seed has {SEED_BYTES} bytes, this one has {len(self.seed)}")
        key = SigningKey(self.seed)
        object.__setattr__(self, "_key", key)
        object.__setattr__(self, "public_key", bytes(key.verify_key))
        object.__setattr__(self, "peer_id", peer_id_of(bytes(key.verify_key)))

    def sign(self, domain: bytes, data: bytes) -> bytes:
        """The 64-byte signature of `domain + data`; the same bytes every time."""
        return bytes(self._key.sign(domain + data).signature)


def verify(peer_id: PeerId, domain: bytes, data: bytes, signature: bytes) -> bool:
    """Whether `peer_id` signed `domain + data`.  False on anything malformed; never raises.

    libsodium refuses keys of small order and signatures that are not canonical.
    """
    try:
        VerifyKey(public_key_of(peer_id)).verify(domain + data, signature)
    except (ConfigError, CryptoError, ValueError, TypeError):
        return False
    return True


def create(path: Path) -> Identity:
    """A new identity in a new file of mode 0600.

    The file appears whole or not at all, and never replaces another.   Raises StoreError when there is one
    already, or when the disk refuses.
    """
    identity = Identity(os.urandom(SEED_BYTES))
    body = base64.b64encode(_PKCS8 + identity.seed).decode()
    text = f"{_HEAD}\n{body}\n{_TAIL}\n".encode()
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_new(draft, text)
        try:
            # A link, unlike a rename, fails when the name is taken.
            os.link(draft, path)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            _write_new(path, text)  # a file system without hard links
        finally:
            draft.unlink()
        _sync_folder(path.parent)
    except FileExistsError:
        raise StoreError(
            f"{path} exists: it is this node's identity and stays; use it, or choose another --home"
        ) from None
    except OSError as error:
        raise StoreError(
            f"{path}: the key cannot be written: {error.strerror}; is the folder there?"
        ) from error
    return identity


def load(path: Path) -> Identity:
    """The identity in `path`.

    Raises StoreError when the file is missing or damaged, and ConfigError when others may read it.
    """
    try:
        # O_NONBLOCK: a pipe in the key's place must not hang the node.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing; `p2pfl node init` makes a key") from None
    except OSError as error:
        raise StoreError(f"{path}: the key cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"{path} is not a file; restore the key from a backup")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise ConfigError(f"{path} has mode {mode:04o}: others may read the key; run `chmod 600 {path}`")
        try:
            text = file.read(_MAX_FILE_BYTES)
        except OSError as error:
            raise StoreError(f"{path}: the key cannot be read: {error.strerror}") from error
    seed = _seed_in(text)
    if seed is None:
        raise StoreError(
            f"{path} is not an Ed25519 key in PEM; restore it from a backup, or remove it and run"
            " `p2pfl node init` to become a new peer"
        )
    return Identity(seed)


def _seed_in(text: bytes) -> bytes | None:
    lines = text.decode("ascii", "replace").split()
    joined = " ".join(lines)
    if not (joined.startswith(_HEAD) and joined.endswith(_TAIL)):
        return None
    body = joined[len(_HEAD) : -len(_TAIL)].replace(" ", "")
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        return None
    is_key = len(data) == len(_PKCS8) + SEED_BYTES and data.startswith(_PKCS8)
    return data[len(_PKCS8) :] if is_key else None


def _write_new(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
