"""A run as it goes: one line a round, a bar where somebody watches, and the last object of a training."""

from __future__ import annotations

import resource
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from p2pfl.events import Fact
from p2pfl.ids import PeerId, short

from .terminal import Terminal, clean

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["LiveRounds", "summary"]


class LiveRounds:
    """Prints what a node does.  Called with every Fact; a context manager, because of the bar."""

    def __init__(self, terminal: Terminal, *, rounds: int, closing: int = 0, shown: bool = True) -> None:
        """rounds: those that train.   closing: those after them, which only mix.

        shown: False counts and prints nothing, for a daemon whose log has the same.
        """
        self._shown = shown
        self.round = 0
        self.bytes_sent = 0
        self.began_at = time.monotonic()
        self._terminal = terminal
        self._rounds = rounds
        self._measured: dict[str, float] = {}
        self._bar: Progress | None = None
        if shown and sys.stderr.isatty() and not terminal.quiet and not terminal.json:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            console = Console(stderr=True, no_color=terminal.color is False)
            # Facts refresh it, so it needs no thread of its own.
            self._bar = Progress(*columns, console=console, auto_refresh=False, transient=True)
            self._task = self._bar.add_task("rounds", total=rounds + closing)

    def __enter__(self) -> LiveRounds:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, fact: Fact) -> None:
        """Show `fact` when it is one for people."""
        fields = fact.fields
        match fact.event:
            case "round committed":
                # People count the rounds that are done; the opening ones, which only pool statistics, not.
                self.round = max(0, int(fields.get("training_round", fields["round"])) + 1)
                self.bytes_sent += int(fields.get("bytes_sent") or 0)
                self._line(self._as_json(fact), self._as_text(fields))
            case "evaluated":
                self._measured = dict(fields.get("metrics") or {})
                if self._terminal.json or fields.get("final"):
                    self._line(self._as_json(fact), f"evaluated  {_listed(self._measured)}")
            case "listening":
                addresses = [str(address) for address in fields.get("addresses") or ()]
                self._line(self._as_json(fact), "\n".join(f"listening  {address}" for address in addresses))
            case "paused" | "resumed" | "run began" | "member left":
                about = fields.get("reason") or fields.get("members") or ""
                who = fields.get("peer")
                text = f"{fact.event}  {short(PeerId(who)) if who else clean(about)}"
                self._line(self._as_json(fact), text)

    def _as_json(self, fact: Fact) -> dict[str, Any]:
        from p2pfl.node.plain import plain

        return {"event": fact.event, **plain(fact.fields)}

    def _as_text(self, fields: Any) -> str:
        parts = [f"round {min(self.round, self._rounds)}/{self._rounds}"]
        if fields.get("stage") not in (None, "training"):
            parts[0] += f" ({fields['stage']})"
        if fields.get("peers") is not None:
            parts.append(f"{fields['peers']} heard")
        if fields.get("seconds") is not None:
            parts.append(f"{fields['seconds']:.1f} s")
        if fields.get("w") is not None:
            parts.append(f"w {fields['w']:.3f}")
        if fields.get("loss") is not None:
            parts.append(f"loss {fields['loss']:.4f}")
        if self._measured:
            parts.append(f"here {_listed(self._measured)}")
        return "  ".join(parts)

    def _line(self, value: dict[str, Any], text: str) -> None:
        if not self._shown:
            return
        if self._bar is None:
            self._terminal.result(value, text)
            sys.stdout.flush()
            return
        if sys.stdout.isatty():
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            click.echo(text)
        self._bar.update(self._task, completed=self.round, refresh=True)


def _listed(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if value is not None)


def summary(
    view: LiveRounds, *, reason: str, metrics: dict[str, float], state: dict[str, Any], seed: int
) -> dict[str, Any]:
    """The object that ends every piece of training; what a single node cannot know is None."""
    name = next((key for key in ("accuracy", "auc", "loss") if key in metrics), next(iter(metrics), None))
    value = metrics.get(name) if name is not None else None
    mass = state.get("mass") or {}
    sums = [mass.get(key) for key in ("w", "in_flight")]
    rounds = max(1, view.round)
    return {
        "engine": "node",
        "reason": reason,
        "peers": state.get("members"),
        "rounds": state.get("round", view.round),
        "metric": {"name": name, "mean": value, "min": value, "max": value},
        "pooled": None,
        "alone": None,
        "consensus_distance": None,
        # The mass of the network is the sum of such reports; one node has its own part.
        "mass": {
            "sum": sum(sums) if None not in sums else None,
            "expected": mass.get("expected"),
            "error": mass.get("error"),
        },
        "bytes_sent": state.get("bytes_sent", view.bytes_sent),
        "bytes_per_peer_round": state.get("bytes_sent", view.bytes_sent) / rounds,
        "wall_s": round(time.monotonic() - view.began_at, 3),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "seed": seed,
        "run_id": state.get("run_id"),
        "report": None,
        "per_peer": {"peer_id": state.get("peer_id"), "metrics": metrics, "mass": mass or None},
    }
