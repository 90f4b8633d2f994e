"""Milliseconds and megabytes of each robust rule beside ByzFL's numpy and torch back ends, in one run.

    python benchmarks/robust.py               n = 50, d = 1e6 and n = 20, d = 1e5; best of 5, some minutes
    python benchmarks/robust.py --quick       n = 20, d = 1e5 only, best of 3

ByzFL is another project's library, with which answers are compared; where it is not installed, its columns
stay empty.  It would replace torch, so it gets an environment of its own: `benchmarks/with_byzfl.sh` makes
one beside this project's and runs this file in it.  Stacks take turns, so that a busy machine slows all
of them.  All get one array (n, d); `n arrays` is ours on n arrays (d,), as a peer receives them.  Memory is
what the process grew by at its peak, beyond the input; passes are how many times the input could be read in
the same time.
"""

import argparse
import importlib
import importlib.util
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from p2pfl.trust import robust

Call = Callable[[], Any]
Rivals = tuple[ModuleType, ModuleType, Any]
THREADS = int(os.environ.get("OPENBLAS_NUM_THREADS", os.cpu_count() or 1))
# With one thread the processor's time counts, which others on the machine do not add to.
CLOCK = time.process_time if THREADS == 1 else time.perf_counter
OURS, ARRAYS, NUMPY, TORCH = "ours", "n arrays", "ByzFL numpy", "ByzFL torch"
# Times the faster of ByzFL's back ends at n = 50, d = 1e6; of what is not named, 1.
TARGETS = {
    "coordinate-median": 5.0,
    "geometric-median": 5.0,
    "krum": 5.0,
    "multi-krum": 5.0,
    "centered-clipping": 5.0,
    "nnm+mean": 10.0,
    "monna": 3.0,
    "trimmed-mean": 1.5,
}
# Megabytes beyond input and output that NNM may take.
NNM_MB = 50.0
# What takes longer is measured once.
SLOW_MS = 5000.0
# Of so many coordinates one may have two values as far from the median to the last bit of float32, of which
# MeaMed takes either.
TIED = 10_000
# Answers of two float32 libraries for rows of length 1 a coordinate agree to this.
TOLERANCE = 1e-5


@dataclass
class Measured:
    """Milliseconds a run of each stack, the megabytes it grew by, and its answer."""

    ms: dict[str, float] = field(default_factory=dict)
    mb: dict[str, float] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)


def byzfl() -> Rivals | None:
    """ByzFL's aggregators, its pre-aggregators and torch, without its training loops, which import much."""
    spec = importlib.util.find_spec("byzfl")
    if spec is None or spec.submodule_search_locations is None:
        return None
    package = ModuleType("byzfl")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["byzfl"] = package
    torch = importlib.import_module("torch")
    torch.set_num_threads(THREADS)
    return (
        importlib.import_module("byzfl.aggregators.aggregators"),
        importlib.import_module("byzfl.aggregators.preaggregators"),
        torch,
    )


def rivals(modules: Rivals, f: int, tau: float) -> dict[str, Callable[[Any], Any]]:
    """ByzFL's rule for each of ours."""
    rules, pre, _ = modules
    nnm = pre.NNM(f)

    def clipping(x: Any) -> Any:
        # A new one each time: it keeps its last answer as the next start.
        return rules.CenteredClipping(L=3, tau=tau)(x)

    return {
        "mean": rules.Average(),
        "coordinate-median": rules.Median(),
        "trimmed-mean": rules.TrMean(f),
        "meamed": rules.Meamed(f),
        "geometric-median": rules.GeometricMedian(),
        "krum": rules.Krum(f),
        "multi-krum": rules.MultiKrum(f),
        "centered-clipping": clipping,
        "monna": rules.MoNNA(f, idx=0),
        "nnm+mean": lambda x: nnm(x).mean(axis=0) if isinstance(x, np.ndarray) else nnm(x).mean(dim=0),
    }


def stacks(n: int, d: int, f: int, modules: Rivals | None) -> tuple[np.ndarray, dict[str, dict[str, Call]]]:
    """The rows, and for each rule the call of each stack."""
    x = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    x[n - f :] += 0.1
    # Half of the rows' length, so that all are clipped.
    tau = 0.5 * d**0.5
    start = np.zeros(d, np.float32)
    more: dict[str, dict[str, Any]] = {
        "monna": {"anchor": x[0]},
        "centered-clipping": {"anchor": start, "tau": tau},
        "self-centered-clipping": {"anchor": x[0]},
        "cs-plus": {"anchor": x[0]},
        "gts": {"anchor": x[0]},
        "balance": {"anchor": x[0], "gamma": 2.0},
    }
    names = ["mean", "coordinate-median", "trimmed-mean", "meamed", "geometric-median", "krum", "multi-krum"]
    names += ["bulyan", "nnm+mean", "nnm+trimmed-mean", *more]
    calls: dict[str, dict[str, Call]] = {}
    for name in names:
        f_of = min(f, (n - 3) // 4) if name == "bulyan" else f
        given = more.get(name, {})
        calls[name] = {
            OURS: partial(robust.aggregate, name, x, f=f_of, **given),
            ARRAYS: partial(robust.aggregate, name, list(x), f=f_of, **given),
        }
    if modules is not None:
        tensor = modules[2].from_numpy(x)
        for name, call in rivals(modules, f, tau).items():
            calls[name][NUMPY] = partial(call, x)
            calls[name][TORCH] = partial(call, tensor)
    return x, calls


def measure(calls: dict[str, Call], repeats: int) -> Measured:
    """The best of `repeats`, taking turns; memory in a first round, which is the only one of the slow."""
    measured = Measured()
    for stack, call in calls.items():
        began = CLOCK()
        measured.answers[stack], measured.mb[stack] = grown(call)
        measured.ms[stack] = (CLOCK() - began) * 1e3
    for _ in range(repeats):
        for stack, call in calls.items():
            if measured.ms[stack] > SLOW_MS:
                continue
            began = CLOCK()
            call()
            measured.ms[stack] = min(measured.ms[stack], (CLOCK() - began) * 1e3)
    return measured


def grown(call: Call) -> tuple[np.ndarray, float]:
    """The answer, and the megabytes of resident memory at the peak above those before."""
    before, peak, done = resident(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    answer = np.asarray(call(), np.float32)
    done.set()
    watcher.join()
    return answer, max(peak, resident()) - before


def resident() -> float:
    """Megabytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


def one_pass_ms(x: np.ndarray) -> float:
    """Of reading all rows once."""
    times = []
    for _ in range(5):
        began = CLOCK()
        x.max()
        times.append((CLOCK() - began) * 1e3)
    return min(times)


def report(n: int, d: int, f: int, repeats: int, modules: Rivals | None, *, is_judged: bool) -> None:
    """Measure every rule at one size and print the table; with `is_judged`, the targets, too."""
    x, calls = stacks(n, d, f, modules)
    unit = one_pass_ms(x)
    print(f"\nn = {n}, d = {d:.0e}, f = {f}: {x.nbytes / 1e6:.0f} MB, one pass {unit:.1f} ms")
    print(f"{'ms, best of ' + str(repeats):24}{'ours':>8}{'passes':>8}{'MB':>6}{'n arrays':>10}", end="")
    print(f"{'numpy':>10}{'MB':>7}{'torch':>10}{'MB':>7}{'gain':>8}{'differs':>10}")
    gains: dict[str, float] = {}
    nnm_mb, farthest = 0.0, 0.0
    for name, of_rule in calls.items():
        m = measure(of_rule, repeats)
        line = f"{name:24}{m.ms[OURS]:8.1f}{m.ms[OURS] / unit:8.1f}{m.mb[OURS]:6.0f}{m.ms[ARRAYS]:10.1f}"
        nnm_mb = max(nnm_mb, m.mb[OURS]) if name.startswith("nnm") else nnm_mb
        if NUMPY in m.ms:
            gains[name] = min(m.ms[NUMPY], m.ms[TORCH]) / m.ms[OURS]
            apart = np.sort(np.abs(m.answers[OURS] - m.answers[NUMPY]))
            differs = float(apart[-1 - (d // TIED if name == "meamed" else 0)])
            farthest = max(farthest, differs)
            for stack in (NUMPY, TORCH):
                line += f"{m.ms[stack]:10.1f}{m.mb[stack]:7.0f}"
            line += f"{gains[name]:8.2f}{differs:10.1e}"
        print(line, flush=True)
    if is_judged and gains:
        print(f"\n{'times the faster of both':32}measured    target")
        for name, gain in gains.items():
            target = TARGETS.get(name, 1.0)
            print(f"{name:32}{gain:8.2f}  >= {target:5.1f}  {verdict(gain >= target)}")
        print(
            f"{'NNM, megabytes beyond input':32}{nnm_mb:8.1f}  <  {NNM_MB:5.1f}  {verdict(nnm_mb < NNM_MB)}"
        )
        print(
            f"{'largest difference':32}{farthest:8.0e}  <= {TOLERANCE:5.0e}  {verdict(farthest <= TOLERANCE)}"
        )


def verdict(is_met: bool) -> str:
    """One word."""
    return "met" if is_met else "MISSED"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="n = 20, d = 1e5 only")
    arguments = parser.parse_args()
    print(f"numpy {np.__version__}, {THREADS} thread(s), {CLOCK.__name__}")
    modules = byzfl()
    if modules is None:
        print("ByzFL is not installed: ours alone; benchmarks/with_byzfl.sh compares the two")
    report(20, 100_000, 4, 3 if arguments.quick else 20, modules, is_judged=False)
    if not arguments.quick:
        report(50, 1_000_000, 10, 5, modules, is_judged=True)


if __name__ == "__main__":
    main()
