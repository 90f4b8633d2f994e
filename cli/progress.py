"""How far the trials of a simulation are: a bar with the time that is left where somebody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from p2pfl.events import Fact

from .terminal import Terminal

if TYPE_CHECKING:
    from rich.progress import Progress

    from p2pfl.simulations.sweep import Trial

__all__ = ["TrialProgress"]

# Seconds between two drawings: a population takes thousands of rounds a second.
_REDRAW_S = 0.1


class TrialProgress:
    """Tells of rounds as they are committed: a bar on a terminal, otherwise a line a round.  A context
    manager, because of the bar.
    """

    def __init__(self, terminal: Terminal, todo: Sequence[Trial], *, is_grid: bool) -> None:
        """is_grid: trials are too many for a line a round, and each gets one when it is done."""
        self._terminal, self._is_grid = terminal, is_grid
        self._bar: Progress | None = None
        self._drawn_at = 0.0
        # Rounds of the trial under way that the bar has counted.
        self._counted = 0
        if todo and sys.stderr.isatty() and not terminal.quiet and not terminal.json:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("rounds"),
                TimeRemainingColumn(),
                TextColumn("left"),
            )
            # What is printed meanwhile goes above the bar, unless it goes to a file.
            self._bar = Progress(
                *columns,
                console=Console(stderr=True, no_color=terminal.color is False),
                auto_refresh=False,
                transient=True,
                redirect_stdout=sys.stdout.isatty(),
            )
            self._task = self._bar.add_task(todo[0].name, total=sum(map(_rounds, todo)))

    def __enter__(self) -> TrialProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def listen(self, trial: Trial) -> Callable[[float, int, Fact], None] | None:
        """What is to hear the facts of `trial`; None where nobody would see them."""
        if self._is_grid and self._bar is None:
            return None
        committed: dict[int, int] = {}
        options = trial.scenario.simulation
        # Fused peers commit together, and one speaks for all.
        peers = 1 if options.kernels == "fused" else options.peers
        self._counted = 0

        def hear(now: float, index: int, fact: Fact) -> None:
            if fact.event == "round committed":
                number = int(fact.fields["round"])
                committed[number] = committed.get(number, 0) + 1
                if committed[number] == peers:
                    self._round(trial, now, fact)
            elif self._terminal.verbosity and fact.level in ("warning", "error") and not self._is_grid:
                self._terminal.note(f"seed {trial.seed}  {now:9.2f} s  peer {index}  {fact.event}")

        return hear

    def done(self, trial: Trial, *, was_found: bool) -> None:
        """`trial` has its verdict."""
        if self._bar is None:
            return
        task = self._bar.tasks[0]
        if was_found:
            # It took no time, so it must not make the others look fast.
            self._bar.update(self._task, total=(task.total or 0) - _rounds(trial))
        else:
            self._bar.update(self._task, advance=_rounds(trial) - self._counted, description=trial.name)
        self._counted = 0
        self._draw()

    def _round(self, trial: Trial, now: float, fact: Fact) -> None:
        loss = fact.fields.get("loss")
        loss = fact.fields["metrics"].get("train_loss") if loss is None else loss
        last = "" if loss is None else f"  loss {loss:.4f}"
        if self._bar is not None:
            if self._counted < _rounds(trial):
                self._counted += 1
                self._bar.update(self._task, advance=1, description=f"{trial.name}{last}")
            self._draw()
        elif fact.fields["stage"] == "training":
            number, total = int(fact.fields["training_round"]) + 1, trial.scenario.spec.run.rounds
            self._terminal.note(f"seed {trial.seed}  round {number}/{total}  virtual {now:.1f} s{last}")

    def _draw(self) -> None:
        if self._bar is not None and time.monotonic() - self._drawn_at > _REDRAW_S:
            self._drawn_at = time.monotonic()
            self._bar.refresh()


def _rounds(trial: Trial) -> int:
    run = trial.scenario.spec.run
    return run.rounds + run.closing_rounds
