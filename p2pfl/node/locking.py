"""One process at a time owns a home: a file lock, which the kernel releases when the process dies."""

import fcntl
import os
from pathlib import Path

from p2pfl.errors import StoreError

__all__ = ["acquire"]


def acquire(path: Path) -> int:
    """Lock `path` for this process and write its id inside; the open descriptor holds the lock.

    Raises StoreError that names the process which has it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise StoreError(
            f"{path.parent} is in use by process {owner}; stop it with `p2pfl node stop`, "
            "or give this node a --home of its own"
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
