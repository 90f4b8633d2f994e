"""The learner without a process: the same jobs, the same answers, under a clock that jumps."""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import trio
from trio.testing import MockClock

from p2pfl.errors import LearnerError
from p2pfl.events import Evaluate, Metrics, Train, Validate, Vector
from p2pfl.learn.data import load
from p2pfl.learn.learner import Site, Update
from p2pfl.learn.options import DataOptions
from p2pfl.node.inline_learner import InlineLearner
from p2pfl.node.learner_messages import LearnerSpec

SPEC = LearnerSpec(options=msgspec.json.encode({"model": {"kind": "logistic"}}), name="ward", seed=3)


class Counting:
    """Adds one to every parameter; `fit` may be replaced."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def parameters(self) -> Vector:
        return np.zeros(2, np.float32)

    def fit(self, parameters: Vector, rng: np.random.Generator) -> Update:
        return Update(parameters=parameters + 1, samples=1)

    def evaluate(self, parameters: Vector) -> Metrics:
        return {"sum": float(parameters.sum())}


def job(number: int = 1, deadline: float = 60.0) -> Train:
    start = np.full(2, number, np.float32)
    return Train(round=number, parameters=start, seed=(1, number), progress=0.5, deadline=deadline)


async def test_jobs_go_in_and_events_come_out(autojump_clock: MockClock) -> None:
    learner = InlineLearner(Counting)
    ready = await learner.start(SPEC)
    assert (ready.samples, ready.statistics.size) == (1, 0)
    trained = await learner.train(job(4))
    np.testing.assert_array_equal(np.asarray(trained.parameters), [5.0, 5.0])
    evaluated = await learner.evaluate(Evaluate(round=4, parameters=np.ones(2, np.float32)))
    assert (evaluated.round, evaluated.metrics) == (4, {"sum": 2.0})
    assert trio.current_time() == 0.0


async def test_the_built_in_learner_of_the_options_runs_on_a_given_data_set(
    autojump_clock: MockClock,
) -> None:
    dataset = load("sklearn:wine", DataOptions(), 0)
    learner = InlineLearner(dataset=dataset)
    ready = await learner.start(SPEC)
    assert ready.samples > 100
    assert len(ready.schema_hash) == 32
    trained = await learner.train(
        Train(round=0, parameters=ready.parameters, seed=(1,), progress=0.0, deadline=60.0)
    )
    assert trained.fault == ""
    assert trained.parameters is not None
    assert not np.array_equal(trained.parameters, ready.parameters)


async def test_the_callers_parameters_are_never_written_to(autojump_clock: MockClock) -> None:
    class Overwriting(Counting):
        def fit(self, parameters: Vector, rng: np.random.Generator) -> Update:
            parameters += 9
            return Update(parameters=parameters, samples=1)

    learner = InlineLearner(Overwriting)
    await learner.start(SPEC)
    given = job(1)
    first = await learner.train(given)
    await learner.train(job(2))
    np.testing.assert_array_equal(given.parameters, [1.0, 1.0])
    np.testing.assert_array_equal(np.asarray(first.parameters), [10.0, 10.0])


async def test_wrong_user_code_is_a_fault(autojump_clock: MockClock) -> None:
    class Failing(Counting):
        def fit(self, parameters: Vector, rng: np.random.Generator) -> Update:
            raise RuntimeError("no rows")

        def evaluate(self, parameters: Vector) -> Metrics:
            raise RuntimeError("no test rows")

    learner = InlineLearner(Failing)
    assert "not been started" in (await learner.train(job())).fault
    await learner.start(SPEC)
    trained = await learner.train(job())
    assert trained.parameters is None
    assert trained.fault.startswith("RuntimeError: no rows (test_inline_learner.py:")
    evaluated = await learner.evaluate(Evaluate(round=1, parameters=np.ones(2, np.float32)))
    assert evaluated.metrics == {}
    assert learner.fault.startswith("RuntimeError: no test rows")
    await learner.aclose()
    assert "closed" in (await learner.train(job())).fault


async def test_a_factory_that_fails_raises_with_the_reason(autojump_clock: MockClock) -> None:
    def factory(site: Site) -> Any:
        raise OSError("no such ward")

    with pytest.raises(LearnerError, match=r"no such ward.*\(test_inline_learner.py:\d+ in factory\)"):
        await InlineLearner(factory).start(SPEC)
    with pytest.raises(LearnerError, match="neither module"):
        await InlineLearner().start(LearnerSpec(options=b"{}"))
    with pytest.raises(LearnerError, match="unknown field"):
        await InlineLearner().start(LearnerSpec(options=b'{"modell": 1}'))


async def test_should_stop_turns_true_at_the_deadline_where_the_runner_leaves_the_loop_free(
    autojump_clock: MockClock,
) -> None:
    seen: list[bool] = []

    class Looking(Counting):
        def fit(self, parameters: Vector, rng: np.random.Generator) -> Update:
            seen.append(self.site.should_stop())
            return Update(parameters=parameters, samples=1, metrics={"progress": self.site.progress()})

    async def slow(call: Callable[[], Any]) -> Any:
        await trio.sleep(10)
        return call()

    learner = InlineLearner(Looking, runner=slow)
    await learner.start(SPEC)
    now = trio.current_time()
    trained = await learner.train(job(1, deadline=now + 11))
    await learner.train(job(2, deadline=now + 15))
    await learner.train(job(3, deadline=now + 99))
    assert seen == [False, True, False]
    assert trained.metrics == {"progress": 0.5}


async def test_other_sites_models_are_validated_or_not_at_all(autojump_clock: MockClock) -> None:
    dataset = load("sklearn:wine", DataOptions(), 0)
    learner = InlineLearner(dataset=dataset)
    first = (await learner.start(SPEC)).parameters
    models = (first, first + 1, np.full_like(first, 3e38))
    validated = await learner.validate(Validate(round=2, models=models, seed=(1, 2), deadline=60.0))
    assert validated.round == 2
    assert np.isfinite(validated.losses[:2]).all()
    assert validated.losses[0] != validated.losses[1]
    assert validated.losses[2] == np.inf
    await learner.aclose()
    gone = await learner.validate(Validate(round=2, models=models, seed=(1, 2), deadline=60.0))
    assert np.isnan(gone.losses).all()
