"""The systemd unit of a node."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["unit_path", "unit_text"]

# A stop saves nothing that is not on disk already; it waits for the learner's process and open connections.
_STOP_S = 30


def unit_path(name: str, *, system: bool) -> Path:
    """Where systemd looks for the unit."""
    if system:
        return Path("/etc/systemd/system") / name
    root = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(root) / "systemd" / "user" / name


def unit_text(home: Path, *, system: bool, user: str) -> str:
    """The unit that keeps the node of `home` running; under systemd's own account it runs as `user`."""
    program = _quoted(str(Path(sys.argv[0]).absolute()))
    account = f"User={user}\n" if system else ""
    protection = f"ProtectSystem=full\nReadWritePaths={_quoted(str(home))}\n" if system else ""
    return f"""\
[Unit]
Description=p2pfl node in {str(home).replace("%", "%%")}
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
{account}ExecStart={program} --home {_quoted(str(home))} node start
# 143 is a clean stop by SIGTERM; 2 and 5 need a person, so they are not tried again.
SuccessExitStatus=130 143
RestartPreventExitStatus=2 5
Restart=on-failure
RestartSec=5
TimeoutStopSec={_STOP_S}
KillMode=mixed
NoNewPrivileges=true
PrivateTmp=true
{protection}
[Install]
WantedBy={"multi-user.target" if system else "default.target"}
"""


def _quoted(text: str) -> str:
    """`text` as one word of a unit file."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != text or any(c.isspace() for c in text) else escaped
