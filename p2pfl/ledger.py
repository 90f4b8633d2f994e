"""What a Peer keeps on disk: one MessagePack document beside the large arrays.

What is not here does not survive a restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import StoreError
from p2pfl.events import Snapshot, Vector
from p2pfl.gossip.links import InEdge, OutEdge
from p2pfl.trust.audit import Head
from p2pfl.trust.decisions import LogHead

__all__ = ["Ledger", "Pool", "decode", "read", "write"]

# The layout of this document; a reader refuses another one instead of guessing.
_VERSION = 1
_PAYLOAD = "payload:"


class Ledger(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One peer's durable facts.  `w`, `statistics` and array `x` are its push-sum state.

    Push-pull: `x` is the tracker and `term` its term; arrays `model` and `g` are the model and its gradient.
    """

    version: int = _VERSION
    run: str
    # Whose it is: a key that followed another finds the other's.
    me: str
    incarnation: int
    rebirths: int = 0
    begun: bool = False
    starters: dict[str, int] = {}
    round: int = 0
    nominal: float = 1.0
    w: float = 0.0
    term: int = 0
    statistics: list[float] = []
    # The federation's sums, fixed when the opening rounds end.
    pooled: list[float] | None = None
    out: dict[str, OutEdge] = {}
    into: dict[str, InEdge] = {}
    entered: float = 0.0
    written_off: float = 0.0
    head: Head | None = None
    # The content of the statement that `head` is of, and where the audit log ends.
    statement: bytes = b""
    log: LogHead = LogHead()
    # The last statement of each neighbour as it travelled: header, signature and all.
    witnessed: dict[str, bytes] = {}
    consortium: bytes = b""
    left: list[str] = []
    learner_state: bytes = b""
    initial_digest: bytes = b""
    finished: str = ""
    held: bool = False
    leaving: bool = False


class Pool:
    """The bodies of unresolved shares by digest: equal shares to several neighbours are one array."""

    def __init__(self, bodies: dict[str, NDArray[np.uint8]] | None = None) -> None:
        self._bodies = bodies or {}

    def add(self, digest: bytes, body: NDArray[np.uint8]) -> None:
        """Keep a body until no entry names it."""
        self._bodies[digest.hex()] = body

    def get(self, digest: bytes) -> NDArray[np.uint8]:
        """The body of an entry that is in the outbox."""
        return self._bodies[digest.hex()]

    def retain(self, digests: set[str]) -> None:
        """Forget every body that `digests` (hex) does not name."""
        self._bodies = {name: body for name, body in self._bodies.items() if name in digests}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The bodies as named arrays for a snapshot."""
        return {_PAYLOAD + name: body for name, body in sorted(self._bodies.items())}


def write(
    ledger: Ledger,
    x: Vector,
    model: Vector | None,
    pool: Pool,
    *,
    g: Vector | None = None,
    account: bytes = b"",
) -> Snapshot:
    """A snapshot of everything.

    model: (d,), where it is not x / w: push-pull's, or the last one while there is no weight to divide by.
    g: (d,), push-pull's gradient.   account: of trust/privacy.py.
    """
    beside = {"model": model, "g": g}
    arrays: dict[str, NDArray[Any]] = {"x": x, **pool.arrays()}
    arrays |= {name: array for name, array in beside.items() if array is not None}
    return Snapshot(arrays=arrays, ledger=msgspec.msgpack.encode(ledger), account=account)


def decode(data: bytes) -> Ledger:
    """The document alone, which a snapshot calls `ledger`.  Raises StoreError as `read` does."""
    try:
        ledger = msgspec.msgpack.decode(data, type=Ledger)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise StoreError(
            f"the saved state cannot be read ({error}); it may come from another version of p2pfl: "
            "restore a backup with `p2pfl node restore`"
        ) from error
    if ledger.version != _VERSION:
        raise StoreError(f"the saved state has layout {ledger.version}, this p2pfl reads {_VERSION}")
    return ledger


def read(snapshot: Snapshot) -> tuple[Ledger, Vector, Vector | None, Pool]:
    """The inverse of `write`.  Raises StoreError when the document is not one this version wrote."""
    ledger = decode(snapshot.ledger)
    arrays: Mapping[str, NDArray[Any]] = snapshot.arrays
    bodies = {n.removeprefix(_PAYLOAD): a for n, a in arrays.items() if n.startswith(_PAYLOAD)}
    missing = [
        entry.header.digest.hex()
        for edge in ledger.out.values()
        for entry in edge.entries
        if entry.header.digest.hex() not in bodies
    ]
    if "x" not in arrays or missing:
        raise StoreError(
            f"the saved state lacks {missing or ['x']}; restore a backup with `p2pfl node restore`"
        )
    return ledger, arrays["x"], arrays.get("model"), Pool(bodies)
