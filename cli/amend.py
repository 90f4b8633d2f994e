"""`p2pfl run amend`: new terms for a run that is under way, signed by founders one after the other."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import click

from p2pfl.errors import ConfigError, RefusedError
from p2pfl.ids import PeerId, short

from .terminal import Terminal, pass_terminal

__all__ = ["amend"]


def _setting(text: str) -> tuple[str, Any]:
    """`KEY=VALUE` with a TOML value, or a bare word; an empty one is None.  Raises ConfigError."""
    key, separator, value = (part.strip() for part in text.partition("="))
    if not separator or not key:
        raise ConfigError(f"{text!r} is not KEY=VALUE, such as trust.max_norm=50.0")
    if not value:
        return key, None
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return key, value


def _signers(one: dict[str, Any]) -> str:
    names = ", ".join(short(PeerId(name)) for name in one["signed_by"])
    has_passed = len(one["signed_by"]) >= one["quorum"]
    left = "" if has_passed else "; other founders run the same command"
    return f"signed by {len(one['signed_by'])} of {one['quorum']}: {names}{left}"


def _as_text(value: Any) -> str:
    return "none" if value is None else json.dumps(value)


@click.command(epilog="Example: p2pfl run amend trust.max_norm=50.0 run.deadline_s=60.0")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--at", type=click.IntRange(min=0), metavar="ROUND", help="From when on.  [default: in 10 rounds]"
)
@click.option("--yes", is_flag=True, help="Sign without being asked.")
@pass_terminal
def amend(terminal: Terminal, settings: tuple[str, ...], at: int | None, yes: bool) -> None:
    """As a founder sign new terms, which hold everywhere from a round on, with a quorum of founders.

    An empty VALUE takes a key out.  Without arguments: what was amended, and what waits for signatures.
    """
    from .client import ControlClient

    with ControlClient(terminal.home) as node:
        if not settings:
            _show(terminal, node.get("/v1/run"))
            return
        arguments: dict[str, Any] = {"changes": dict(map(_setting, settings))}
        if at is not None:
            arguments["at"] = at
        plan = node.post("/v1/run/amend", arguments)
        lines = [f"{k:<24}{_as_text(old)} -> {_as_text(new)}" for k, (old, new) in plan["changes"].items()]
        lines.append(f"{'from round':<24}{plan['at']}, epoch {plan['epoch']}")
        if not terminal.json:
            click.echo("\n".join(lines), err=True)
        if not terminal.confirm("Sign this for the whole run?", yes):
            raise RefusedError("not amended: no consent was given")
        signed = node.post("/v1/run/amend", {**arguments, "sign": True})
    terminal.result(signed, _signers(signed))


def _show(terminal: Terminal, run: dict[str, Any]) -> None:
    lines = [f"epoch {run['epoch']}"]
    for one in run["amendments"]:
        changes = ", ".join(f"{key} = {_as_text(value)}" for key, value in sorted(one["changes"].items()))
        lines += [f"{one['epoch']}  from round {one['at']}: {changes}", f"   {_signers(one)}"]
    terminal.result({"epoch": run["epoch"], "amendments": run["amendments"]}, "\n".join(lines))
