"""`p2pfl doctor`: what is wrong with this machine or this node, why, and what cures it."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from p2pfl.errors import P2PFLError

from . import home as homes
from .exits import Exit, problem_of
from .terminal import Terminal, pass_terminal

__all__ = ["Finding", "doctor", "findings"]

_PACKAGES = ("p2pfl-node", "libp2p", "trio", "numpy", "torch", "msgspec", "safetensors", "cryptography")
# A database and a few snapshots of a small model; less than this is gone within the first rounds.
_MIN_FREE_BYTES = 200_000_000
# The machine's clock is before this release was made (2025-01-01): certificates would not be valid yet.
_EARLIEST_S = 1_735_689_600.0
_DIAL_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check: `ok`, `warning`, `failed` or `skipped`; what was found, and what cures it."""

    check: str
    result: str
    cause: str
    cure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    home: Path
    offline: bool
    fix: bool


def _found(check: str, result: str, cause: str, cure: str = "") -> Finding:
    return Finding(check=check, result=result, cause=cause, cure=cure)


def _python(_: _Case) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield _found(
        "python", "ok" if good else "failed", version, "" if good else "install Python 3.11 or newer"
    )


def _packages(_: _Case) -> Iterator[Finding]:
    from importlib import metadata

    versions, missing = [], []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        yield _found(
            "packages", "failed", f"not installed: {', '.join(missing)}", "pip install --upgrade p2pfl-node"
        )
    else:
        yield _found("packages", "ok", ", ".join(versions))


def _foreign(_: _Case) -> Iterator[Finding]:
    from .main import foreign_version

    version = foreign_version()
    if version is None:
        yield _found("foreign p2pfl", "ok", "no other project named p2pfl is installed")
    else:
        cure = "pip uninstall p2pfl, then pip install --force-reinstall p2pfl-node"
        yield _found(
            "foreign p2pfl", "failed", f"p2pfl {version}, another project, overwrites our files", cure
        )


def _curves(_: _Case) -> Iterator[Finding]:
    try:
        # What is asked is whether its compiled part loads.
        importlib.import_module("fastecdsa.curve")
    except ImportError as error:
        cure = "install GMP (Debian: apt install libgmp10; to build it: libgmp-dev)"
        yield _found("libgmp", "failed", f"fastecdsa, which libp2p needs, does not load: {error}", cure)
    else:
        yield _found("libgmp", "ok", "fastecdsa loads")


def _home(case: _Case) -> Iterator[Finding]:
    home = case.home
    if not (home / homes.SETTINGS).exists() and not (home / homes.KEY).exists():
        yield _found("home", "warning", f"no node lives in {home}", f"p2pfl --home {home} node init")
        return
    yield _found("home", "ok", str(home))
    yield from _modes(case)
    try:
        from p2pfl.settings import load

        name = load(home).node.name
        yield _found("node.toml", "ok", f"name {name}")
    except P2PFLError as error:
        yield _of_error("node.toml", error)


def _modes(case: _Case) -> Iterator[Finding]:
    """Whether others may read what is this node's alone; --fix takes that away."""
    private = [case.home, case.home / homes.KEY, case.home / homes.TICKET, case.home / "control.sock"]
    for path in private:
        if not path.exists() or not path.stat().st_mode & 0o077:
            continue
        wanted = 0o700 if path.is_dir() else 0o600
        what = f"{path} has mode {path.stat().st_mode & 0o777:04o}: others may reach it"
        if case.fix:
            path.chmod(wanted)
            yield _found("file modes", "ok", f"{path} had another mode; now {wanted:04o}")
        else:
            # The folder itself may be shared on purpose; the key never.
            result = "warning" if path.is_dir() else "failed"
            yield _found("file modes", result, what, f"chmod {wanted:o} {path}, or p2pfl doctor --fix")
    key = case.home / homes.KEY
    try:
        from p2pfl.trust import identity

        yield _found("key", "ok", identity.load(key).peer_id)
    except P2PFLError as error:
        yield _of_error("key", error)


def _of_error(check: str, error: P2PFLError) -> Finding:
    problem = problem_of(error)
    return _found(check, "failed", problem.message, problem.hint)


def _agreement(case: _Case) -> Iterator[Finding]:
    from p2pfl.run import run_id

    try:
        spec = homes.joined_run(case.home)
        if spec is None:
            yield _found("run.toml", "skipped", "no run is joined", "p2pfl run join FILE")
            return
        identity = homes.identity_of(case.home)
        capacity = homes.admitted_by(spec, identity, homes.joined_ticket(case.home))
        yield _found("run.toml", "ok", f"{spec.run.name}  {run_id(spec)}, as {capacity}")
    except P2PFLError as error:
        yield _of_error("run.toml", error)
        return
    from .agreement import check_mixing

    try:
        check_mixing(spec)
    except P2PFLError as error:
        yield _of_error("mixing", error)
    try:
        folder = homes.code_folder(case.home)
        if folder is not None:
            sys.path.insert(0, str(folder))
        from p2pfl.learn.factory import resolve
        from p2pfl.learn.options import at_role
        from p2pfl.settings import load

        played = at_role(spec.learner, load(case.home).node.role)
        resolve(played)
        yield _found("learner", "ok", played.module or "built in")
    except P2PFLError as error:
        yield _of_error("learner", error)


def _disk(case: _Case) -> Iterator[Finding]:
    folder = case.home
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        yield _found(
            "disk", "failed", f"{folder} is not writable", "choose another --home, or make it writable"
        )
    elif free < _MIN_FREE_BYTES:
        yield _found(
            "disk", "failed", f"{free / 1e6:.0f} MB free in {folder}", "free some space: 200 MB at least"
        )
    else:
        yield _found("disk", "ok", f"{free / 1e9:.1f} GB free")


def _clock(_: _Case) -> Iterator[Finding]:
    now = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < _EARLIEST_S:
        yield _found(
            "clock",
            "failed",
            f"this machine believes it is {stamp}",
            "set the clock: timedatectl set-ntp true",
        )
    else:
        yield _found("clock", "ok", stamp)


def _control(case: _Case) -> Iterator[Finding]:
    from .client import ControlClient

    path = case.home / "control.sock"
    with ControlClient(case.home) as node:
        if node.is_running():
            yield _found("node", "ok", "running, and answers")
            yield from _certificate(node.get("/v1/status").get("expires_at"))
            return
    if not path.exists():
        yield _found("node", "skipped", "not running", "p2pfl node start")
    elif case.fix:
        path.unlink()
        yield _found("node", "ok", f"not running; the stale {path} is removed")
    else:
        yield _found(
            "node", "warning", f"{path} is left of a node that died", "p2pfl doctor --fix, or start it again"
        )


def _certificate(expires_at: float | None) -> Iterator[Finding]:
    """Whether this member's certificate lasts; a founder has none."""
    from .status import WARN_DAYS, days_left

    if expires_at is None:
        return
    days = days_left(expires_at)
    cure = "ask the founders for `p2pfl trust renew` of this node"
    if days <= 0:
        yield _found("certificate", "failed", "it has expired: no member talks to this node", cure)
    elif days < WARN_DAYS:
        yield _found("certificate", "warning", f"it ends in {days:.1f} days", cure)
    else:
        yield _found("certificate", "ok", f"{days:.0f} days left")


def _ports(case: _Case) -> Iterator[Finding]:
    """Whether what the node listens on is free, or taken by the node itself."""
    from p2pfl.settings import load

    from .client import ControlClient

    try:
        settings = load(case.home)
    except P2PFLError:
        return
    with ControlClient(case.home) as node:
        if node.is_running():
            yield _found("ports", "ok", "in use by this node")
            return
    wanted = [_host_and_port(address) for address in settings.node.listen]
    if settings.node.bulk_listen:
        host, _, port = settings.node.bulk_listen.rpartition(":")
        wanted.append((host.strip("[]"), port))
    if settings.control.metrics_port:
        wanted.append(("127.0.0.1", str(settings.control.metrics_port)))
    for place in wanted:
        if place is None or not place[1].isdigit():
            yield _found(
                "ports", "failed", "an address in node.toml has no tcp port", "write /ip4/0.0.0.0/tcp/4911"
            )
        elif reason := _taken(place[0], int(place[1])):
            cure = "stop what uses it (ss -ltnp), or change node.toml"
            yield _found("ports", "failed", f"{place[0]}:{place[1]}: {reason}", cure)
        else:
            yield _found("ports", "ok", f"{place[0]}:{place[1]} is free")


def _host_and_port(address: str) -> tuple[str, str] | None:
    """`/ip4/10.0.0.1/tcp/4911/...` as ("10.0.0.1", "4911"), None for another form."""
    match address.split("/"):
        case ["", "ip4" | "ip6" | "dns" | "dns4" | "dns6", host, "tcp", port, *_]:
            return host, port
        case _:
            return None


def _taken(host: str, port: int) -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            return str(error)
    return ""


def _bootstrap(case: _Case) -> Iterator[Finding]:
    from p2pfl.settings import load

    try:
        ticket = homes.joined_ticket(case.home)
        addresses = [*load(case.home).node.bootstrap, *(ticket.addresses if ticket else ())]
    except P2PFLError:
        return
    if case.offline or not addresses:
        yield _found(
            "bootstrap", "skipped", "--offline" if case.offline else "no address of a member is known"
        )
        return
    answered = 0
    for address in dict.fromkeys(addresses):
        place = _host_and_port(address)
        if place is None:
            yield _found(
                "bootstrap", "failed", f"{address} has no tcp address", "write /ip4/HOST/tcp/PORT/p2p/ID"
            )
            continue
        try:
            with socket.create_connection((place[0], int(place[1])), timeout=_DIAL_S):
                answered += 1
        except (OSError, ValueError, OverflowError) as error:
            cure = "is that node up, and does a firewall or the VPN let this through?"
            yield _found("bootstrap", "warning", f"{address}: {error}", cure)
    if answered:
        yield _found("bootstrap", "ok", f"{answered} of {len(dict.fromkeys(addresses))} addresses answer")
    else:
        yield _found("bootstrap", "failed", "no member answers", "ask them for their present addresses")


_CHECKS: tuple[Callable[[_Case], Iterator[Finding]], ...] = (
    _python,
    _packages,
    _foreign,
    _curves,
    _home,
    _agreement,
    _disk,
    _clock,
    _control,
    _ports,
    _bootstrap,
)


def findings(home: Path, *, offline: bool, fix: bool) -> Iterator[Finding]:
    """Every check's findings, in the order in which one should be cured before the next."""
    case = _Case(home=home, offline=offline, fix=fix)
    for check in _CHECKS:
        yield from check(case)


_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "bright_black"}


@click.command(epilog="Example: p2pfl doctor --fix")
@click.option("--fix", is_flag=True, help="Repair file modes and stale sockets.")
@click.option("--offline", is_flag=True, help="Do not dial the bootstrap members.")
@pass_terminal
def doctor(terminal: Terminal, fix: bool, offline: bool) -> None:
    """Check this machine and this node: result, cause, cure.  Exits with 1 when something failed."""
    failed = 0
    for finding in findings(terminal.home, offline=offline, fix=fix):
        failed += finding.result == "failed"
        result = click.style(f"{finding.result:<8}", fg=_COLOURS[finding.result])
        cure = f"\n{'':<24}cure: {finding.cure}" if finding.cure and finding.result != "ok" else ""
        terminal.result(asdict(finding), f"{finding.check:<15} {result}{finding.cause}{cure}")
    if failed:
        terminal.note(f"{failed} checks failed")
        click.get_current_context().exit(int(Exit.FAILED))
