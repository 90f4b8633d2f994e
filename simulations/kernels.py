"""The arithmetic of a fused population, as three sets of kernels have it: by numba, in numpy, in torch.

A round of peer i, out of place, from `X` into `Y`, with z = x / w the model it holds:

    Y[i] = own[i] X[i] + sum of what in-neighbours hold, weighted + gain[i] (fit(z) - z)

so one pass over memory fits, mixes and adds the step.  It is what population.py does in separate passes with
float64 sums; these are float32, and agree with it to rounding.  A row is worked on by one thread from its
first to its last operation, so blocks, threads and the order of rows change nothing.
`n` peers, `d` parameters, `b` rows a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from p2pfl.gossip.mixing import Floats, Vectors
from p2pfl.learn.descent import Course
from p2pfl.learn.perceptron import layer_schema

__all__ = ["Device", "Drill", "Kernels", "Links", "Rows", "aligned", "drill", "links", "load", "no_links"]

Numbers = NDArray[np.int32]
Device = Literal["cpu", "cuda"]
# Bytes of a cache line of nearly every processor.
_LINE = 64


class Drill(NamedTuple):
    """What a fit does.   layers: (l,) widths.   places: (2 l - 1,) where each W and b begins, and d."""

    layers: NDArray[np.int64]
    places: NDArray[np.int64]
    batch_size: int
    steps: int
    momentum: np.float32
    decay: np.float32


class Rows(NamedTuple):
    """Who has which rows, by number: `table[i, :counts[i]]` are rows of the one `x`, (rows, k), `y`, (rows,).

    ids: (n,) the peers' own numbers, which their draws follow from.
    """

    x: Vectors
    y: NDArray[np.int64]
    table: Numbers
    counts: Numbers
    ids: Numbers


class Links(NamedTuple):
    """How rows mix.  Each peer keeps `own[i]` of what it holds (`own` of one entry: the same for all), and

    takes `weights[j]` of row i - o for offset o number j; or, where `starts` has n + 1 entries, `weights[e]`
    of row `senders[e]` for each of its edges; and `common`, (d,) or empty, the same for everybody.
    """

    own: NDArray[np.float32]
    offsets: NDArray[np.int64]
    starts: NDArray[np.int64]
    senders: Numbers
    weights: NDArray[np.float32]
    common: NDArray[np.float32]


class Kernels(Protocol):
    """What an engine asks of a set.  Functions on rows lo..hi-1 of its matrices; nothing else is written."""

    name: str

    def make(self, n: int, d: int) -> Any:
        """A matrix (n, d) with nothing in it yet, wherever these kernels work."""
        ...

    def fill(self, X: Any, lo: int, hi: int, weight: Floats, theta: Floats) -> None:
        """Let rows lo..hi-1 be their weight times `theta`, (d,).   weight: (n,)."""
        ...

    def take(self, X: Any, peers: NDArray[np.integer]) -> Vectors:
        """A copy of some rows."""
        ...

    def advance(
        self,
        X: Any,
        Y: Any,
        lo: int,
        hi: int,
        links: Links,
        scale: NDArray[np.float32],
        gain: NDArray[np.float32],
        drill: Drill,
        rows: Rows,
        rate: float,
        seed: int,
        number: int,
        losses: NDArray[np.float32],
    ) -> None:
        """A training round.   scale: (n,) 1/w.   gain: (n,).   losses: (n,), written: the mean over the steps
        of the loss before each, NaN where training diverged; such a peer mixes and does not step.
        """
        ...

    def blend(self, X: Any, Y: Any, lo: int, hi: int, links: Links) -> None:
        """A round that only mixes."""
        ...

    def total(self, X: Any, lo: int, hi: int, scale: NDArray[np.float32]) -> Floats:
        """The sum of the models, (d,) float64."""
        ...

    def spread(self, X: Any, lo: int, hi: int, scale: NDArray[np.float32], mean: Floats) -> float:
        """The sum of the models' squared distances from `mean`."""
        ...


def drill(course: Course) -> Drill:
    """A course for the kernels.  Its optimizer starts every fit without momentum."""
    slices = layer_schema(course.layers).slices()
    return Drill(
        layers=np.array(course.layers, np.int64),
        places=np.array([*(where.start for where in slices), slices[-1].stop], np.int64),
        batch_size=course.batch_size,
        steps=course.local_steps,
        momentum=np.float32(course.optimizer.momentum),
        decay=np.float32(course.optimizer.weight_decay),
    )


def links(
    *,
    own: NDArray[np.floating] | float = 1.0,
    offsets: NDArray[np.int64] | None = None,
    starts: NDArray[np.int64] | None = None,
    senders: NDArray[np.integer] | None = None,
    weights: NDArray[np.floating] | float = 0.0,
    common: NDArray[np.floating] | None = None,
) -> Links:
    """Links of the types that the kernels are compiled for."""
    return Links(
        own=np.atleast_1d(np.asarray(own, np.float32)),
        offsets=np.zeros(0, np.int64) if offsets is None else np.asarray(offsets, np.int64),
        starts=np.zeros(0, np.int64) if starts is None else np.asarray(starts, np.int64),
        senders=np.zeros(0, np.int32) if senders is None else np.asarray(senders, np.int32),
        weights=np.atleast_1d(np.asarray(weights, np.float32)),
        common=np.zeros(0, np.float32) if common is None else np.asarray(common, np.float32),
    )


def no_links() -> Links:
    """Everybody keeps everything."""
    return links()


def aligned(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """A copy of rows that begins at a cache line, so that few vectors lie in two where rows are whole lines.

    numpy's begin at 16 bytes, which took a tenth more of a round at 784 columns.
    """
    room = np.empty(x.nbytes + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    found: NDArray[np.float32] = room[start : start + x.nbytes].view(np.float32).reshape(x.shape)
    found[:] = x
    return found


def load(say: Callable[[str], None] = lambda _: None, device: Device = "cpu") -> Kernels:
    """The compiled kernels; without numba those in numpy, which `say` is told; on a GPU those in torch.

    Raises ConfigError where there is none.
    """
    if device == "cuda":
        from .torch_kernels import OnDevice

        return OnDevice(device)
    try:
        from . import compiled
    except ImportError:
        from . import plain

        say(
            "numba is not installed, so kernels run in numpy, several times slower; pip install"
            " 'p2pfl-node[sim]'"
        )
        return plain.Plain()
    return compiled.Compiled()
