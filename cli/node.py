"""`p2pfl node`: this site's node, from its first day to its backup."""

from __future__ import annotations

import contextlib
import getpass
import json
from pathlib import Path

import click

from p2pfl.errors import ConfigError, LocalError, NotRunningError, StoreError

from . import home as homes
from .rotate import rotate_key
from .start import start
from .terminal import Terminal, pass_terminal

__all__ = ["node"]

# Seconds between two looks at whether the node has gone.
_POLL_S = 0.05
# Longer than any node takes to end its learner's process; a round may take `run.deadline_s` more.
_STOP_S = 30.0
# A backup copies the snapshots, several models in size.
_BACKUP_S = 600.0


@click.group(epilog="Example: p2pfl node init --name st-marys && p2pfl node start")
def node() -> None:
    """The site's node: init, start, stop, backup, restore, rotate-key, service."""


node.add_command(start)
node.add_command(rotate_key)


def _settings_text(
    preset: str, name: str, listen: tuple[str, ...], bulk_listen: str | None, data: str
) -> str:
    from p2pfl.settings import PRESETS

    chosen = PRESETS[preset]["node"]
    upload = PRESETS[preset].get("limits", {}).get("upload_mbit_s", 0)
    addresses = json.dumps(list(listen or chosen["listen"]))
    return f"""\
# What concerns this site only; nothing here leaves it.  `p2pfl doctor` checks it.

[node]
name = {json.dumps(name)}
# Where other sites reach this node.
listen = {addresses}
# Where they fetch large updates; either side may dial, so one open port of the two is enough.
bulk_listen = {json.dumps(bulk_listen if bulk_listen is not None else chosen["bulk_listen"])}
# Addresses to tell others, when they differ from `listen` (NAT, a VPN): "/ip4/203.0.113.7/tcp/4911".
announce = []
# Members to dial first: "/ip4/10.0.0.1/tcp/4911/p2p/12D3KooW...".  A ticket brings its own.
bootstrap = []
# This site's rows, as the run's learner reads them: a path, or csv:, npz:, idx:, sklearn: and more.
data = {json.dumps(data)}

[control]
# /metrics for Prometheus on 127.0.0.1; 0 is off.
metrics_port = 0

[limits]
# For updates of others that wait to be mixed, in MB.
memory_mb = 4096
# 0 is unlimited.
upload_mbit_s = {upload:g}
"""


@node.command(epilog="Example: p2pfl node init --name st-marys --preset wan")
@click.option("--name", help="What other sites see.  [default: the machine's name]")
@click.option("--listen", multiple=True, metavar="MULTIADDR", help="Where to listen; may be given twice.")
@click.option("--bulk-listen", metavar="HOST:PORT", help="Where large updates are fetched.")
@click.option("--data", default="", help="This site's rows, for the run's learner.")
@click.option(
    "--recovery",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also make a recovery key, to be kept offline.",
)
@click.option("--preset", type=click.Choice(["lan", "wan"]), default="lan", show_default=True)
@pass_terminal
def init(
    terminal: Terminal,
    name: str | None,
    listen: tuple[str, ...],
    bulk_listen: str | None,
    data: str,
    recovery: Path | None,
    preset: str,
) -> None:
    """Make a node: a key and a node.toml.  Never overwrites either.

    With a recovery key, kept elsewhere, `node rotate-key` replaces a key that is lost or stolen.
    """
    import socket
    import tomllib

    import msgspec

    from p2pfl.settings import NodeSettings
    from p2pfl.trust import identity

    home = terminal.home
    settings, key = home / homes.SETTINGS, home / homes.KEY
    for path in (settings, key):
        if path.exists():
            raise ConfigError(
                f"{path} exists: a node lives here already; choose another --home, or use this one"
            )
    chosen = name or terminal.node_flag or socket.gethostname()[:64] or "node"
    text = _settings_text(preset, chosen, listen, bulk_listen, data)
    try:
        msgspec.convert(tomllib.loads(text), NodeSettings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"these flags make no node.toml: {error}") from error
    homes.make_home(home)
    spare = identity.create(recovery.expanduser()) if recovery is not None else None
    mine = identity.create(key)
    homes.write_private(settings, text)
    following = terminal.node_command("run new --from torch my-run")
    told = f"recovery  {spare.peer_id} (for the founder, too; keep {recovery} offline)\n" if spare else ""
    terminal.result(
        {
            "peer_id": mine.peer_id,
            "name": chosen,
            "home": str(home),
            "settings": str(settings),
            "key": str(key),
            "recovery": spare.peer_id if spare else None,
        },
        f"{chosen}  {mine.peer_id}\n"
        f"settings  {settings}\n"
        f"key       {key} (back it up; whoever has it is this node)\n"
        f"{told}"
        f"next      {following}, or with a ticket: "
        f"{terminal.node_command('run join run.toml --ticket TICKET')}",
    )


@node.command(epilog="Example: p2pfl node stop --after-round --timeout 600")
@click.option("--after-round", is_flag=True, help="Let the round under way be committed first.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=_STOP_S, show_default=True, metavar="SECONDS"
)
@pass_terminal
def stop(terminal: Terminal, after_round: bool, timeout: float) -> None:
    """Save and stop; the node goes on from there at the next start.

    After --timeout with --after-round, the node stops at once; the round under way is done again later.
    """
    import time

    from .client import ControlClient

    with ControlClient(terminal.home) as running:
        now = running.get("/v1/status")
        body = {"after_round": after_round, **({"timeout_s": timeout} if after_round else {})}
        running.post("/v1/stop", body)
        give_up = time.monotonic() + timeout + (_STOP_S if after_round else 0)
        while running.is_running():
            with contextlib.suppress(NotRunningError):
                now = running.get("/v1/status")
            if time.monotonic() > give_up:
                raise LocalError(
                    f"the node in {terminal.home} has not stopped within {timeout:g} s; see "
                    f"{terminal.home / homes.LOG}, or give a longer --timeout"
                )
            time.sleep(_POLL_S)
    terminal.result(
        {"stopped": True, "round": now.get("round"), "run_id": now.get("run_id")},
        f"stopped; state saved at round {now.get('round')}",
    )


@node.command(epilog="Example: p2pfl node backup -o st-marys.tar")
@click.option("-o", "output", type=click.Path(path_type=Path), required=True, help="The tar file to write.")
@pass_terminal
def backup(terminal: Terminal, output: Path) -> None:
    """Write key, settings, agreement and state to one file, running or not.

    Whoever holds the file can be this node: it is written for you alone, keep it so.
    """
    from .client import ControlClient

    home, path = terminal.home, output.expanduser().absolute()
    homes.identity_of(home)
    if path.exists():
        raise StoreError(f"{path} exists; choose another name, or remove it")
    with ControlClient(home) as running:
        try:
            running.post("/v1/backup", {"path": str(path)}, timeout_s=_BACKUP_S)
        except NotRunningError:
            from p2pfl.node.backup import backup as write
            from p2pfl.node.store import Store

            with Store.open(home) as store:
                write(store, path)
    size = path.stat().st_size
    terminal.result({"path": str(path), "bytes": size}, f"{path}  {size:,} bytes, readable by you only")


@node.command(epilog="Example: p2pfl --home ~/restored node restore st-marys.tar")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@pass_terminal
def restore(terminal: Terminal, file: Path) -> None:
    """Put a backup into an empty home; its neighbours learn of it when it starts.

    Two nodes with one key disturb each other: restore only what does not run elsewhere.
    """
    from p2pfl.node.backup import restore as unpack

    unpack(file.expanduser().absolute(), terminal.home)
    mine = homes.identity_of(terminal.home)
    terminal.result(
        {"peer_id": mine.peer_id, "home": str(terminal.home)},
        f"{mine.peer_id} is restored in {terminal.home}\nnext      {terminal.node_command('node start')}",
    )


@node.command(epilog="Example: p2pfl node service --install && systemctl --user enable --now p2pfl-node")
@click.option("--user", "scope", flag_value="user", default="user", help="For this account.  [default]")
@click.option("--system", "scope", flag_value="system", help="For the machine, run as this account.")
@click.option(
    "--install", is_flag=True, help="Write the unit where systemd finds it, instead of printing it."
)
@pass_terminal
def service(terminal: Terminal, scope: str, install: bool) -> None:
    """The systemd unit that keeps the node running."""
    from .service import unit_path, unit_text

    home = terminal.home
    homes.identity_of(home)
    system = scope == "system"
    text = unit_text(home, system=system, user=getpass.getuser())
    name = f"p2pfl-{terminal.node_flag or 'node'}.service"
    path = unit_path(name, system=system)
    if not install:
        terminal.result({"unit": text, "path": str(path)}, text.rstrip())
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except PermissionError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}; run it with sudo, or use --user"
        ) from error
    scope_flag = "" if system else " --user"
    following = f"systemctl{scope_flag} daemon-reload && systemctl{scope_flag} enable --now {name}"
    terminal.result({"path": str(path), "next": following}, f"{path}\nnext      {following}")
