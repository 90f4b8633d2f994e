"""Jobs: the calls on a user's learner that answer what a peer asks for, whatever the user's code does.

Used by both ends that run user code: the learner's own process (node/learner_process.py) and simulations.
Nothing that a learner raises or returns passes through here unexamined: it becomes a result that was
checked, or one line that says what to mend.
"""

import math
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import LearnerError, P2PFLError
from p2pfl.events import Evaluate, Evaluated, Metrics, Train, Trained, Validate, Validated, Vector
from p2pfl.learn.distill import log_softmax
from p2pfl.learn.factory import data_set_of, release_of, samples_of, schema_hash_of, statistics_of, tensors_of
from p2pfl.learn.flat import Schema
from p2pfl.learn.learner import Learner, Site
from p2pfl.learn.lessons import Lessons
from p2pfl.release import Release
from p2pfl.work import Expected, Work, Worked

__all__ = ["Ready", "Workshop", "reason"]

# A reason is one line on a terminal and one field of a log entry.
_REASON_CHARACTERS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A learner that is built: the fields of `events.Started` but the snapshot.

    parameters: (d,) float32.   samples: training rows, 1 when the learner does not say.
    schema_hash: 32 bytes, equal on sites that may mix.
    statistics: (k,) float64, empty when the learner pools none.
    schema: the names and shapes of the tensors in the vector, None when the learner does not say.
    data_set: names the site's rows.   release: what a fit releases of them, when the learner adds noise.
    expected: what knowledge the learner can give, None when the run exchanges none.
    """

    parameters: Vector
    samples: int
    schema_hash: bytes
    statistics: NDArray[np.float64]
    schema: Schema | None = None
    data_set: str = ""
    release: Release | None = None
    expected: Expected | None = None


class Workshop:
    """One learner at work.  It remembers what may be done once: standardising, restoring.

    `fault` is why the last call of the user's code gave nothing, empty when it did.
    """

    def __init__(self, build: Callable[[Site], Learner], site: Site) -> None:
        """Build the learner.  Raises LearnerError with the reason, whatever `build` raised.

        site: its `progress` is replaced by that of the job under way; `should_stop` is the caller's.
        """
        self.fault = ""
        self._progress = 0.0
        self._standardised = False
        self._should_stop = site.should_stop
        self._site = site
        try:
            self._learner = build(replace(site, progress=lambda: self._progress))
            self._first = _checked_vector(self._learner.parameters(), None)
            self._lessons = Lessons(self._learner, self._site)
        except (Exception, SystemExit) as error:
            raise LearnerError(reason(error)) from error

    @property
    def learner(self) -> Learner:
        """The learner itself, for a driver that fits many at once (stacked.py)."""
        return self._learner

    def ready(self) -> Ready:
        """What the learner is, before the first fit.  Raises LearnerError."""
        try:
            return Ready(
                parameters=self._first,
                samples=samples_of(self._learner),
                schema_hash=schema_hash_of(self._learner),
                statistics=statistics_of(self._learner),
                schema=tensors_of(self._learner),
                data_set=data_set_of(self._learner, self._site),
                release=release_of(self._learner),
                expected=self._lessons.expected(),
            )
        except (Exception, SystemExit) as error:
            raise LearnerError(reason(error)) from error

    def train(self, job: Train) -> Trained:
        """Fit as `job` says.  Never raises what the user's code raised: that is `fault` of the result.

        The learner gets a copy of the parameters, and `np.random.default_rng(job.seed)` for all its choices.
        """
        self._progress = job.progress
        try:
            self._prepare(job.statistics, job.learner_state)
            start = _checked_vector(job.parameters, self._first.size)
            update = self._learner.fit(start, np.random.default_rng(job.seed))
            parameters = _checked_vector(getattr(update, "parameters", update), self._first.size)
            metrics = _checked_metrics(getattr(update, "metrics", {}))
            state = self._state()
        except (Exception, SystemExit) as error:
            self.fault = reason(error)
            return Trained(round=job.round, parameters=None, fault=self.fault)
        self.fault = ""
        return Trained(round=job.round, parameters=parameters, metrics=metrics, learner_state=state)

    def work(self, job: Work) -> Worked:
        """Do what an exchange of knowledge asks; `fault` in place of a result when the user's code failed."""
        self._progress = job.progress
        try:
            self._prepare(job.statistics, job.learner_state)
            start = _checked_vector(job.parameters, self._first.size)
            done = self._lessons.do(job.job, start, np.random.default_rng(job.seed))
            after = done.parameters
            parameters = None if after is None else _checked_vector(after, self._first.size)
            metrics, state = _checked_metrics(done.metrics), self._state()
        except (Exception, SystemExit) as error:
            self.fault = reason(error)
            return Worked(round=job.round, number=job.number, result=None, fault=self.fault)
        self.fault = ""
        return Worked(
            round=job.round,
            number=job.number,
            result=done.result,
            parameters=parameters,
            metrics=metrics,
            learner_state=state,
        )

    def evaluate(self, job: Evaluate, learner_state: bytes = b"") -> Evaluated:
        """Measure as `job` says; no metrics when the user's code failed, and the reason in `fault`.

        learner_state: restored first when it is not empty, as the first fit of a new process does.
        """
        try:
            self._prepare(job.statistics, learner_state)
            start = _checked_vector(job.parameters, self._first.size)
            metrics = _checked_metrics(self._learner.evaluate(start))
        except (Exception, SystemExit) as error:
            self.fault = reason(error)
            return Evaluated(round=job.round, metrics={})
        self.fault = ""
        return Evaluated(round=job.round, metrics=metrics)

    def validate(self, job: Validate) -> Validated:
        """Each model's loss; NaN after the site said stop, and where the user's code gave none."""
        losses = np.full(len(job.models), np.nan)
        for i, model in enumerate(job.models):
            if self._should_stop():
                break
            losses[i] = self.loss(model, job.seed, job.statistics)
        return Validated(round=job.round, losses=losses)

    def loss(
        self,
        parameters: Vector,
        seed: tuple[int, ...],
        statistics: NDArray[np.float64] | None = None,
        learner_state: bytes = b"",
    ) -> float:
        """The loss on training rows that `seed` draws: infinite when not finite, NaN when there is none.

        learner_state: restored first when it is not empty, as the first fit of a new process does.
        """
        learner: Any = self._learner
        self.fault = ""
        if not hasattr(learner, "validate"):
            return math.nan
        try:
            self._prepare(statistics, learner_state)
            start = _checked_vector(parameters, self._first.size)
            with np.errstate(all="ignore"):
                loss = float(learner.validate(start, np.random.default_rng(seed)))
        except (Exception, SystemExit) as error:
            self.fault = reason(error)
            return math.nan
        return loss

    def believe(
        self,
        parameters: Vector,
        x: NDArray[np.float32],
        statistics: NDArray[np.float64] | None = None,
        learner_state: bytes = b"",
    ) -> tuple[NDArray[np.float64], str]:
        """Probabilities (n, K) of raw rows, and whose they are: `hub` where the hub's model is held (FedGKT's
        composite), else `own`.   learner_state: what was saved.   Raises LearnerError.
        """
        learner: Any = self._learner
        try:
            self._prepare(statistics, learner_state)
            start = _checked_vector(parameters, self._first.size)
            if getattr(learner, "holds_hub_model", False):
                logits, whose = learner.hub_answer(learner.features(start, x)), "hub"
            elif hasattr(learner, "answer"):
                logits, whose = learner.answer(start, x), "own"
            else:
                raise LearnerError(
                    f"{type(learner).__name__} cannot predict; give it answer(parameters, x), logits of rows"
                )
        except (Exception, SystemExit) as error:
            raise LearnerError(reason(error)) from error
        return np.exp(log_softmax(np.asarray(logits))), whose

    def _prepare(self, statistics: NDArray[np.float64] | None, state: bytes) -> None:
        learner: Any = self._learner
        if statistics is not None and statistics.size and not self._standardised:
            if hasattr(learner, "standardise"):
                learner.standardise(np.array(statistics, dtype=np.float64))
            self._standardised = True
        if state:
            if not hasattr(learner, "restore"):
                raise LearnerError("there is a saved learner state, but the learner has no restore(state)")
            learner.restore(state)

    def _state(self) -> bytes:
        learner: Any = self._learner
        if not hasattr(learner, "state"):
            return b""
        state = learner.state()
        if not isinstance(state, bytes | bytearray):
            raise LearnerError(f"state() gave {type(state).__name__}; it must be bytes")
        return bytes(state)


def reason(error: BaseException) -> str:
    """`error` in one line: its type, its message, and the last line of the user's own code.

    >>> reason(ValueError("no rows"))
    'ValueError: no rows'
    """
    text = " ".join(str(error).split())
    if isinstance(error, SystemExit):
        text = f"the user's code called exit({text})"
    line = text if isinstance(error, P2PFLError) else f"{type(error).__name__}: {text}".rstrip(": ")
    frame = _user_frame(error)
    where = f" ({Path(frame.filename).name}:{frame.lineno} in {frame.name})" if frame else ""
    return line[: _REASON_CHARACTERS - len(where)] + where


def _user_frame(error: BaseException) -> traceback.FrameSummary | None:
    """The deepest frame of the user's own files, or else of a library's; never one of ours."""
    ours = str(Path(__file__).parents[1])
    libraries = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    tracebacks = [error.__traceback__, *([error.__cause__.__traceback__] if error.__cause__ else [])]
    frames = [f for tb in tracebacks for f in traceback.extract_tb(tb)]
    frames = [f for f in frames if not f.filename.startswith((ours, "<"))]
    own = [f for f in frames if not f.filename.startswith(libraries)]
    found = own or frames
    return found[-1] if found else None


def _checked_vector(value: Any, d: int | None) -> Vector:
    """A copy of `value` if it is (d,) float32 and finite.  Raises LearnerError that says what it is."""
    if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.ndim != 1:
        raise LearnerError(f"the learner gave {_form(value)} as parameters; it must be (d,) float32")
    if d is not None and value.size != d:
        raise LearnerError(f"the learner gave {value.size} parameters, it was built with {d}")
    if not value.size:
        raise LearnerError("the learner has no parameters to share")
    copy = np.array(value, dtype=np.float32)
    if not np.isfinite(copy).all():
        bad = int(np.count_nonzero(~np.isfinite(copy)))
        raise LearnerError(f"{bad} of {copy.size} parameters are not finite; try a smaller learning rate")
    return copy


def _checked_metrics(value: Any) -> Metrics:
    """`value` as names and finite numbers; what is not finite is left out, as no table or chart holds it."""
    if not isinstance(value, Mapping):
        raise LearnerError(f"the learner gave {_form(value)} as metrics; it must map names to numbers")
    metrics = {}
    for name, number in value.items():
        try:
            metrics[str(name)] = float(number)
        except (TypeError, ValueError) as error:
            raise LearnerError(f"metric {name!r} is {_form(number)}; it must be a number") from error
    return {name: number for name, number in metrics.items() if math.isfinite(number)}


def _form(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array {value.shape} {value.dtype}"
    return f"a {type(value).__name__}"
