"""The learner, seen from the daemon: user code in a process of its own, jobs in, events out.

Theory of operation.  A child (node/learner_child.py) builds the learner once a run.  One job at a time is
asked of it.  While a job runs, and only then, what the child prints is read, so that it never blocks on a
full pipe and nothing of it is kept beyond the last lines.  A job ends in one of four ways:

- an answer;
- the deadline: the stop flag is raised, and after `grace_s` more the child's whole process group is killed;
- the child's death, of whatever kind;
- the caller's cancellation, which kills it too, because nobody will read the answer.

After the last three the next job starts a new child, with the last learner state.  Nothing that happens to
the child raises here once `start` has returned: it is the `fault` of a `Trained`.

Deadlines are on trio's clock.  Real processes need a real one: under an autojump clock use `inline_learner`.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import trio
from numpy.typing import NDArray

from p2pfl.errors import LearnerError
from p2pfl.events import Evaluate, Evaluated, Train, Trained, Validate, Validated, Vector
from p2pfl.learn.jobs import Ready
from p2pfl.node.learner_jobs import pack, unpack_result
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
from p2pfl.node.learner_pipes import Child, last_words
from p2pfl.work import Work, Worked

__all__ = ["GRACE_S", "LearnerProcess"]

# Seconds from the stop flag to the kill: a few batches; Docker gives a container 10 s, systemd 90.
GRACE_S = 5.0
# Seconds to build a learner: importing torch from a cold network disk, then reading the data.
_START_S = 600.0
# Seconds for one evaluation; the peer never waits for it.
_EVALUATE_S = 600.0
# Failed starts in a row before trying again becomes rare, and the seconds between tries from then on.
_EAGER_STARTS = 3
_RETRY_S = 60.0
# Seconds a child has to leave by itself, so that its atexit functions run.
_CLOSE_S = 2.0
# Lines of output remembered, a terminal or two; the last few are quoted in a fault.
_LOG_LINES = 200


class LearnerProcess:
    """One run's learner in its own process.  Methods may be called from several tasks; they take turns."""

    def __init__(
        self,
        *,
        grace_s: float = GRACE_S,
        start_s: float = _START_S,
        evaluate_s: float = _EVALUATE_S,
        retry_s: float = _RETRY_S,
        said: Callable[[str], None] | None = None,
        program: Sequence[str] = ("p2pfl.node.learner_child",),
    ) -> None:
        """said: called with every line that the learner prints, cut to a bounded length.

        program: what serves as the child, a module whose `main` ends in learner_child's, and its arguments.
        """
        self.fault = ""
        self._grace_s, self._start_s = grace_s, start_s
        self._evaluate_s, self._retry_s = evaluate_s, retry_s
        self._said, self._program = said, program
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._turn = trio.Lock()
        self._child: Child | None = None
        self._spec: LearnerSpec | None = None
        self._ready: Ready | None = None
        self._state = b""
        self._owes_state = False
        self._statistics: NDArray[np.float64] | None = None
        self._failed_starts, self._retry_at = 0, -math.inf

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return None if self._child is None else self._child.pid

    @property
    def output(self) -> tuple[str, ...]:
        """The last lines that the learner printed."""
        return tuple(self._log)

    async def start(self, spec: LearnerSpec) -> Ready:
        """Build the learner in a new process.  Raises LearnerError with the reason when that fails."""
        async with self._turn:
            await self._end()
            self._spec, self._ready, self._state, self._statistics = spec, None, b"", None
            self._failed_starts, self._retry_at = 0, -math.inf
            ready = await self._spawn(trio.current_time() + self._start_s)
            if ready is None:
                raise LearnerError(self.fault)
            self._ready = ready
            return ready

    async def train(self, job: Train) -> Trained:
        """Fit; the answer comes by `job.deadline` plus the grace, with a fault if need be."""
        async with self._turn:
            if wrong := await self._in_time(job):
                return Trained(round=job.round, parameters=None, fault=wrong)
            assert self._child is not None
            request = Fit(
                round=job.round,
                seed=tuple(str(number) for number in job.seed),
                progress=job.progress,
                statistics=self._raw_statistics(),
                learner_state=job.learner_state or self._owed_state(),
            )
            reply = await self._ask(request, job.deadline)
            if not isinstance(reply, Fitted):
                return Trained(round=job.round, parameters=None, fault=await self._mourn())
            self.fault = reply.fault
            if reply.fault:
                return Trained(round=job.round, parameters=None, fault=reply.fault)
            self._state, self._owes_state = reply.learner_state, False
            return Trained(
                round=job.round,
                parameters=self._child.answer(),
                metrics=reply.metrics,
                learner_state=reply.learner_state,
            )

    async def work(self, job: Work) -> Worked:
        """Do what an exchange of knowledge asks, as `train` does."""
        async with self._turn:
            if wrong := await self._in_time(job):
                return _failed(job, wrong)
            assert self._child is not None
            request = Do(
                round=job.round,
                number=job.number,
                job=pack(job.job),
                seed=tuple(str(number) for number in job.seed),
                progress=job.progress,
                statistics=self._raw_statistics(),
                learner_state=job.learner_state or self._owed_state(),
            )
            try:
                reply = await self._ask(request, job.deadline)
                if not isinstance(reply, Did):
                    return _failed(job, await self._mourn())
                self.fault = reply.fault
                if reply.fault:
                    return _failed(job, reply.fault)
                result = unpack_result(reply.result)
            except LearnerError as error:
                self.fault = str(error)
                return _failed(job, self.fault)
            self._state, self._owes_state = reply.learner_state, False
            return Worked(
                round=job.round,
                number=job.number,
                result=result,
                parameters=self._child.answer() if reply.is_changed else None,
                metrics=reply.metrics,
                learner_state=reply.learner_state,
            )

    async def evaluate(self, job: Evaluate) -> Evaluated:
        """Measure; no metrics when that failed, and the reason in `fault`."""
        async with self._turn:
            deadline = trio.current_time() + self._evaluate_s
            if await self._prepare(job.parameters, job.statistics, deadline):
                return Evaluated(round=job.round, metrics={})
            request = Measure(
                round=job.round, statistics=self._raw_statistics(), learner_state=self._owed_state()
            )
            reply = await self._ask(request, deadline)
            if not isinstance(reply, Measured):
                await self._mourn()
                return Evaluated(round=job.round, metrics={})
            self.fault = reply.fault
            self._owes_state = self._owes_state and bool(reply.fault)
            return Evaluated(round=job.round, metrics=reply.metrics)

    async def validate(self, job: Validate) -> Validated:
        """The losses of the models, one after the other through one slot; NaN once the deadline is over."""
        losses = np.full(len(job.models), np.nan)
        async with self._turn:
            for i, model in enumerate(job.models):
                late = trio.current_time() >= job.deadline
                if late or await self._prepare(model, job.statistics, job.deadline):
                    break
                request = Score(
                    seed=tuple(str(number) for number in job.seed),
                    statistics=self._raw_statistics(),
                    learner_state=self._owed_state(),
                )
                reply = await self._ask(request, job.deadline)
                if not isinstance(reply, Scored):
                    await self._mourn()
                    break
                self.fault, losses[i] = reply.fault, reply.loss
                self._owes_state = self._owes_state and math.isnan(reply.loss)
        return Validated(round=job.round, losses=losses)

    async def aclose(self) -> None:
        """End the child, and the job it is at, if any.  Later jobs are answered with a fault."""
        self._spec = None
        if self._child is not None and self._turn.locked():
            self._child.kill()
        try:
            async with self._turn:
                if self._child is not None:
                    with trio.move_on_after(_CLOSE_S):
                        await self._child.leave()
        finally:
            await self._end()

    # --- within ---------------------------------------------------------------------------------------

    async def _in_time(self, job: Train | Work) -> str:
        """See to it that `job` can begin before its deadline; why not, or an empty string."""
        if job.deadline <= trio.current_time():
            self.fault = "the deadline passed before the fit could begin; evaluate less often"
            return self.fault
        return await self._prepare(job.parameters, job.statistics, job.deadline)

    async def _prepare(
        self, parameters: Vector, statistics: NDArray[np.float64] | None, deadline: float
    ) -> str:
        """See to it that a child is there and has `parameters`; why not, or an empty string."""
        if statistics is not None:
            self._statistics = np.array(statistics, dtype=np.float64)
        if self._ready is None or self._spec is None:
            self.fault = "the learner has not been started, or was closed"
            return self.fault
        d = self._ready.parameters.size
        if parameters.dtype != np.float32 or parameters.shape != (d,):
            self.fault = (
                f"the job has {parameters.dtype} {parameters.shape} parameters, expected ({d},) float32"
            )
            return self.fault
        if self._child is not None and self._child.is_gone():
            await self._mourn()
        if self._child is None:
            now = trio.current_time()
            if now < self._retry_at:
                return self.fault
            again = await self._spawn(min(now + self._start_s, deadline))
            if again is None:
                return self.fault
            if again.parameters.size != d or again.schema_hash != self._ready.schema_hash:
                await self._end()
                self.fault = "the learner came back with another model; restart the node with the agreed one"
                return self.fault
            self._owes_state = True
        assert self._child is not None
        self._child.give(parameters)
        return ""

    async def _spawn(self, deadline: float) -> Ready | None:
        """A new child with its learner built, or None and the reason in `fault`."""
        assert self._spec is not None
        try:
            self._child = Child.start(self._program)
        except OSError as error:
            self._note_failed_start(f"no process could be started: {error}")
            return None
        built = await self._ask(Begin(self._spec), deadline)
        if isinstance(built, Built):
            try:
                self._child.share(built.d)
            except (OSError, ValueError, OverflowError) as error:
                await self._end()
                self._note_failed_start(f"no memory for two vectors of {built.d} parameters: {error}")
                return None
            mapped = await self._ask(Map(built.d), deadline)
            if isinstance(mapped, Mapped):
                self._failed_starts, self._retry_at, self.fault = 0, -math.inf, ""
                return Ready(
                    parameters=self._child.answer(),
                    samples=built.samples,
                    schema_hash=built.schema_hash,
                    statistics=np.frombuffer(built.statistics, "<f8"),
                    schema=built.schema,
                    data_set=built.data_set,
                    release=built.release,
                    expected=built.expected,
                )
            built = mapped
        if isinstance(built, Failed):
            await self._end()
            self._note_failed_start(built.reason)
            return None
        self._note_failed_start(await self._mourn())
        return None

    def _note_failed_start(self, why: str) -> None:
        self._failed_starts += 1
        times = f" ({self._failed_starts} starts failed)" if self._failed_starts > 1 else ""
        self.fault = f"the learner did not start{times}: {why}"
        if self._failed_starts >= _EAGER_STARTS:
            self._retry_at = trio.current_time() + self._retry_s

    async def _ask(self, request: Request, deadline: float) -> Reply | None:
        """The child's answer; None when it died, spoke nonsense, or did not stop in time (and is `late`)."""
        child = self._child
        assert child is not None
        framed = frame(request)
        child.lower_flag()
        child.late = False
        answers: list[Reply] = []

        async def hurry(scope: trio.CancelScope) -> None:
            await trio.sleep_until(deadline)
            child.raise_flag()
            await trio.sleep_until(deadline + self._grace_s)
            child.late = True
            scope.cancel()

        async def watch(scope: trio.CancelScope) -> None:
            await child.gone()
            scope.cancel()

        async def talk(scope: trio.CancelScope) -> None:
            reply = await child.exchange(framed)
            if reply is not None:
                answers.append(reply)
            scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                for task in (hurry, watch, talk):
                    nursery.start_soon(task, nursery.cancel_scope)
                nursery.start_soon(child.listen, self._hear)
        except BaseException:
            await self._end()
            raise
        child.drain(self._hear)
        return answers[0] if answers else None

    async def _mourn(self) -> str:
        """End a child that gave no answer, or a wrong one; why, in one line."""
        child = self._child
        assert child is not None
        status = await self._end()
        match status:
            case _ if self._spec is None:
                why = "the learner was closed"
            case _ if child.late:
                why = "the learner did not stop by the deadline"
            case None:
                why = "the learner's process broke its protocol; user code must leave its pipes alone"
            case -9:
                why = "the learner's process was killed by signal 9; was it out of memory?"
            case _ if status < 0:
                why = f"the learner's process was killed by signal {-status}"
            case _:
                why = f"the learner's process ended with status {status}"
        self.fault = why + last_words(self._log)
        return self.fault

    async def _end(self) -> int | None:
        """Kill and forget the child; its exit status, None when there was none or it cannot be had."""
        child, self._child = self._child, None
        if child is None:
            return None
        return await child.end(self._hear)

    def _hear(self, line: str) -> None:
        self._log.append(line)
        if self._said is not None:
            self._said(line)

    def _raw_statistics(self) -> bytes | None:
        return None if self._statistics is None else self._statistics.astype("<f8").tobytes()

    def _owed_state(self) -> bytes:
        return self._state if self._owes_state else b""


def _failed(job: Work, fault: str) -> Worked:
    return Worked(round=job.round, number=job.number, result=None, fault=fault)
