"""`p2pfl simulate`: a scenario under virtual time, and a verdict on each of its expectations."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pfl.errors import ConfigError, StoreError

from .exits import Exit
from .terminal import Terminal, columns, pass_terminal
from .verdicts import verdict_text

if TYPE_CHECKING:
    from p2pfl.events import Fact
    from p2pfl.simulations.expect import Outcome

__all__ = ["simulate"]


@click.command(epilog="Example: p2pfl simulate digits --seeds 0-4 --set learner.optimizer.lr=0.05")
@click.argument("scenario", metavar="FILE|NAME")
@click.option(
    "--engine",
    type=click.Choice(["world", "population"]),
    help="Real peers over an event queue, or many as one matrix.  [default: world]",
)
@click.option("--peers", type=click.IntRange(min=1), help="How many sites, instead of the scenario's.")
@click.option("--rounds", type=click.IntRange(min=0), help="Training rounds, instead of the scenario's.")
@click.option("--seed", type=click.IntRange(min=0), help="One seed, instead of the scenario's.")
@click.option("--seeds", metavar="LIST", help="Several seeds, such as 0-4 or 1,3,5.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any key of the scenario.")
@click.option(
    "-o", "output", type=click.Path(file_okay=False, path_type=Path), help="Folder for the results."
)
@pass_terminal
def simulate(
    terminal: Terminal,
    scenario: str,
    engine: str | None,
    peers: int | None,
    rounds: int | None,
    seed: int | None,
    seeds: str | None,
    settings: tuple[str, ...],
    output: Path | None,
) -> None:
    """Run a scenario, a file or one that is shipped: digits, loss, crash.

    Exits with 6 when an expectation is not met.  The same seed gives the same run, bit for bit.
    """
    from p2pfl.simulations import expect
    from p2pfl.simulations.scenario import load, parse_seeds
    from p2pfl.simulations.trial import run_trial

    if seed is not None and seeds is not None:
        raise ConfigError("--seed and --seeds are both given; keep one")
    chosen = load(scenario, peers=peers, rounds=rounds, seed=seed, engine=engine, settings=settings)
    several = parse_seeds(seeds) if seeds is not None else (chosen.spec.run.seed,)
    folder = _folder(output)
    verdicts = []
    for cell, number in itertools.product(chosen.cells, several):
        one = cell.scenario.with_seed(number)
        listener = _progress(terminal, number, one.spec.run.rounds, one.simulation.peers)
        verdict = {**run_trial(one, listener=listener), "cell": dict(cell.cases)}
        if folder is not None:
            place = "".join(f"-{axis}={case}" for axis, case in cell.cases.items())
            verdict["report"] = str(folder / f"{chosen.name}{place}-seed-{number}.json")
            _write(Path(verdict["report"]), verdict)
        verdicts.append(verdict)
        if not terminal.json:
            terminal.result(verdict, verdict_text(verdict))
        elif len(several) * len(chosen.cells) > 1:
            terminal.line(verdict)
    outcomes = [expect.judge(expectation, verdicts) for expectation in chosen.expectations]
    _finish(terminal, chosen.name, verdicts, outcomes)
    if not all(outcome.is_met for outcome in outcomes):
        sys.exit(int(Exit.EXPECTATION))


def _progress(terminal: Terminal, seed: int, total: int, peers: int) -> Callable[[float, int, Fact], None]:
    """A line on stderr when the last peer has committed a round; warnings as they come with -v."""
    committed: dict[int, int] = {}

    def listen(now: float, index: int, fact: Fact) -> None:
        if fact.event == "round committed" and fact.fields["stage"] == "training":
            number = int(fact.fields["training_round"])
            committed[number] = committed.get(number, 0) + 1
            if committed[number] == peers:
                loss = fact.fields.get("loss")
                loss = fact.fields["metrics"].get("train_loss") if loss is None else loss
                last = "" if loss is None else f"  loss {loss:.4f}"
                terminal.note(f"seed {seed}  round {number + 1}/{total}  virtual {now:.1f} s{last}")
        elif terminal.verbosity and fact.level != "info" and fact.level != "debug":
            terminal.note(f"seed {seed}  {now:9.2f} s  peer {index}  {fact.event}")

    return listen


def _finish(
    terminal: Terminal, name: str, verdicts: Sequence[dict[str, Any]], outcomes: Sequence[Outcome]
) -> None:
    rows = [
        [
            "met" if outcome.is_met else "NOT MET",
            outcome.text,
            None if outcome.value is None else f"{outcome.value:.6g}",
            None if outcome.bound is None else f"{outcome.bound:.6g}",
        ]
        for outcome in outcomes
    ]
    value = {
        **(verdicts[0] if len(verdicts) == 1 else _over_seeds(verdicts)),
        "scenario": name,
        "seeds": [verdict["seed"] for verdict in verdicts],
        "is_met": all(outcome.is_met for outcome in outcomes),
        "expectations": [
            {"text": o.text, "is_met": o.is_met, "value": o.value, "bound": o.bound} for o in outcomes
        ],
    }
    text = columns(rows, ("", "expectation", "found", "bound")) if rows else ""
    terminal.result(value, text)


def _over_seeds(verdicts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One object for all seeds: means, the worst mass error, and sums of what was spent."""
    means = [verdict["metric"]["mean"] for verdict in verdicts]
    pooled = [verdict["pooled"] for verdict in verdicts if verdict["pooled"] is not None]
    spent = {key: sum(verdict[key] for verdict in verdicts) for key in ("bytes_sent", "wall_s")}
    return {
        **verdicts[-1],
        **spent,
        "metric": {
            "name": verdicts[0]["metric"]["name"],
            "mean": sum(means) / len(means),
            "min": min(verdict["metric"]["min"] for verdict in verdicts),
            "max": max(verdict["metric"]["max"] for verdict in verdicts),
        },
        "pooled": sum(pooled) / len(pooled) if pooled else None,
        "mass": max((v["mass"] for v in verdicts if v["mass"]), key=lambda mass: mass["error"], default=None),
        "seed": None,
        "per_peer": None,
        "report": None,
    }


def _folder(output: Path | None) -> Path | None:
    if output is None:
        return None
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{output} cannot be made: {error.strerror}; choose another -o") from error
    return output.absolute()


def _write(path: Path, verdict: dict[str, Any]) -> None:
    import json

    try:
        path.write_text(json.dumps(verdict, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}; is there room?") from error
