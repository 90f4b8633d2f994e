"""The learner's own process: `python -m p2pfl.node.learner_child READ WRITE MEMORY PARENT`.

Theory of operation.  The daemon (node/learner_process.py) starts this process with three descriptors of
its own: two pipes for messages and an anonymous memory file for vectors.  Standard output and error are
the user's code's to use.  Messages are those of node/learner_messages.py; models never pass through a pipe,
what an exchange of knowledge gives and takes does (node/learner_jobs.py).

    daemon                       here
    Begin(spec)            ->    build the learner
                           <-    Built(d, ...), or Failed(reason)
    Map(d): memory sized   ->    map it, put the first parameters in the second slot
                           <-    Mapped
    Fit | Do | Measure | Score   work on the first slot, answer in the second
                           ->
                           <-    Fitted | Did | Measured | Scored   (again and again)
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
from typing import Any

import msgspec
import numpy as np

from p2pfl.errors import LearnerError, P2PFLError
from p2pfl.events import Evaluate, Train, Vector
from p2pfl.learn.factory import build, resolve
from p2pfl.learn.jobs import Workshop, reason
from p2pfl.learn.learner import LearnerFactory, Site
from p2pfl.learn.options import LearnerOptions, at_role
from p2pfl.node.learner_jobs import pack, unpack_job
from p2pfl.node.learner_messages import (
    Begin,
    Built,
    Did,
    Do,
    Failed,
    Fit,
    Fitted,
    LearnerSpec,
    Map,
    Mapped,
    Measure,
    Measured,
    Reply,
    Request,
    Score,
    Scored,
    frame,
)
from p2pfl.work import Work

__all__ = [
    "PAGE_BYTES",
    "slots",
    "open_workshop",
    "die_with",
    "main",
]

# The stop flag has a page to itself: x86-64 and arm64 align the slots behind it for any vector unit.
PAGE_BYTES = 4096
# <linux/prctl.h>
_PR_SET_PDEATHSIG = 1


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
        options = at_role(msgspec.json.decode(spec.options, type=LearnerOptions), spec.role)
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
        role=spec.role,
        exchange=spec.exchange,
        probe_source=spec.probe_source,
        probe_digest=spec.probe_digest,
        probe_samples=spec.probe_samples,
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
            expected=ready.expected,
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
            case Do():
                _send(write_fd, _do(workshop, request, given, answer))
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


def _do(workshop: Workshop, request: Do, given: Vector, answer: Vector) -> Did:
    worked = workshop.work(
        Work(
            round=request.round,
            number=request.number,
            job=unpack_job(request.job),
            parameters=given,
            seed=tuple(int(number) for number in request.seed),
            progress=request.progress,
            deadline=float("inf"),
            statistics=_statistics(request.statistics),
            learner_state=request.learner_state,
        )
    )
    if worked.parameters is not None:
        answer[:] = worked.parameters
    return Did(
        round=request.round,
        number=request.number,
        result=pack(worked.result),
        is_changed=worked.parameters is not None,
        metrics=dict(worked.metrics),
        learner_state=worked.learner_state,
        fault=worked.fault,
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
        data = memoryview(frame(_too_large(reply, str(error))))
    while data:
        data = data[os.write(descriptor, data) :]


def _too_large(reply: Reply, why: str) -> Fitted | Did:
    if isinstance(reply, Did):
        rest: dict[str, Any] = {"result": None, "is_changed": False, "metrics": {}, "learner_state": b""}
        return Did(round=reply.round, number=reply.number, fault=why, **rest)
    assert isinstance(reply, Fitted)
    return Fitted(round=reply.round, metrics={}, learner_state=b"", fault=why)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
