"""Names of a site's own samples: the same in every round, and meaningless to anyone else.

A soft label must find the sample that it was made for.  A batch index does not name one: the next epoch
shuffles, and a model that is taught another sample's label ends below one that learns alone.  So a sample is
named by a keyed hash of its row, under a secret that never leaves the site; who does not have the secret
learns neither the row nor the order of rows, and cannot link two runs.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import LocalError, RemoteError
from p2pfl.ids import RunId
from p2pfl.work import Ids

__all__ = ["ID_BYTES", "SECRET_BYTES", "Ids", "sample_ids", "rows_of"]

# 64 bits: two of a million rows share a name with a probability of 3e-8.
ID_BYTES = 8
# As long as what a site's other keys are made from.
SECRET_BYTES = 32
# BLAKE2b's personalisation: this use of the secret and no other.
_PURPOSE = b"p2pfl sample id"
_SALT_BYTES = hashlib.blake2b.SALT_SIZE


def sample_ids(secret: bytes, run: RunId, rows: int) -> Ids:
    """The names of rows 0 to rows - 1, (rows,) uint64, in the order of the rows.

    secret: SECRET_BYTES, this site's alone.   O(rows), about 1 us a row.
    Raises LocalError when the secret has another length, or two rows share a name.
    """
    if len(secret) != SECRET_BYTES:
        raise LocalError(f"a secret for sample ids has {SECRET_BYTES} bytes, this one has {len(secret)}")
    keyed = hashlib.blake2b(
        digest_size=ID_BYTES, key=secret, salt=bytes.fromhex(run)[:_SALT_BYTES], person=_PURPOSE
    )
    joined = bytearray()
    for row in range(rows):
        digest = keyed.copy()
        digest.update(row.to_bytes(8, "little"))
        joined += digest.digest()
    ids = np.frombuffer(bytes(joined), "<u8").astype(np.uint64)
    if np.unique(ids).size != rows:
        raise LocalError("two rows share a sample id; make another secret for this run")
    return ids


def rows_of(known: Ids, ids: Ids) -> NDArray[np.int64]:
    """The row of each name in `ids`, by `known`, the names of all rows in their order.

    Raises RemoteError when a name is of no row here: it came back from a peer.
    """
    order = np.argsort(known)
    places = np.minimum(np.searchsorted(known, ids, sorter=order), max(0, known.size - 1))
    rows = order[places] if known.size else np.zeros(0, np.int64)
    if ids.size and (not known.size or not np.array_equal(known[rows], ids)):
        raise RemoteError("a soft label is for a sample that is not of this site")
    return rows.astype(np.int64)
