"""Snapshots: what must survive a restart, as safetensors files that are either whole or absent.

Theory of operation.  A file is written under a temporary name, flushed to the disk, renamed to the SHA-256
of its content, and the folder is flushed; only then is its name given to the caller, who makes it the
current one (node/store.py).  So a crash leaves at most a temporary file or an unnamed snapshot, and the
next `prune` removes both.

Arrays named `payload:<SHA-256 of the raw bytes, 64 hex digits>` never change and live over several
snapshots (an unacknowledged share of the outbox).  Each has a file of its own, written once and only
referenced afterwards.
"""

import contextlib
import errno
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from p2pfl.errors import LocalError, StoreError

__all__ = ["PAYLOAD", "SnapshotFile", "write", "read", "prune", "export", "disk_errors"]

Array: TypeAlias = NDArray[Any]

PAYLOAD = "payload:"
# The metadata key under which a snapshot lists the payloads that belong to it.
_PAYLOADS_KEY = "p2pfl.payloads"
# safetensors' names of the dtypes that numpy has too.
_DTYPES = {"b1": "BOOL", "f2": "F16", "f4": "F32", "f8": "F64"} | {
    f"{kind}{size}": f"{kind.upper()}{8 * size}" for kind in "iu" for size in (1, 2, 4, 8)
}
_SUFFIXES = (".safetensors", ".payload", ".tmp")
# Digits of SHA-256 in a snapshot's name; the whole digest is checked on reading (git abbreviates to 7-12).
_NAME_DIGITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFile:
    """A snapshot on the disk: its file's name, that file's SHA-256 in hex, and its payloads' file names."""

    name: str
    digest: str
    payloads: tuple[str, ...] = ()

    @property
    def files(self) -> frozenset[str]:
        """Every file that this snapshot needs, for `prune`."""
        return frozenset((self.name, *self.payloads))


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about `path` into a StoreError that names the cause and the cure."""
    try:
        yield
    except OSError as cause:
        match cause.errno:
            case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
                cure = "the disk or its quota is full: free some space, the node goes on from its last round"
            case errno.EROFS | errno.EACCES | errno.EPERM:
                cure = "make it writable for the node's user, or choose another --home"
            case errno.ENOENT:
                cure = "it is gone: bring it back, or use `p2pfl node restore`"
            case _:
                cure = "check the disk, then start the node again; it goes on from its last round"
        raise StoreError(f"{cause.filename or path}: {cause.strerror or cause}; {cure}") from cause


def write(folder: Path, arrays: Mapping[str, Array]) -> SnapshotFile:
    """Write `arrays` durably to a new file in `folder`, made if needed, and return where they are.

    arrays: any shapes; boolean, integer and floating dtypes.  The same arrays give the same digest.
    When this returns, a power loss keeps the file.  Raises StoreError (full, read-only), LocalError (a
    payload whose name is not the SHA-256 of its bytes, an object dtype).
    """
    with disk_errors(folder):
        _make_folder(folder)
        payloads: dict[str, Mapping[str, Any]] = {}
        plain: dict[str, Array] = {}
        for name in sorted(arrays):
            array = _contiguous(name, arrays[name])
            if name.startswith(PAYLOAD):
                _write_payload(folder, name, array)
                payloads[name] = {"dtype": array.dtype.str, "shape": array.shape}
            else:
                plain[name] = array
        temporary = folder / "snapshot.tmp"
        digest = _save(temporary, plain, {_PAYLOADS_KEY: json.dumps(payloads, sort_keys=True)})
        name = f"{digest[:_NAME_DIGITS]}.safetensors"
        _settle(temporary, folder / name)
        _sync_folder(folder)
    return SnapshotFile(name=name, digest=digest, payloads=tuple(_payload_file(p) for p in payloads))


def read(folder: Path, name: str, digest: str) -> dict[str, Array]:
    """The arrays of the snapshot `name`, verified against `digest` and its payloads against their names.

    Raises StoreError when a file is missing or is not what was written.
    """
    path = folder / name
    with disk_errors(path):
        data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise _damaged(path)
    arrays: dict[str, Array] = safetensors.numpy.load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    del data
    for payload, form in json.loads(header["__metadata__"][_PAYLOADS_KEY]).items():
        file = folder / _payload_file(payload)
        with disk_errors(file):
            raw = file.read_bytes()
        if hashlib.sha256(raw).hexdigest() != payload.removeprefix(PAYLOAD):
            raise _damaged(file)
        arrays[payload] = np.frombuffer(raw, dtype=np.dtype(form["dtype"])).reshape(form["shape"])
    return arrays


def prune(folder: Path, keep: frozenset[str] | set[str]) -> int:
    """Remove the snapshot, payload and temporary files of `folder` that are not in `keep`; how many went.

    Payloads are kept when `keep` names them (`SnapshotFile.files`).  Files of other kinds are left alone.
    What cannot be removed now is left for the next time: nothing depends on it.
    """
    removed = 0
    if not folder.is_dir():
        return removed
    for path in sorted(folder.iterdir()):
        if path.suffix in _SUFFIXES and path.name not in keep:
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
    return removed


def export(path: Path, arrays: Mapping[str, Array]) -> str:
    """Write `arrays` as one plain safetensors file at `path`, whole or not at all; its SHA-256 in hex.

    The file opens in any safetensors reader (`safetensors.torch.load_file`).  Raises StoreError, LocalError.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        plain = {name: _contiguous(name, array) for name, array in arrays.items()}
        digest = _save(temporary, plain, {"format": "pt"})
        _settle(temporary, path)
        _sync_folder(path.parent)
    return digest


def _contiguous(name: str, array: Array) -> Array:
    """`array` in row order and little-endian, a copy only when it is not so already."""
    if array.dtype.str[1:] not in _DTYPES:
        raise LocalError(f"array {name!r} has dtype {array.dtype}; a snapshot holds numbers and booleans")
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _save(temporary: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> str:
    """Write and flush a safetensors file without a second copy of the arrays; its SHA-256 in hex.

    Header length (uint64), header (JSON, padded to 8 bytes), then the arrays, widest dtype first.
    Source: https://github.com/huggingface/safetensors, "Format".
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    offset = 0
    for name in order:
        array = arrays[name]
        span = [offset, offset + array.nbytes]
        header[name] = {"dtype": _DTYPES[array.dtype.str[1:]], "shape": array.shape, "data_offsets": span}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return _write_flushed(temporary, [struct.pack("<Q", len(text)), text, *(_raw(arrays[n]) for n in order)])


def _write_payload(folder: Path, name: str, array: Array) -> None:
    path = folder / _payload_file(name)
    if path.exists() and path.stat().st_size == array.nbytes:
        return
    temporary = path.with_suffix(".tmp")
    if _write_flushed(temporary, [_raw(array)]) != name.removeprefix(PAYLOAD):
        temporary.unlink()
        raise LocalError(f"array {name!r} is not named by the SHA-256 of its bytes, so it cannot be shared")
    _settle(temporary, path)


def _write_flushed(temporary: Path, parts: Iterable[bytes | memoryview]) -> str:
    """Write `parts` to a new file for its owner only, flush it to the disk; the SHA-256 of it all in hex."""
    digest = hashlib.sha256()
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            for part in parts:
                digest.update(part)
                rest = memoryview(part)
                while rest:
                    rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return digest.hexdigest()


def _raw(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


def _payload_file(name: str) -> str:
    digest = name.removeprefix(PAYLOAD)
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise LocalError(f"array {name!r} is not named payload:<SHA-256 in 64 lowercase hex digits>")
    return f"{digest}.payload"


def _settle(temporary: Path, path: Path) -> None:
    """Rename, and leave no temporary file behind when that fails."""
    try:
        os.replace(temporary, path)  # noqa: PTH105  (the one call that faults are injected into)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _make_folder(folder: Path) -> None:
    """Make `folder` and flush the entries of every folder that was new."""
    missing = []
    level = folder
    while not level.exists():
        missing.append(level)
        level = level.parent
    for level in reversed(missing):
        level.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(level.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(path: Path) -> StoreError:
    return StoreError(
        f"{path} is not what was written there (its SHA-256 differs); use `p2pfl node restore` "
        "with a backup, or start with an empty --home and take the model from a neighbour"
    )
