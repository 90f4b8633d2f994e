"""The sockets on which a node answers the people who run it: for their owner only, never taken over."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from p2pfl.errors import ConfigError, StoreError

__all__ = ["SOCKET_NAME", "socket_path", "bound", "remove_stale"]

SOCKET_NAME = "control.sock"

# sun_path has 108 bytes on Linux, and ends with a zero.
_MAX_SOCKET_PATH_BYTES = 107


def socket_path(home: Path) -> Path:
    """Where the control socket of `home` is.  Raises ConfigError when the path is too long for a socket."""
    path = home / SOCKET_NAME
    if len(str(path).encode()) > _MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"{path} is longer than the {_MAX_SOCKET_PATH_BYTES} bytes a unix socket may have; "
            "choose a shorter --home"
        )
    return path


def bound(family: socket.AddressFamily, address: Any, name: str) -> socket.socket:
    """A bound socket that only its owner may open.  Raises StoreError."""
    made = socket.socket(family, socket.SOCK_STREAM)
    # Binding under this mask makes a unix socket 0600 from its first moment.
    mask = os.umask(0o177)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        raise StoreError(f"{name} cannot be bound: {error}; free it, or change the setting") from error
    finally:
        os.umask(mask)
    return made


def remove_stale(path: Path) -> None:
    """Take away a socket that nobody serves.  Raises StoreError when somebody does."""
    if not path.is_socket():
        if path.exists():
            raise StoreError(f"{path} is not a socket; move it away")
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
        else:
            raise StoreError(f"{path} is served by another process; `p2pfl node stop` ends it")
