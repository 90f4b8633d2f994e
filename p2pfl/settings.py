"""node.toml: what concerns this site only and never leaves it.

Precedence: flag > `P2PFL_*` environment > file > preset.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import platformdirs

from p2pfl.errors import ConfigError
from p2pfl.ids import parse_peer_id

__all__ = [
    "PRESETS",
    "ControlSettings",
    "LimitSettings",
    "NodeSection",
    "NodeSettings",
    "TrustSettings",
    "home_of",
    "load",
]


class NodeSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[node]`: name, addresses, and where the data lie."""

    name: str = "node"
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4911",)
    bulk_listen: str = "0.0.0.0:4912"
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    data: str = ""
    # Which of the agreement's learner.roles this site plays; the only one may be left out.
    role: str = ""
    # "process" shields the daemon from the user's code; "thread" is for simulation and tests.
    isolation: str = "process"

    def __post_init__(self) -> None:
        if self.isolation not in ("process", "thread"):
            raise ValueError('node.isolation is "process" or "thread"')
        if not 0 < len(self.name) <= 64:
            raise ValueError("node.name has 1 to 64 characters")


class ControlSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[control]`: ports on loopback; 0 is off."""

    metrics_port: int = 0


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[limits]`: memory for updates of others (MB), upload (Mbit/s, 0 is unlimited), connections."""

    memory_mb: int = 4096
    upload_mbit_s: float = 0
    connections: int = 256

    def __post_init__(self) -> None:
        if self.memory_mb < 1 or self.upload_mbit_s < 0 or self.connections < 1:
            raise ValueError(
                "limits.memory_mb and limits.connections are at least 1, upload_mbit_s at least 0"
            )


class TrustSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[trust]`: whether neighbours are told whom this site trusts, and which hubs may have its features."""

    publish_edges: bool = False
    # Ids of hubs; `p2pfl trust set HUB --for features` says the same, or otherwise, of one of them.
    share_features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for peer in self.share_features:
            try:
                parse_peer_id(peer)
            except ConfigError as error:
                raise ValueError(f"trust.share_features names hubs by their ids: {error}") from None


class NodeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of node.toml."""

    node: NodeSection = msgspec.field(default_factory=NodeSection)
    control: ControlSettings = msgspec.field(default_factory=ControlSettings)
    limits: LimitSettings = msgspec.field(default_factory=LimitSettings)
    trust: TrustSettings = msgspec.field(default_factory=TrustSettings)


# What `node init --preset` starts from.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "lan": {"node": {"listen": ["/ip4/0.0.0.0/tcp/4911"], "bulk_listen": "0.0.0.0:4912"}},
    "wan": {
        "node": {"listen": ["/ip4/0.0.0.0/tcp/4911"], "bulk_listen": "0.0.0.0:4912"},
        "limits": {"upload_mbit_s": 100.0},
    },
}

# P2PFL_NAME and the like; lists are separated by commas.
_ENVIRONMENT = {
    "P2PFL_NAME": ("node", "name"),
    "P2PFL_LISTEN": ("node", "listen"),
    "P2PFL_BULK_LISTEN": ("node", "bulk_listen"),
    "P2PFL_ANNOUNCE": ("node", "announce"),
    "P2PFL_BOOTSTRAP": ("node", "bootstrap"),
    "P2PFL_DATA": ("node", "data"),
    "P2PFL_ROLE": ("node", "role"),
    "P2PFL_ISOLATION": ("node", "isolation"),
    "P2PFL_METRICS_PORT": ("control", "metrics_port"),
    "P2PFL_MEMORY_MB": ("limits", "memory_mb"),
    "P2PFL_UPLOAD_MBIT_S": ("limits", "upload_mbit_s"),
    "P2PFL_CONNECTIONS": ("limits", "connections"),
    "P2PFL_PUBLISH_EDGES": ("trust", "publish_edges"),
    "P2PFL_SHARE_FEATURES": ("trust", "share_features"),
}


def home_of(path: str | None, node: str | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """The node's folder: `path`, else P2PFL_HOME, else the user's data folder; below it `node`, if named."""
    home = Path(path or environ.get("P2PFL_HOME") or platformdirs.user_data_path("p2pfl-node")).expanduser()
    return home / node if node else home


def load(
    home: Path,
    flags: Mapping[str, Mapping[str, Any]] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> NodeSettings:
    """node.toml in `home`, overlaid by the environment and then by `flags`.  Raises ConfigError."""
    path = home / "node.toml"
    try:
        table: dict[str, dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; `p2pfl --home {home} node init` writes it") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    for variable, (section, key) in _ENVIRONMENT.items():
        if variable in environ:
            value = environ[variable]
            lists = key in ("listen", "announce", "bootstrap", "share_features")
            table.setdefault(section, {})[key] = (
                [v.strip() for v in value.split(",") if v.strip()] if lists else value
            )
    for section, values in (flags or {}).items():
        table.setdefault(section, {}).update(values)
    try:
        # `strict=False` reads numbers out of the environment's text.
        return msgspec.convert(table, NodeSettings, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error
