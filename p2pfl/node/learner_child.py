"""The learner's own process: `python -m p2pfl.node.learner_child READ WRITE MEMORY PARENT`.

Theory of operation.  The daemon (node/learner_process.py) starts this process with three descriptors of
its own: two pipes for messages and an anonymous memory file for vectors.  Standard output and error are
the user's code's to use.  A message is a 4-byte little-endian length and one tagged MessagePack map; the
large vectors never pass through a pipe.

    daemon                       here
    Begin(spec)            ->    build the learner
                           <-    Built(d, ...), or Failed(reason)
    Map(d): memory sized   ->    map it, put the first parameters in the second slot
                           <-    Mapped
    Fit | Measure | Score  ->    work on the first slot, answer in the second
                           <-    Fitted | Measured | Scored   (again and again)
    end of file            ->    exit

The memory holds one page whose first byte is the stop flag, then two slots of d float32.  This process
dies with its parent: the kernel sends SIGKILL, so a fit that never ends cannot outlive its daemon.
"""

import ctypes
import faulthandler
import mmap
import os
import signal
import struct
import sys
from functools import partial
from typing import TypeAlias

import msgspec
import numpy as np

from p2pfl.errors import LearnerError, P2PFLError
from p2pfl.events import Evaluate, Train, Vector
from p2pfl.learn.factory import build, resolve
from p2pfl.learn.flat import Schema
from p2pfl.learn.jobs import Workshop, reason
from p2pfl.learn.learner import DpSgd, LearnerFactory, Site
from p2pfl.learn.options import LearnerOptions
from p2pfl.release import Release

__all__ = [
    "PAGE_BYTES",
    "MAX_MESSAGE_BYTES",
    "LearnerSpec",
    "Begin",
    "Map",
    "Fit",
    "Measure",
    "Score",
    "Request",
    "Built",
    "Mapped",
    "Fitted",
    "Measured",
    "Scored",
    "Failed",
    "Reply",
    "frame",
    "slots",
    "open_workshop",
    "die_with",
    "main",
]

# The stop flag has a page to itself: x86-64 and arm64 align the slots behind it for any vector unit.
PAGE_BYTES = 4096
# A learner state is the largest thing in a message: Adam's moments of 100 million parameters are 800 MB.
MAX_MESSAGE_BYTES = 1 << 30
# <linux/prctl.h>
_PR_SET_PDEATHSIG = 1


class LearnerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What it takes to build a site's learner anywhere: `options` is a LearnerOptions as JSON."""

    options: bytes
    data: str = ""
    name: str = "site"
    seed: int = 0
    dp_sgd: DpSgd | None = None


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Build the learner."""

    spec: LearnerSpec


class Map(msgspec.Struct, frozen=True, tag=True):
    """The memory now has two slots of `d` float32."""

    d: int


class Fit(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """`events.Train`, its parameters in the first slot.  seed: decimal, of any size."""

    round: int
    seed: tuple[str, ...]
    progress: float
    statistics: bytes | None
    learner_state: bytes


class Measure(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """`events.Evaluate`, its parameters in the first slot."""

    round: int
    statistics: bytes | None
    learner_state: bytes


class Score(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """One model of `events.Validate`, in the first slot.  seed: decimal, of any size."""

    seed: tuple[str, ...]
    statistics: bytes | None
    learner_state: bytes


class Built(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """`jobs.Ready`; its parameters follow in the second slot with `Mapped`."""

    d: int
    samples: int
    schema_hash: bytes
    statistics: bytes
    schema: Schema | None
    data_set: str
    release: Release | None


class Mapped(msgspec.Struct, frozen=True, tag=True):
    """The first parameters are in the second slot."""


class Fitted(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """`events.Trained`; unless there is a fault, its parameters are in the second slot."""

    round: int
    metrics: dict[str, float]
    learner_state: bytes
    fault: str


class Measured(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """`events.Evaluated`, and why it has no metrics."""

    round: int
    metrics: dict[str, float]
    fault: str


class Scored(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """One loss of `events.Validated`, and why there is none."""

    loss: float
    fault: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The learner could not be built."""

    reason: str


Request: TypeAlias = Begin | Map | Fit | Measure | Score
Reply: TypeAlias = Built | Mapped | Fitted | Measured | Scored | Failed


def frame(message: Request | Reply) -> bytes:
    """`message` with its length in front.  Raises LearnerError above MAX_MESSAGE_BYTES."""
    body = msgspec.msgpack.encode(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise LearnerError(
            f"the learner's state takes {len(body)} bytes, at most {MAX_MESSAGE_BYTES} are kept; "
            "return less from state()"
        )
    return struct.pack("<I", len(body)) + body


def slots(memory: mmap.mmap, d: int) -> tuple[Vector, Vector]:
    """The two vectors in the shared memory: the daemon's, and the learner's answer."""
    first = np.frombuffer(memory, np.float32, d, PAGE_BYTES)
    second = np.frombuffer(memory, np.float32, d, PAGE_BYTES + 4 * d)
    return first, second


def open_workshop(spec: LearnerSpec, site: Site, factory: LearnerFactory | None = None) -> Workshop:
    """Build the learner that `spec` describes, with `factory` in place of its own if given.

    site: brings `dataset` and `should_stop`; the rest of it comes from `spec`.  Raises LearnerError.
    """
    try:
        options = msgspec.json.decode(spec.options, type=LearnerOptions)
        chosen = factory or resolve(options)
    except (P2PFLError, msgspec.MsgspecError) as error:
        raise LearnerError(str(error)) from error
    except SystemExit as error:
        # Importing the user's module may call exit().
        raise LearnerError(reason(error)) from error
    whole = Site(
        data=spec.data,
        name=spec.name,
        seed=spec.seed,
        local_steps=options.local_steps,
        options=options,
        dataset=site.dataset,
        dp_sgd=spec.dp_sgd,
        should_stop=site.should_stop,
    )
    return Workshop(partial(build, chosen), whole)


def main(arguments: list[str], factory: LearnerFactory | None = None) -> int:
    """Serve one daemon until it closes the pipe or dies.   factory: in place of the agreement's own."""
    read_fd, write_fd, memory_fd, parent = (int(argument) for argument in arguments)
    die_with(parent)
    faulthandler.enable()
    # What user code starts with exec must not hold the pipes open after we are gone.
    for descriptor in (read_fd, write_fd, memory_fd):
        os.set_inheritable(descriptor, False)
    flag = mmap.mmap(memory_fd, PAGE_BYTES)
    request = _receive(read_fd)
    if not isinstance(request, Begin):
        return 1
    try:
        workshop = open_workshop(request.spec, Site(should_stop=lambda: flag[0] != 0), factory)
        ready = workshop.ready()
    except LearnerError as error:
        _send(write_fd, Failed(str(error)))
        _receive(read_fd)
        return 1
    d = ready.parameters.size
    _send(
        write_fd,
        Built(
            d=d,
            samples=ready.samples,
            schema_hash=ready.schema_hash,
            statistics=ready.statistics.astype("<f8").tobytes(),
            schema=ready.schema,
            data_set=ready.data_set,
            release=ready.release,
        ),
    )
    if not isinstance(_receive(read_fd), Map):
        return 1
    given, answer = slots(mmap.mmap(memory_fd, PAGE_BYTES + 8 * d), d)
    answer[:] = ready.parameters
    _send(write_fd, Mapped())
    while (request := _receive(read_fd)) is not None:
        match request:
            case Fit():
                _send(write_fd, _fit(workshop, request, given, answer))
            case Measure():
                _send(write_fd, _measure(workshop, request, given))
            case Score():
                _send(write_fd, _score(workshop, request, given))
            case _:
                return 1
    return 0


def _fit(workshop: Workshop, request: Fit, given: Vector, answer: Vector) -> Fitted:
    trained = workshop.train(
        Train(
            round=request.round,
            parameters=given,
            seed=tuple(int(number) for number in request.seed),
            progress=request.progress,
            deadline=float("inf"),
            statistics=_statistics(request.statistics),
            learner_state=request.learner_state,
        )
    )
    if trained.parameters is not None:
        answer[:] = trained.parameters
    return Fitted(
        round=request.round,
        metrics=dict(trained.metrics),
        learner_state=trained.learner_state,
        fault=trained.fault,
    )


def _measure(workshop: Workshop, request: Measure, given: Vector) -> Measured:
    job = Evaluate(round=request.round, parameters=given, statistics=_statistics(request.statistics))
    evaluated = workshop.evaluate(job, request.learner_state)
    return Measured(round=request.round, metrics=dict(evaluated.metrics), fault=workshop.fault)


def _score(workshop: Workshop, request: Score, given: Vector) -> Scored:
    seed = tuple(int(number) for number in request.seed)
    loss = workshop.loss(given, seed, _statistics(request.statistics), request.learner_state)
    return Scored(loss=loss, fault=workshop.fault)


def _statistics(raw: bytes | None) -> "np.ndarray[tuple[int], np.dtype[np.float64]] | None":
    return None if raw is None else np.frombuffer(raw, "<f8")


def die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL at the parent's death; exit now if it is dead already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != parent:
        sys.exit(1)


def _receive(descriptor: int) -> Request | None:
    """The next request, None at the end of the file."""
    head = _read(descriptor, 4)
    if head is None:
        return None
    body = _read(descriptor, struct.unpack("<I", head)[0])
    return None if body is None else msgspec.msgpack.decode(body, type=Request)


def _read(descriptor: int, size: int) -> bytearray | None:
    data = bytearray()
    while len(data) < size:
        part = os.read(descriptor, min(size - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return data


def _send(descriptor: int, reply: Reply) -> None:
    try:
        data = memoryview(frame(reply))
    except LearnerError as error:
        assert isinstance(reply, Fitted)
        data = memoryview(frame(Fitted(round=reply.round, metrics={}, learner_state=b"", fault=str(error))))
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
