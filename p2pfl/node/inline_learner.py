"""The learner without a process of its own: the same jobs, run in this process."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import numpy as np
import trio

from p2pfl.events import Evaluate, Evaluated, Train, Trained, Validate, Validated
from p2pfl.learn.jobs import Ready, Workshop
from p2pfl.learn.learner import LearnerFactory, Site
from p2pfl.node.learner_child import open_workshop
from p2pfl.node.learner_messages import LearnerSpec
from p2pfl.work import Work, Worked

__all__ = ["InlineLearner"]

_NOT_STARTED = "the learner has not been started, or was closed"


class InlineLearner:
    """`LearnerProcess` without the process, for simulations, notebooks and tests.

    Jobs run where `runner` runs them: by default at once, in the calling task, which an autojump clock
    needs; or for instance in a thread.  Nothing protects the caller from user code that crashes or hangs.
    """

    def __init__(
        self,
        factory: LearnerFactory | None = None,
        *,
        dataset: Any = None,
        runner: Callable[[Callable[[], Any]], Awaitable[Any]] | None = None,
    ) -> None:
        """factory: instead of the one that the spec's options name.   dataset: given to it in its Site."""
        self.fault = ""
        self._factory = factory
        self._dataset = dataset
        self._runner = runner or _at_once
        self._turn = trio.Lock()
        self._stop = False
        self._workshop: Workshop | None = None

    async def start(self, spec: LearnerSpec) -> Ready:
        """Build the learner.  Raises LearnerError with the reason when it cannot be built."""
        site = Site(
            data=spec.data,
            name=spec.name,
            seed=spec.seed,
            dataset=self._dataset,
            should_stop=lambda: self._stop,
        )
        async with self._turn:
            self._workshop = await self._runner(partial(open_workshop, spec, site, self._factory))
            return self._workshop.ready()

    async def train(self, job: Train) -> Trained:
        """Fit; `site.should_stop()` turns true at the deadline if `runner` leaves trio's loop free."""
        async with self._turn:
            workshop = self._workshop
            if workshop is None:
                self.fault = _NOT_STARTED
                return Trained(round=job.round, parameters=None, fault=self.fault)
            trained: Trained = await self._until(job.deadline, partial(workshop.train, job))
            self.fault = workshop.fault
            return trained

    async def work(self, job: Work) -> Worked:
        """Do what an exchange of knowledge asks; partial work as `train` gives it."""
        async with self._turn:
            workshop = self._workshop
            if workshop is None:
                self.fault = _NOT_STARTED
                return Worked(round=job.round, number=job.number, result=None, fault=self.fault)
            worked: Worked = await self._until(job.deadline, partial(workshop.work, job))
            self.fault = workshop.fault
            return worked

    async def evaluate(self, job: Evaluate) -> Evaluated:
        """Measure; no metrics when that failed, and the reason in `fault`."""
        async with self._turn:
            workshop = self._workshop
            if workshop is None:
                self.fault = _NOT_STARTED
                return Evaluated(round=job.round, metrics={})
            self._stop = False
            evaluated: Evaluated = await self._runner(partial(workshop.evaluate, job))
            self.fault = workshop.fault
            return evaluated

    async def validate(self, job: Validate) -> Validated:
        """The losses of the models; NaN for all of them when the learner is not there."""
        async with self._turn:
            workshop = self._workshop
            if workshop is None:
                self.fault = _NOT_STARTED
                return Validated(round=job.round, losses=np.full(len(job.models), np.nan))
            self._stop = False
            validated: Validated = await self._runner(partial(workshop.validate, job))
            self.fault = workshop.fault
            return validated

    async def aclose(self) -> None:
        """Forget the learner.  Later jobs are answered with a fault."""
        self._workshop = None

    async def _until(self, deadline: float, job: Callable[[], Any]) -> Any:
        """What `job` gives; `site.should_stop()` is true from the deadline on."""
        self._stop = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_at, deadline)
            result = await self._runner(job)
            nursery.cancel_scope.cancel()
        return result

    async def _stop_at(self, deadline: float) -> None:
        await trio.sleep_until(deadline)
        self._stop = True


async def _at_once(job: Callable[[], Any]) -> Any:
    await trio.lowlevel.checkpoint()
    return job()
