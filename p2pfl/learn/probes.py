"""The probe set: samples without labels that every site of a run holds, known by their content.

`n` rows of `k` features.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import LearnerError, P2PFLError
from p2pfl.learn.data import rows_in_order
from p2pfl.learn.learner import Site
from p2pfl.learn.options import DataOptions, LearnerOptions

__all__ = ["digest_of", "of_site", "read"]


def read(source: str, options: DataOptions | None = None) -> NDArray[np.float32]:
    """The rows of a data source, (n, k), in its own order; labels are ignored.

    options: `[learner.data]`, so that a row means the same as a training row.   Raises ConfigError.
    """
    return rows_in_order(source, options or DataOptions())


def digest_of(rows: NDArray[np.float32]) -> str:
    """SHA-256, in hex, of the little-endian float32 rows in their order.

    >>> digest_of(np.zeros((1, 2), np.float32))[:8]
    'af5570f5'
    """
    return hashlib.sha256(np.ascontiguousarray(rows, "<f4").tobytes()).hexdigest()


def of_site(site: Site) -> NDArray[np.float32] | None:
    """The probe set that the site's agreement names, None where it names none.

    Raises LearnerError when it cannot be read, or is another one than all sites agreed on.
    """
    if not site.probe_source:
        return None
    options = site.options.data if isinstance(site.options, LearnerOptions) else None
    try:
        rows = read(site.probe_source, options)
    except P2PFLError as error:
        raise LearnerError(f"the probe set: {error}") from error
    found = digest_of(rows)
    if len(rows) != site.probe_samples or found != site.probe_digest:
        raise LearnerError(
            f"the probe set {site.probe_source} has {len(rows)} rows of digest {found[:16]}..., the agreement"
            f" says {site.probe_samples} of {site.probe_digest[:16]}...; bring the same file, or write what"
            f" `p2pfl run probe {site.probe_source}` prints into a new agreement"
        )
    return rows
