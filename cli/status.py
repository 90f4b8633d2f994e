"""`p2pfl status`, `peers`, `ping`, `topology`: what a person asks of a node."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import click

from p2pfl.errors import ConfigError, NotRunningError
from p2pfl.ids import PeerId, RunId, short

from .terminal import Terminal, clean, columns, pass_terminal

__all__ = ["WARN_DAYS", "days_left", "peers", "ping", "status", "topology"]

# A ping is answered by a peer on another continent, through a dial if need be.
_PING_TIMEOUT_S = 30.0
# A certificate that ends within so many days is mentioned: founders need time to renew it.
WARN_DAYS = 14


def days_left(expires_at: float) -> float:
    """Days from now until `expires_at`, by this machine's clock."""
    return (expires_at - time.time()) / 86_400


def _number(value: Any, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def _describe(now: dict[str, Any]) -> str:
    """A status as a few lines for a person."""
    state = str(now.get("state", "?"))
    colour = {"running": "green", "finished": "green", "paused": "yellow"}.get(state)
    lines = [f"{now.get('name')}  {now['peer_id']}", f"state      {click.style(state, fg=colour)}"]
    if now.get("reason"):
        lines[1] += f": {clean(now['reason'])}"
    if now.get("run_id"):
        run = f"{now.get('run_name')}  {short(RunId(now['run_id']))}"
        lines.append(f"run        {run}  round {now.get('round')} of {now.get('rounds')}")
    lines.append(f"peers      {now.get('peers')} connected, {now.get('members')} members")
    if now.get("expires_at") and (days := days_left(now["expires_at"])) < WARN_DAYS:
        until = f"certificate ends in {days:.1f} days" if days > 0 else "certificate has expired"
        lines.append(f"member     {click.style(until, fg='yellow')}; a founder runs `p2pfl trust renew`")
    mass = now.get("mass") or {}
    if mass.get("w") is not None:
        names = ("w", "weight0", "entered", "written_off", "in_flight")
        lines.append("mass       " + "  ".join(f"{name} {_number(mass.get(name))}" for name in names))
    if privacy := now.get("privacy"):
        most = f" of {privacy['max_epsilon']:g}" if privacy["max_epsilon"] is not None else ""
        told = f"epsilon {_number(privacy['epsilon'])}{most} at delta {privacy['delta']:g}"
        lines.append(f"privacy    {privacy['kind']}, {told}")
    if hub := now.get("hub"):
        lines.append(f"hub        {'this site' if hub == now['peer_id'] else hub}")
    metric = now.get("metric") or {}
    if metric:
        lines.append("metric     " + "  ".join(f"{name} {_number(value)}" for name, value in metric.items()))
    lines += [f"{'addresses' if i == 0 else '':<10} {a}" for i, a in enumerate(now.get("addresses") or ())]
    return "\n".join(lines)


def _nodes_below(home: Path) -> list[Path]:
    """`home` and the folders below it that hold a node."""
    return [p.parent for p in (home / "node.toml", *sorted(home.glob("*/node.toml"))) if p.exists()]


def _all(terminal: Terminal) -> None:
    from .client import ControlClient

    found = _nodes_below(terminal.home)
    if not found:
        raise ConfigError(f"no node lives in or below {terminal.home}; `p2pfl node init` makes one")
    rows = []
    for home in found:
        with ControlClient(home) as node:
            try:
                now = node.get("/v1/status")
            except NotRunningError:
                now = {"v": 1, "name": home.name, "state": "not running"}
        if terminal.json:
            terminal.line(now | {"home": str(home)})
        metric = "  ".join(f"{name} {_number(value)}" for name, value in (now.get("metric") or {}).items())
        cells = [now.get(key) for key in ("name", "state", "round", "peers", "members")]
        rows.append([*cells, metric or None, home])
    if not terminal.json:
        header = ("name", "state", "round", "peers", "members", "metric", "home")
        terminal.result({}, columns(rows, header))


def _statuses(home: Path) -> Generator[dict[str, Any], None, None]:
    """The status now, and again after everything that happens, until the node stops."""
    from .client import ControlClient

    with ControlClient(home) as node:
        now = node.get("/v1/status")
        yield now
        for _ in node.events(None):
            try:
                now = node.get("/v1/status")
            except NotRunningError:
                return
            yield now


def _watch(terminal: Terminal) -> None:
    if terminal.json or not sys.stdout.isatty():
        for now in _statuses(terminal.home):
            terminal.result(now, _describe(now) + "\n")
    else:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        # Updated by events, so the screen needs no clock of its own.
        with Live(console=Console(no_color=terminal.color is False), auto_refresh=False) as screen:
            for now in _statuses(terminal.home):
                screen.update(Text.from_ansi(_describe(now)), refresh=True)
    terminal.note("the node stopped")


@click.command(epilog="Example: p2pfl status --watch")
@click.option("--watch", is_flag=True, help="Print again whenever something happens, until the node stops.")
@click.option("--all", "everyone", is_flag=True, help="Every node in and below the home, running or not.")
@pass_terminal
def status(terminal: Terminal, watch: bool, everyone: bool) -> None:
    """What the node does now."""
    if watch and everyone:
        raise ConfigError("--watch follows one node; name it with --node")
    if everyone:
        _all(terminal)
    elif watch:
        _watch(terminal)
    else:
        from .client import ControlClient

        with ControlClient(terminal.home) as node:
            now = node.get("/v1/status")
        terminal.result(now, _describe(now))


_SORTS = {"name": "name", "round": "round", "state": "state", "seen": "last_seen"}


def _ago(moment: Any) -> str | None:
    return None if moment is None else f"{max(0.0, time.time() - float(moment)):.0f} s ago"


@click.command(epilog="Example: p2pfl peers --sort round")
@click.option("--sort", type=click.Choice(list(_SORTS)), default="name", show_default=True, help="The order.")
@pass_terminal
def peers(terminal: Terminal, sort: str) -> None:
    """The members, and how the edges to them stand.

    From the running node; when it does not run, from its disk: those it had heard of at its last commit.
    """
    from .client import ControlClient
    from .stored import is_answered_by_disk, stored_peers

    if is_answered_by_disk(terminal):
        found = stored_peers(terminal.home)
    else:
        with ControlClient(terminal.home) as node:
            found = node.get("/v1/peers")["peers"]
    key = _SORTS[sort]
    absent = [peer for peer in found if peer.get(key) is None]
    present = [peer for peer in found if peer.get(key) is not None]
    found = sorted(present, key=lambda peer: (peer[key], peer["peer_id"])) + absent
    rows = [
        (
            short(PeerId(peer["peer_id"])),
            *(peer.get(name) for name in ("name", "state", "round", "share", "accept")),
            *(_number(peer.get(name)) for name in ("sent_w", "absorbed_w", "unresolved")),
            _ago(peer.get("last_seen")),
        )
        for peer in found
    ]
    header = (
        "peer",
        "name",
        "state",
        "round",
        "share",
        "accept",
        "sent w",
        "absorbed w",
        "unresolved",
        "seen",
    )
    terminal.result({"peers": found}, columns(rows, header) if rows else "no other members yet")


@click.command(epilog="Example: p2pfl ping st-marys")
@click.argument("peer")
@pass_terminal
def ping(terminal: Terminal, peer: str) -> None:
    """Reach one member and time it.

    PEER is an id, a name, or the beginning or end of an id.
    """
    from .client import ControlClient, one_peer

    with ControlClient(terminal.home) as node:
        wanted = one_peer(peer, node.get("/v1/peers")["peers"])
        answer = node.post("/v1/ping", {"peer": wanted}, timeout_s=_PING_TIMEOUT_S)
    terminal.result(
        {"peer_id": wanted, **answer}, f"{wanted} answered in {_number(answer.get('rtt_ms'), 3)} ms"
    )


def _dot(plan: dict[str, Any]) -> str:
    names = {peer["peer_id"]: peer.get("name") or short(PeerId(peer["peer_id"])) for peer in plan["peers"]}
    quoted = {
        peer: '"' + clean(name).replace("\\", "/").replace('"', "'") + '"' for peer, name in names.items()
    }
    lines = [f"  {quoted[peer]};" for peer in names]
    for edge in plan["edges"]:
        label = f' [label="{_number(edge.get("weight"), 3)}"]' if edge.get("weight") is not None else ""
        lines.append(f"  {quoted[edge['source']]} -> {quoted[edge['target']]}{label};")
    return "digraph p2pfl {\n" + "\n".join(lines) + "\n}"


def _edges_as_text(plan: dict[str, Any]) -> str:
    names = {peer["peer_id"]: peer.get("name") or short(PeerId(peer["peer_id"])) for peer in plan["peers"]}
    rows = []
    for peer, name in names.items():
        targets = [names[edge["target"]] for edge in plan["edges"] if edge["source"] == peer]
        rows.append((name, "->", "  ".join(targets) or "-"))
    return f"round {plan.get('round')}, {plan.get('kind')}\n" + columns(rows, ("peer", "", "sends to"))


@click.command(epilog="Example: p2pfl topology --format dot | dot -Tsvg > plan.svg")
@click.option(
    "--format", "form", type=click.Choice(["text", "dot"]), default="text", help="For people or Graphviz."
)
@pass_terminal
def topology(terminal: Terminal, form: str) -> None:
    """Who sends to whom in the present round."""
    from .client import ControlClient

    with ControlClient(terminal.home) as node:
        plan = node.get("/v1/topology")
    terminal.result(plan, _dot(plan) if form == "dot" else _edges_as_text(plan))
