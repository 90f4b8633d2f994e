"""The learner as a node sees it, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeAlias

from p2pfl.events import Evaluate, Evaluated, Train, Trained, Validate, Validated
from p2pfl.learn.jobs import Ready
from p2pfl.node.learner_messages import LearnerSpec
from p2pfl.work import Work, Worked

__all__ = ["Learning", "Task", "carry_out"]

Task: TypeAlias = Train | Work | Evaluate | Validate


class Learning(Protocol):
    """The learner, wherever it runs: LearnerProcess, or InlineLearner."""

    async def start(self, spec: LearnerSpec) -> Ready:
        """Build it."""
        ...

    async def train(self, job: Train) -> Trained:
        """Answer by the job's deadline, on trio's clock."""
        ...

    async def work(self, job: Work) -> Worked:
        """Answer by the job's deadline, on trio's clock."""
        ...

    async def evaluate(self, job: Evaluate) -> Evaluated:
        """Measure."""
        ...

    async def validate(self, job: Validate) -> Validated:
        """Measure other sites' models, by the job's deadline on trio's clock."""
        ...

    async def aclose(self) -> None:
        """End it."""
        ...


async def carry_out(
    learning: Learning, task: Task, on_trio: Callable[[float], float]
) -> Trained | Worked | Evaluated | Validated:
    """What the learner answers to `task`.   on_trio: from the peer's clock to trio's, for its deadline."""
    match task:
        case Train():
            return await learning.train(replace(task, deadline=on_trio(task.deadline)))
        case Work():
            return await learning.work(replace(task, deadline=on_trio(task.deadline)))
        case Validate():
            return await learning.validate(replace(task, deadline=on_trio(task.deadline)))
        case Evaluate():
            return await learning.evaluate(task)
