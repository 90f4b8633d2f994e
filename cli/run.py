"""`p2pfl run`: the agreement's life, from its first draft to the model it gave."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pfl.errors import ConfigError, RefusedError, StoreError
from p2pfl.ids import short

from . import home as homes
from .amend import amend
from .probe import probe
from .terminal import Terminal, pass_terminal

if TYPE_CHECKING:
    from p2pfl.run import RunSpec

__all__ = ["run"]

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(epilog="Example: p2pfl run new --from torch ward && p2pfl run check ward/run.toml")
def run() -> None:
    """The agreement: new, check, hash, join, amend, probe, pause, resume, leave, export."""


run.add_command(amend)
run.add_command(probe)


def _spec_of(terminal: Terminal, file: Path | None) -> tuple[RunSpec, Path]:
    """The agreement in `file`, else the joined one, else ./run.toml, and the folder of its code."""
    from p2pfl.run import load

    if file is not None:
        return load(file), file.absolute().parent
    joined = homes.joined_run(terminal.home)
    if joined is not None:
        return joined, homes.code_folder(terminal.home) or Path.cwd()
    return load(Path("run.toml")), Path.cwd()


@run.command(epilog="Example: p2pfl run new --from torch ward")
@click.option(
    "--from",
    "framework",
    type=click.Choice(["torch", "sklearn", "numpy"]),
    default="torch",
    show_default=True,
)
@click.option(
    "--init",
    "first",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Start from this model (safetensors).",
)
@click.option("--name", help="What the run is called.  [default: the folder's name]")
@click.option(
    "--members",
    type=click.IntRange(1, 4096),
    default=2,
    show_default=True,
    help="Begin when so many are there.",
)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=".", metavar="DIR")
@pass_terminal
def new(
    terminal: Terminal, framework: str, first: Path | None, name: str | None, members: int, folder: Path
) -> None:
    """Write run.toml and a learner.py that works, for you to change.

    This node becomes the founder, if there is one; every other founder's id is added by hand.
    """
    from p2pfl.run import parse

    from .starters import INIT_NAME, agreement_text, learner_text

    title = name or folder.absolute().name or "run"
    agreement, learner = folder / "run.toml", folder / "learner.py"
    for path in (agreement, learner, folder / INIT_NAME):
        if path.exists():
            raise ConfigError(f"{path} exists; choose another folder")
    founders = (homes.identity_of(terminal.home).peer_id,) if (terminal.home / homes.KEY).exists() else ()
    text = agreement_text(name=title, seed=secrets.randbelow(2**31), founders=founders, members=members)
    parse(text, str(agreement))
    digest = hashlib.sha256(first.read_bytes()).hexdigest() if first is not None else None
    code = learner_text(framework, title, digest)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        agreement.write_text(text, encoding="utf-8")
        learner.write_text(code, encoding="utf-8")
        if first is not None:
            shutil.copyfile(first, folder / INIT_NAME)
    except OSError as error:
        raise StoreError(
            f"{error.filename} cannot be written: {error.strerror}; choose another folder"
        ) from error
    if not founders:
        terminal.warn("no node lives here yet, so the run has no founder: add ids to trust.founders")
    check_it, join_it = (terminal.node_command(f"run {verb} {agreement}") for verb in ("check", "join"))
    following = f"{check_it}, then {join_it}"
    terminal.result(
        {"agreement": str(agreement), "learner": str(learner), "founders": list(founders)},
        f"agreement {agreement}\nlearner   {learner}\nnext      {following}",
    )


@run.command(epilog="Example: p2pfl run check ward/run.toml --data csv:ward/train.csv")
@click.argument("file", type=_FILE, required=False)
@click.option("--data", help="This site's rows, instead of node.toml's.")
@click.option("--role", help="The role it plays, instead of node.toml's.")
@pass_terminal
def check(terminal: Terminal, file: Path | None, data: str | None, role: str | None) -> None:
    """Try the agreement here: fit one batch, reckon what a round costs and how fast models mix.

    Refuses what would never converge, would not fit in memory, or whose learner fails.
    """
    from p2pfl.run import run_id
    from p2pfl.settings import NodeSettings, load

    from .agreement import check_mixing, cost_of, mixing_in_plain_words

    spec, folder = _spec_of(terminal, file)
    has_node = (terminal.home / homes.SETTINGS).exists()
    settings = load(terminal.home) if has_node else NodeSettings()
    mixing = check_mixing(spec)
    rows = data if data is not None else settings.node.data
    plays = role if role is not None else settings.node.role
    cost = cost_of(spec, mixing, rows, folder, settings.node.name, plays)
    limit = settings.limits.memory_mb * 1_000_000
    if cost.inbox_bytes > limit:
        raise ConfigError(
            f"updates of {mixing['in_neighbours']} neighbours take {_size(cost.inbox_bytes)}, "
            f"and limits.memory_mb allows {_size(limit)}; raise it, or use a sparser topology"
        )
    if not spec.trust.founders:
        terminal.warn("trust.founders is empty: nobody can join this run; add the founders' ids")
    if mixing["starved"]:
        terminal.warn(
            f"{mixing['starved']}: their steps are cut; add links to them, or use push-pull averaging"
        )
    if cost.seconds_per_round > spec.run.deadline_s:
        terminal.warn(
            f"{spec.learner.local_steps} steps take {cost.seconds_per_round:.0f} s here, the deadline is "
            f"{spec.run.deadline_s:g} s: rounds will go on with partial work of this site"
        )
    metrics = "  ".join(f"{key} {value:.4f}" for key, value in cost.metrics.items())
    shared = " that stay here" if spec.gossip.averaging.kind == "none" else " shared"
    text = (
        f"run         {spec.run.name}  {run_id(spec)}\n"
        f"model       {cost.parameters:,} parameters{shared}, {cost.samples:,} rows here\n"
        f"one batch   {metrics}\n"
        f"a round     {_size(cost.bytes_sent_per_round)} sent, at most {_size(cost.memory_bytes)} of memory, "
        f"{cost.seconds_per_round:.2g} s of training\n"
        f"the plan    {mixing['members']} members, {mixing['rounds_in_all']} rounds in all, "
        f"{_size(cost.bytes_sent_per_round * mixing['rounds_in_all'])} sent by each\n"
        f"mixing      {mixing_in_plain_words(mixing)}"
    )
    if (kind := spec.knowledge.exchange.kind) != "none":
        text += f"\nknowledge   {kind}: at most {_size(cost.knowledge_bytes_per_round)} sent a round"
    if cost.epsilon is not None:
        delta = spec.trust.privacy.delta
        text += f"\nprivacy     epsilon {cost.epsilon:.3g} at delta {delta:g} for these rows after all rounds"
    value = {"run_id": run_id(spec), "run_name": spec.run.name, **mixing, **asdict(cost)}
    terminal.result(value, text)


def _size(count: float) -> str:
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{count:.3g} {units[0]}"


@run.command("hash", epilog="Example: p2pfl run hash ward/run.toml")
@click.argument("file", type=_FILE, required=False)
@pass_terminal
def hash_(terminal: Terminal, file: Path | None) -> None:
    """The RunId: equal at two sites exactly when they hold the same agreement."""
    from p2pfl.run import run_id

    spec, _ = _spec_of(terminal, file)
    terminal.result({"run_id": run_id(spec), "run_name": spec.run.name}, run_id(spec))


@run.command(epilog="Example: p2pfl run join run.toml --ticket p2pfl1...")
@click.argument("file", type=_FILE)
@click.option("--ticket", help="What a founder's `trust invite` printed; founders need none.")
@click.option(
    "--recovery", type=_FILE, metavar="FILE", help="The recovery key of a ticket whose own key is lost."
)
@click.option(
    "--bootstrap", multiple=True, metavar="MULTIADDR", help="Members to dial first, beside the ticket's."
)
@click.option("--yes", is_flag=True, help="Consent without being asked.")
@pass_terminal
def join(
    terminal: Terminal,
    file: Path,
    ticket: str | None,
    recovery: Path | None,
    bootstrap: tuple[str, ...],
    yes: bool,
) -> None:
    """Agree to FILE: shows what is shared with whom, asks, and remembers it for `node start`.

    With --recovery this node takes the place of the one that the ticket was for, whose key is refused then.
    """
    from p2pfl.run import run_id

    from .joining import agree

    spec, capacity = agree(terminal, file, ticket, recovery=recovery, bootstrap=bootstrap, yes=yes)
    terminal.result(
        {"run_id": run_id(spec), "run_name": spec.run.name, "capacity": capacity},
        f"joined {spec.run.name}  {short(run_id(spec))}\nnext      {terminal.node_command('node start')}",
    )


def _command(terminal: Terminal, verb: str, done: str) -> None:
    from .client import ControlClient

    with ControlClient(terminal.home) as node:
        answer = node.post(f"/v1/run/{verb}")
    terminal.result({verb: True, **answer}, done)


@run.command(epilog="Example: p2pfl run pause")
@pass_terminal
def pause(terminal: Terminal) -> None:
    """Stop training for a while; the node stays connected and keeps its weight."""
    _command(terminal, "pause", "paused; `p2pfl run resume` goes on")


@run.command(epilog="Example: p2pfl run resume")
@pass_terminal
def resume(terminal: Terminal) -> None:
    """Go on after `run pause`, or after the node paused itself."""
    _command(terminal, "resume", "resumed")


@run.command(epilog="Example: p2pfl run leave --yes")
@click.option("--yes", is_flag=True, help="Leave without being asked.")
@pass_terminal
def leave(terminal: Terminal, yes: bool) -> None:
    """Hand this site's weight to a neighbour and leave the run for good."""
    if not terminal.confirm("Leave the run for good?", yes):
        raise RefusedError("still in the run: no consent was given")
    _command(terminal, "leave", "leaving; the node stops when a neighbour has taken over its weight")


@run.command(epilog="Example: p2pfl run export -o model.safetensors")
@click.option("-o", "output", type=_FILE, required=True, help="The file to write.")
@pass_terminal
def export(terminal: Terminal, output: Path) -> None:
    """Write the model as it stands to a safetensors file, from the running node or its disk."""
    from .export import export_model

    path = output.expanduser().absolute()
    if path.exists():
        raise StoreError(f"{path} exists; choose another name, or remove it")
    spec = homes.joined_run(terminal.home)
    if spec is None:
        raise ConfigError(f"the node in {terminal.home} has joined no run; there is no model to export")
    written = export_model(terminal.home, spec, path)
    size = path.stat().st_size
    terminal.result(
        {"path": str(path), "bytes": size, **written},
        f"{path}  {size:,} bytes, round {written['round']}\nsha256    {written['sha256']}",
    )
