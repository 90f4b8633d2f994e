"""Every error p2pfl raises on purpose.

P2PFLError
├── LocalError            our caller erred: wrong argument, wrong state
│   ├── AggregationError  a rule cannot be applied to these inputs
│   ├── LearnerError      the user's model or data misbehaved
│   └── NotRunningError   the node that was asked is not running
├── RemoteError           a peer erred; carries its PeerId; never fatal
│   ├── RefusedError      a peer or our own trust policy said no
│   └── UnreachableError  no answer, or none in time
├── ConfigError           a file, flag or agreement is wrong; says where
└── StoreError            the disk: missing, locked, damaged, full
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2pfl.ids import PeerId

__all__ = [
    "P2PFLError",
    "LocalError",
    "AggregationError",
    "LearnerError",
    "NotRunningError",
    "RemoteError",
    "RefusedError",
    "UnreachableError",
    "ConfigError",
    "StoreError",
]


class P2PFLError(Exception):
    """The root of the tree."""


class LocalError(P2PFLError):
    """Our caller erred."""


class AggregationError(LocalError):
    """An aggregation rule cannot be applied to these inputs."""


class LearnerError(LocalError):
    """The user's model or data misbehaved."""


class NotRunningError(LocalError):
    """The node that was asked is not running."""


class RemoteError(P2PFLError):
    """A peer erred.  `peer` is who, None while it is unknown."""

    def __init__(self, message: str, peer: PeerId | None = None) -> None:
        super().__init__(message)
        self.peer = peer


class RefusedError(RemoteError):
    """A peer, or our own trust policy, said no."""


class UnreachableError(RemoteError):
    """No answer, or none in time."""


class ConfigError(P2PFLError):
    """A file, flag or agreement is wrong."""


class StoreError(P2PFLError):
    """The disk: missing, locked, damaged, full."""
