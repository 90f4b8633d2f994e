"""`p2pfl demo`: real nodes on this machine, from their keys to a verdict on what they learned."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from p2pfl.errors import LocalError

from .besieged import VICTIM
from .exits import Exit
from .terminal import Terminal, pass_terminal
from .verdicts import verdict_text

if TYPE_CHECKING:
    from p2pfl.simulations.workload import Workload

    from .besieged import Siege
    from .fleet import Fleet
    from .sites import DemoSite, Plan

__all__ = ["demo"]

# A node that is killed stays away this long: long enough that the others notice.
_AWAY_S = 1.0


@click.command(epilog="Example: p2pfl demo --peers 4 --rounds 20 --partition dirichlet:0.5 --kill")
@click.option(
    "--peers", type=click.IntRange(min=1, max=32), help="How many nodes.  [default: 4, or one a file]"
)
@click.option("--rounds", type=click.IntRange(min=1), help="Training rounds.  [default: 20]")
@click.option("--data", metavar="SOURCE", help="sklearn:NAME, npz:, idx:, csv:.  [default: sklearn:digits]")
@click.option("--label", metavar="COLUMN", help="The column of a csv to predict.")
@click.option("--target", metavar="TEST", help="Instead a test that makes a binary label: 'num > 0'.")
@click.option("--model", type=click.Choice(["logistic", "mlp", "cnn"]), help="[default: mlp]")
@click.option(
    "--partition",
    metavar="KIND",
    help="iid, dirichlet:0.5, shards:2, quantity:0.5, by-file or by-column:NAME.",
)
@click.option("--metric", default="", help="The metric of the verdict.  [default: accuracy]")
@click.option("--seed", type=click.IntRange(min=0), help="[default: 0]")
@click.option(
    "--run",
    "run_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Start from a run.toml.",
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any key of the agreement.")
@click.option("--kill", is_flag=True, help="kill -9 one node in mid-run, and start it again.")
@click.option(
    "--attack", metavar="KIND:N", help="The last N of the nodes lie, such as alie:1, sybil:2 or eclipse:2."
)
@pass_terminal
def demo(
    terminal: Terminal,
    peers: int | None,
    rounds: int | None,
    data: str | None,
    label: str | None,
    target: str | None,
    model: str | None,
    partition: str | None,
    metric: str,
    seed: int | None,
    run_file: Path | None,
    settings: tuple[str, ...],
    kill: bool,
    attack: str | None,
) -> None:
    """Start several real nodes here, let them train over loopback, and judge the result.

    Each has its own process, key, store and share of the rows, and the verdict compares them with training on
    all rows together and on each share alone.  With --home the nodes' folders are kept there.
    """
    from . import sites
    from .besieged import Siege, victim_program
    from .byzantine import attacker_program
    from .fleet import Fleet

    plan = sites.plan(
        run_file=run_file,
        peers=peers,
        rounds=rounds,
        data=data,
        label=label,
        target=target,
        model=model,
        partition=partition,
        seed=seed,
        attack=attack,
        settings=settings,
    )
    signal.signal(signal.SIGTERM, _terminated)
    with ExitStack() as stack:
        if terminal.home_flag:
            folder = terminal.home
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2pfl-demo-")))
        homes = sites.prepare(folder, plan)
        terminal.note(f"{len(homes)} nodes in {folder}, run {plan.spec.run.name!r}")
        began = time.monotonic()
        agreement = folder / "run.toml"
        attackers = homes[plan.honest :]
        names = [site.peer_id for site in attackers]
        programs = {
            i: attacker_program(plan.attack, names, site.home, agreement, victim=homes[VICTIM].peer_id)
            for i, site in enumerate(attackers, start=plan.honest)
        }
        siege = None
        if plan.is_eclipse:
            victim = homes[VICTIM].home
            programs[VICTIM] = victim_program(names, victim, agreement)
            siege = Siege(victim, plan.attack, plan.spec.run.rounds)
        fleet = stack.enter_context(Fleet([site.home for site in homes], agreement, programs=programs))
        _follow(terminal, fleet, plan, kill=kill, siege=siege)
        verdict = _judge(plan, homes, fleet, time.monotonic() - began, metric)
    terminal.result(verdict, verdict_text(verdict))


def _terminated(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001, the signal module's signature
    sys.exit(int(Exit.TERMINATED))


def _follow(terminal: Terminal, fleet: Fleet, plan: Plan, *, kill: bool, siege: Siege | None) -> None:
    """Show rounds as they are committed, kill and revive one node if asked, until every honest one ended.

    siege: shut and opened as the attackers' rounds go.
    """
    total, honest = plan.spec.run.rounds, fleet.nodes[: plan.honest]
    victim, strike_at = len(honest) - 1, max(1, total // 3)
    committed: dict[int, set[int]] = {}
    losses: dict[int, float] = {}
    revive_at: float | None = None
    is_due = kill
    while any(node.process is not None for node in honest) or revive_at is not None:
        for index, line in fleet.lines(timeout_s=0.2):
            if index >= len(honest):
                if siege is not None and line.get("event") == "round committed":
                    _tell_of(terminal, siege.saw(int(line.get("training_round", -1))))
                continue
            if line.get("event") != "round committed":
                if line.get("event") in ("paused", "resumed"):
                    terminal.note(f"node {index}  {line['event']}  {line.get('reason', '')}")
                continue
            number = int(line.get("training_round", line.get("round", 0)))
            loss = line.get("loss") or dict(line.get("metrics") or {}).get("train_loss")
            if loss is not None:
                losses[index] = float(loss)
            done = committed.setdefault(number, set())
            done.add(index)
            away = int(revive_at is not None) + int(siege is not None and siege.is_on)
            if line.get("stage") == "training" and len(done) == len(honest) - away:
                mean = f"  loss {sum(losses.values()) / len(losses):.4f}" if losses else ""
                terminal.note(f"round {number + 1}/{total}  {len(done)} nodes{mean}")
            if is_due and index == victim and number >= strike_at:
                fleet.kill(victim)
                terminal.note(f"node {victim}  killed with SIGKILL after round {number + 1}")
                is_due, revive_at = False, time.monotonic() + _AWAY_S
        if siege is not None:
            _look_after(terminal, siege, fleet, plan)
        if revive_at is not None and time.monotonic() >= revive_at:
            fleet.start(victim)
            terminal.note(f"node {victim}  started again")
            revive_at = None
    for index, node in enumerate(honest):
        if node.code != 0:
            raise LocalError(
                f"node {index} ended with code {node.code}: {fleet.last_words(index)}; "
                "give --home and look at its node.err"
            )


def _look_after(terminal: Terminal, siege: Siege, fleet: Fleet, plan: Plan) -> None:
    """Leave no victim shut in by attackers that are gone, nor waiting for others that are.

    Raises LocalError when it did not come back in time.
    """
    honest, attackers = fleet.nodes[: plan.honest], fleet.nodes[plan.honest :]
    if not any(node.process for node in attackers):
        _tell_of(terminal, siege.end())
    if any(node.process for i, node in enumerate(honest) if i != VICTIM):
        siege.alone_since = None
    elif siege.alone_since is None:
        siege.alone_since = time.monotonic()
    elif time.monotonic() - siege.alone_since > 2 * plan.spec.run.deadline_s:
        raise LocalError(
            f"node {VICTIM} did not come back from the eclipse before the others were done; "
            "give them more time with --set run.deadline_s=60.0"
        )


def _tell_of(terminal: Terminal, change: str) -> None:
    if change:
        terminal.note(f"node {VICTIM}  {change}")


def _judge(plan: Plan, homes: list[DemoSite], fleet: Fleet, wall_s: float, metric: str) -> dict[str, Any]:
    import numpy as np

    from p2pfl import ledger as ledgers
    from p2pfl.aggregation import conserves_mass
    from p2pfl.node.store import Store
    from p2pfl.run import run_id
    from p2pfl.simulations import verdict
    from p2pfl.simulations.attacks import TRIGGERED_KINDS
    from p2pfl.simulations.mass_audit import audit, books_on_disk
    from p2pfl.simulations.taught import keeps_a_part, worth_of

    from .besieged import told_by
    from .export import export_model

    workload: Workload = plan.workload
    models, books, rows, kept = [], [], [], []
    for site, node in zip(homes[: plan.honest], fleet.nodes, strict=False):
        export_model(site.home, plan.joined, site.home / "model.safetensors")
        with Store.open(site.home) as store:
            snapshot = store.load(run_id(plan.joined))
        assert snapshot is not None, "export_model has read it"
        books.append(books_on_disk(site.peer_id, snapshot))
        ledger, x, model, _ = ledgers.read(snapshot)
        # z = x / w, as push-sum de-biases (gossip/push_sum.py), unless the model is kept beside.
        models.append((x.astype(np.float64) / ledger.w).astype(np.float32) if model is None else model)
        kept.append((None if ledger.pooled is None else np.array(ledger.pooled), ledger.learner_state))
        rows.append(
            {
                "peer_id": site.peer_id,
                "w": ledger.w,
                "entered": ledger.entered,
                "written_off": ledger.written_off,
                "bytes_sent": node.bytes_sent,
                "finished": ledger.finished,
                "starts": node.starts,
            }
        )
    mass = audit(books)
    is_conserved = conserves_mass(plan.spec)
    is_exchanging = plan.spec.knowledge.exchange.kind != "none"
    measured = None
    if is_exchanging or keeps_a_part(plan.spec):
        measured = verdict.judge_kept(workload, plan.spec, models, kept)
    ran = verdict.Ran(
        engine="node",
        models=models,
        measured=measured,
        mass={"sum": mass.sum, "expected": mass.expected, "error": mass.error} if is_conserved else None,
        bytes_sent=sum(node.bytes_sent for node in fleet.nodes),
        wall_s=wall_s,
        rounds=plan.spec.run.rounds,
        attack=plan.attack.kind if plan.attack.byzantine else None,
        byzantine=plan.attack.byzantine,
        per_peer=rows,
        extra={"peak_rss_mb": verdict.peak_rss_mb(children=True), "run_id": run_id(plan.joined)},
    )
    result = verdict.verdict(ran, workload, plan.spec, metric=metric)
    if is_exchanging and measured is not None:
        result["knowledge"] = {**worth_of(measured, plan.spec, result["metric"]["name"]), "bytes": None}
    if plan.attack.kind in TRIGGERED_KINDS:
        result["backdoor"] = verdict.spread(verdict.backdoor(workload, plan.attack, plan.spec, ran.models))
    if plan.is_eclipse:
        result["victim"] = told_by(homes[VICTIM].home, plan.attack)
    return result
