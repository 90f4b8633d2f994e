"""node.toml, overlaid by the environment and by flags."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pfl import settings
from p2pfl.errors import ConfigError
from p2pfl.trust.identity import Identity

HUBS = [Identity(bytes([i]) * 32).peer_id for i in (1, 2)]
VARIABLES = {
    "P2PFL_NAME": ("ward", "node.name", "ward"),
    "P2PFL_LISTEN": (
        "/ip4/10.0.0.1/tcp/1, /ip6/::1/tcp/1",
        "node.listen",
        ["/ip4/10.0.0.1/tcp/1", "/ip6/::1/tcp/1"],
    ),
    "P2PFL_BULK_LISTEN": ("127.0.0.1:0", "node.bulk_listen", "127.0.0.1:0"),
    "P2PFL_ANNOUNCE": ("/ip4/192.0.2.1/tcp/1", "node.announce", ["/ip4/192.0.2.1/tcp/1"]),
    "P2PFL_BOOTSTRAP": ("", "node.bootstrap", []),
    "P2PFL_DATA": ("npz:rows.npz", "node.data", "npz:rows.npz"),
    "P2PFL_ROLE": ("edge", "node.role", "edge"),
    "P2PFL_ISOLATION": ("thread", "node.isolation", "thread"),
    "P2PFL_METRICS_PORT": ("9100", "control.metrics_port", 9100),
    "P2PFL_MEMORY_MB": ("64", "limits.memory_mb", 64),
    "P2PFL_UPLOAD_MBIT_S": ("2.5", "limits.upload_mbit_s", 2.5),
    "P2PFL_CONNECTIONS": ("8", "limits.connections", 8),
    "P2PFL_PUBLISH_EDGES": ("true", "trust.publish_edges", True),
    "P2PFL_SHARE_FEATURES": (", ".join(HUBS), "trust.share_features", HUBS),
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "node.toml").write_text('[node]\nname = "file"\nbootstrap = ["/ip4/10.0.0.9/tcp/1"]\n')
    return tmp_path


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_of_the_environment_beats_the_file(home: Path, variable: str) -> None:
    text, key, value = VARIABLES[variable]
    section, name = key.split(".")
    found: dict[str, Any] = msgspec.to_builtins(settings.load(home, environ={variable: text}))
    assert list(found[section][name]) == value if isinstance(value, list) else found[section][name] == value


def test_every_key_of_node_toml_has_a_variable() -> None:
    table: dict[str, Any] = msgspec.to_builtins(settings.NodeSettings())
    keys = {f"{section}.{name}" for section, values in table.items() for name in values}
    assert {key for _, key, _ in VARIABLES.values()} == keys


def test_a_flag_beats_the_environment(home: Path) -> None:
    found = settings.load(home, {"node": {"name": "flag"}}, environ={"P2PFL_NAME": "environment"})
    assert found.node.name == "flag"


@pytest.mark.parametrize(
    "change",
    [
        {"P2PFL_CONNECTIONS": "0"},
        {"P2PFL_CONNECTIONS": "many"},
        {"P2PFL_SHARE_FEATURES": "the-hub"},
        {"P2PFL_ISOLATION": "none"},
    ],
)
def test_a_variable_is_checked_like_the_file(home: Path, change: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        settings.load(home, environ=change)
