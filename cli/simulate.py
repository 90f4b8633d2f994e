"""`p2pfl simulate`: a scenario under virtual time, and a verdict on each of its expectations."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pfl.errors import ConfigError, StoreError

from .exits import Exit
from .grids import comparison_text, grid_text, outcomes_text
from .progress import TrialProgress
from .reports import write_comparison, write_study
from .terminal import Terminal, pass_terminal
from .verdicts import verdict_text

if TYPE_CHECKING:
    from p2pfl.simulations.scenario import Scenario
    from p2pfl.simulations.sweep import Trial

__all__ = ["simulate"]

# A matrix product may round otherwise on another number of threads, and a trial gives the same bits with any
# --jobs; the matrices of a site are too small for threads to help.  Read when numpy is loaded.
_THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@click.command(epilog="Example: p2pfl simulate digits --seeds 0-4 --set learner.optimizer.lr=0.05")
@click.argument("scenario", metavar="FILE|NAME")
@click.argument("folders", nargs=-1, metavar="", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--engine",
    type=click.Choice(["world", "population", "ray"]),
    help="Real peers over an event queue, many as one matrix, or that over Ray workers.  [default: world]",
)
@click.option("--peers", type=click.IntRange(min=1), help="How many sites, instead of the scenario's.")
@click.option("--rounds", type=click.IntRange(min=0), help="Training rounds, instead of the scenario's.")
@click.option("--seed", type=click.IntRange(min=0), help="One seed, instead of the scenario's.")
@click.option(
    "--seeds", metavar="LIST", help="Several seeds, such as 0-4 or 1,3,5, instead of the scenario's."
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any key of the scenario.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Trials at once, each in a process.  [default: 1; on Ray one a processor]",
)
@click.option(
    "--ray-address",
    metavar="ADDRESS",
    help="Trials at Ray's workers; `local` starts Ray here.  [default with --engine ray: RAY_ADDRESS, local]",
)
@click.option(
    "-o",
    "output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for report.html and the results; trials that are in it are not run again.",
)
@click.option("--leakage", is_flag=True, help="Of hub runs: what their packets tell of single rows.")
@click.option("--fresh", is_flag=True, help="Run again what is in the folder.")
@click.option(
    "--join",
    is_flag=False,
    flag_value="",
    metavar="[TICKET]",
    help="Take part in a real run, FILE its run.toml, with --peers virtual peers behind this node.",
)
@click.option("--partition", metavar="KIND", help="With --join, how they share its rows.  [default: iid]")
@click.option(
    "--inner-rounds",
    type=click.IntRange(min=1),
    help="With --join, how often they train and mix in a round.  [default: 2, if the steps are even]",
)
@click.option("--data", metavar="SOURCE", help="With --join, the rows, instead of node.toml's.")
@click.option("--yes", is_flag=True, help="With --join, consent to the agreement without being asked.")
@pass_terminal
def simulate(
    terminal: Terminal,
    scenario: str,
    folders: tuple[Path, ...],
    engine: str | None,
    peers: int | None,
    rounds: int | None,
    seed: int | None,
    seeds: str | None,
    settings: tuple[str, ...],
    jobs: int | None,
    ray_address: str | None,
    output: Path | None,
    leakage: bool,
    fresh: bool,
    join: str | None,
    partition: str | None,
    inner_rounds: int | None,
    data: str | None,
    yes: bool,
) -> None:
    """Run a scenario, a file or one that is shipped, such as digits, crash or robust-dense.

    Exits with 6 when an expectation is not met.  The same seed gives the same run, bit for bit.
    `p2pfl simulate compare DIR DIR` shows what two runs with -o gave, side by side.

    With --join this node takes part in a real run, as one member behind which virtual peers stand: made by
    `p2pfl node init`, let in by a ticket (a founder needs none), started again by the same command.
    """
    only_joined = {"--partition": partition, "--inner-rounds": inner_rounds, "--data": data, "--yes": yes}
    if join is not None:
        others = (engine, rounds, seed, seeds, settings, jobs, ray_address, output, leakage, fresh, folders)
        if any(one not in (None, (), False) for one in others):
            raise ConfigError(
                "--join takes --peers, --partition, --inner-rounds, --data and --yes; everything else is in"
                " the agreement"
            )
        from .front import take_part

        take_part(
            terminal,
            Path(scenario),
            join,
            peers=peers,
            partition=partition,
            inner_rounds=inner_rounds,
            data=data,
            yes=yes,
        )
        return
    for flag, value in only_joined.items():
        if value not in (None, False):
            raise ConfigError(f"{flag} goes with --join; a scenario says it under [simulation]")
    folder = _folder(output)
    if scenario == "compare" or folders:
        _compare(terminal, scenario, folders, folder)
        return
    for name in _THREAD_LIMITS:
        os.environ.setdefault(name, "1")
    from p2pfl.simulations import expect, sweep
    from p2pfl.simulations.scenario import load, parse_seeds

    if ray_address:
        os.environ["RAY_ADDRESS"] = ray_address
    if seed is not None and seeds is not None:
        raise ConfigError("--seed and --seeds are both given; keep one")
    settings += ("simulation.leakage=true",) if leakage else ()
    chosen = load(scenario, peers=peers, rounds=rounds, seed=seed, engine=engine, settings=settings)
    # The scenario's own seeds, unless a flag asks for others.
    listed = seeds if seeds is not None else chosen.simulation.seeds if seed is None else ""
    several = parse_seeds(listed) if listed else (chosen.spec.run.seed,)
    expect.check_seeds(chosen.expectations, len(several))
    todo = sweep.trials(chosen, several)
    with TrialProgress(terminal, todo, is_grid=bool(chosen.axes)) as progress:
        verdicts = sweep.run(
            todo,
            jobs=jobs or (0 if ray_address else 1),
            on_ray=bool(ray_address),
            folder=folder,
            fresh=fresh,
            listen=progress.listen,
            done=_teller(terminal, progress, is_grid=bool(chosen.axes), total=len(todo)),
        )
    if not _conclude(terminal, chosen, verdicts, folder):
        sys.exit(int(Exit.EXPECTATION))


def _teller(
    terminal: Terminal, progress: TrialProgress, *, is_grid: bool, total: int
) -> Callable[[Trial, dict[str, Any], bool], None]:
    """What is said of each trial as it is done: one line of JSON; or a table, in a grid a line on stderr."""
    count = 0

    def tell(trial: Trial, verdict: dict[str, Any], was_found: bool) -> None:
        nonlocal count
        count += 1
        progress.done(trial, was_found=was_found)
        metric = verdict["metric"]
        took = "found" if was_found else f"{verdict['wall_s']:.1f} s"
        numbers = f"{metric['name']} {metric['mean']:.4f}  min {metric['min']:.4f}  {took}"
        if is_grid or was_found:
            terminal.note(f"{count}/{total}  {trial.name}  {numbers}")
        if terminal.json and (is_grid or total > 1):
            terminal.line(verdict)
        elif not terminal.json and not is_grid:
            terminal.result(verdict, verdict_text(verdict))

    return tell


def _conclude(
    terminal: Terminal, scenario: Scenario, verdicts: list[dict[str, Any]], folder: Path | None
) -> bool:
    """Print, and in `folder` report, what all trials show together; whether they meet the expectations."""
    from p2pfl.simulations import expect, summary

    outcomes = [asdict(expect.judge(expectation, verdicts)) for expectation in scenario.expectations]
    is_met = all(outcome["is_met"] for outcome in outcomes)
    cells = summary.cells(verdicts)
    axes = {axis.name: [case.label for case in axis.cases] for axis in scenario.axes}
    if scenario.axes:
        whole = {**summary.over_cells(cells), "axes": axes, "cells": cells}
    else:
        whole = verdicts[0] if len(verdicts) == 1 else cells[0]
    value = {
        **whole,
        "scenario": scenario.name,
        "seeds": list(dict.fromkeys(verdict["seed"] for verdict in verdicts)),
        "is_met": is_met,
        "expectations": outcomes,
    }
    where = ""
    if folder is not None:
        page = write_study(folder, verdicts, scenario=scenario.name, axes=axes, outcomes=outcomes)
        value["report"] = str(page)
        where = f"report  {page}"
    parts = (grid_text(cells, axes) if axes else "", outcomes_text(outcomes), where)
    terminal.result(value, "\n\n".join(part for part in parts if part))
    return is_met


def _compare(terminal: Terminal, word: str, folders: tuple[Path, ...], output: Path | None) -> None:
    from p2pfl.simulations import comparison

    if word != "compare" or len(folders) != 2:
        raise ConfigError("one scenario is run at a time; two folders are compared by `simulate compare A B`")
    sides = (comparison.read(folders[0]), comparison.read(folders[1]))
    rows = comparison.compare(*sides)
    names = (str(folders[0]), str(folders[1]))
    value: dict[str, Any] = {"first": names[0], "second": names[1], "cells": rows, "report": None}
    text = comparison_text(rows, names)
    if output is not None:
        page = write_comparison(output, rows, names, sides)
        value["report"] = str(page)
        text += f"\n\nreport  {page}"
    terminal.result(value, text)


def _folder(output: Path | None) -> Path | None:
    if output is None:
        return None
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{output} cannot be made: {error.strerror}; choose another -o") from error
    return output.absolute()
