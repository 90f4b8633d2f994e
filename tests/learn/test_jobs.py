"""Jobs: what a learner raises or returns is checked before anybody relies on it."""

from typing import Any

import numpy as np
import pytest

from p2pfl.errors import LearnerError
from p2pfl.events import Evaluate, Train, Validate
from p2pfl.learn.jobs import Workshop, reason
from p2pfl.learn.learner import Learner, Site, Update


class Scripted:
    """A learner that does as its attributes say."""

    def __init__(self, d: int = 3) -> None:
        self.initial: Any = np.arange(d, dtype=np.float32)
        self.result: Any = None
        self.measured: Any = {"loss": 1.0}
        self.calls: list[str] = []

    def parameters(self) -> Any:
        return self.initial

    def fit(self, parameters: Any, rng: np.random.Generator) -> Any:
        self.calls.append("fit")
        return Update(parameters=parameters + 1, samples=1) if self.result is None else self.result

    def evaluate(self, parameters: Any) -> Any:
        self.calls.append("evaluate")
        return self.measured


class Complete(Scripted):
    """With every optional method."""

    def samples(self) -> int:
        return 40

    def schema_hash(self) -> bytes:
        return b"s" * 32

    def statistics(self) -> Any:
        return np.array([2.0, 3.0])

    def standardise(self, sums: Any) -> None:
        self.calls.append(f"standardise {sums.tolist()}")

    def state(self) -> bytes:
        return b"head"

    def restore(self, state: bytes) -> None:
        self.calls.append(f"restore {state.decode()}")


def workshop(learner: Any) -> Workshop:
    def build(site: Site) -> Learner:
        built: Learner = learner
        return built

    return Workshop(build, Site())


def fit(d: int = 3, **fields: Any) -> Train:
    values: dict[str, Any] = {"parameters": np.zeros(d, np.float32), "seed": (1,), "progress": 0.0}
    return Train(round=5, deadline=1.0, **(values | fields))


def test_a_complete_learner_says_all_of_ready() -> None:
    ready = workshop(Complete()).ready()
    assert (ready.samples, ready.schema_hash) == (40, b"s" * 32)
    np.testing.assert_array_equal(ready.statistics, [2.0, 3.0])
    np.testing.assert_array_equal(ready.parameters, [0.0, 1.0, 2.0])


def test_a_learner_without_optional_methods_is_enough() -> None:
    ready = workshop(Scripted()).ready()
    assert (ready.samples, len(ready.schema_hash), ready.statistics.size) == (1, 32, 0)
    assert ready.schema_hash != workshop(Scripted(4)).ready().schema_hash


def test_sums_are_applied_once_and_before_the_state_and_the_fit() -> None:
    learner = Complete()
    bench = workshop(learner)
    sums = np.array([1.0])
    assert bench.train(fit(statistics=sums, learner_state=b"saved")).learner_state == b"head"
    bench.train(fit(statistics=sums))
    bench.evaluate(Evaluate(round=1, parameters=np.zeros(3, np.float32), statistics=sums))
    assert learner.calls == ["standardise [1.0]", "restore saved", "fit", "fit", "evaluate"]


def test_an_evaluation_may_be_the_first_that_needs_the_state() -> None:
    learner = Complete()
    job = Evaluate(round=1, parameters=np.zeros(3, np.float32), statistics=np.zeros(2))
    workshop(learner).evaluate(job, b"saved")
    assert learner.calls == ["standardise [0.0, 0.0]", "restore saved", "evaluate"]


def test_a_state_that_nobody_can_restore_is_a_fault() -> None:
    trained = workshop(Scripted()).train(fit(learner_state=b"saved"))
    assert "no restore(state)" in trained.fault
    assert trained.parameters is None


@pytest.mark.parametrize(
    "bad", [np.zeros(3), np.zeros((3, 1), np.float32), [0.0], None, np.zeros(0, np.float32)]
)
def test_a_learner_with_wrong_parameters_is_not_built(bad: Any) -> None:
    learner = Scripted()
    learner.initial = bad
    with pytest.raises(LearnerError, match=r"float32|no parameters"):
        workshop(learner)


@pytest.mark.parametrize("samples", [0, -1, "many"])
def test_a_site_without_rows_is_not_ready(samples: Any) -> None:
    class Odd(Complete):
        def samples(self) -> Any:
            return samples

    with pytest.raises(LearnerError):
        workshop(Odd()).ready()


def test_metrics_are_finite_numbers_by_name_or_a_fault() -> None:
    learner = Scripted()
    bench = workshop(learner)
    job = Evaluate(round=2, parameters=np.zeros(3, np.float32))
    learner.measured = {"loss": np.float32(0.5), "auc": float("nan"), "n": 3, "big": np.inf}
    assert bench.evaluate(job).metrics == {"loss": 0.5, "n": 3.0}
    for wrong in (None, 0.5, {"loss": "low"}, {"loss": np.zeros(2)}):
        learner.measured = wrong
        assert bench.evaluate(job).metrics == {}
        assert "number" in bench.fault
    learner.measured = {}
    bench.evaluate(job)
    assert bench.fault == ""


def test_a_result_is_a_copy_of_the_learners_own_buffer() -> None:
    learner = Scripted()
    buffer = np.ones(3, np.float32)
    learner.result = Update(parameters=buffer, samples=1)
    trained = workshop(learner).train(fit())
    buffer[:] = 7
    np.testing.assert_array_equal(np.asarray(trained.parameters), np.ones(3))


def test_progress_is_that_of_the_job() -> None:
    sites: list[Site] = []

    def build(site: Site) -> Learner:
        sites.append(site)
        return Scripted()

    bench = Workshop(build, Site(name="ward"))
    bench.train(fit(progress=0.75))
    assert (sites[0].name, sites[0].progress()) == ("ward", 0.75)


def test_a_keyboard_interrupt_is_not_the_learners_fault() -> None:
    class Interrupted(Scripted):
        def fit(self, parameters: Any, rng: np.random.Generator) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workshop(Interrupted()).train(fit())


def test_a_reason_is_one_bounded_line() -> None:
    text = reason(ValueError("a\n" * 1000))
    assert len(text) <= 400
    assert "\n" not in text


# --- losses of other sites' models ------------------------------------------------------------------


class Validating(Scripted):
    """Its loss is the first parameter and a draw; some models break it."""

    def validate(self, parameters: Any, rng: np.random.Generator) -> float:
        self.calls.append("validate")
        if parameters[0] < 0:
            raise ValueError("a logarithm of a negative number")
        return float(parameters[0]) + (0.0 if parameters[0] > 90 else rng.random())


def to_validate(*first: float) -> Validate:
    models = tuple(np.array([value, 0, 0], np.float32) for value in first)
    return Validate(round=4, models=models, seed=(1, 2), deadline=60.0)


def test_every_model_is_validated_on_the_same_rows() -> None:
    validated = workshop(Validating()).validate(to_validate(1, 1, 2))
    assert validated.round == 4
    assert validated.losses.dtype == np.float64
    assert validated.losses[0] == validated.losses[1] == pytest.approx(validated.losses[2] - 1)


def test_a_model_that_breaks_the_users_code_has_no_loss_and_the_others_have_theirs() -> None:
    losses = workshop(Validating()).validate(to_validate(99, -1, 98)).losses
    np.testing.assert_array_equal(losses, [99.0, np.nan, 98.0])


def test_a_learner_that_cannot_validate_gives_no_losses() -> None:
    losses = workshop(Scripted()).validate(to_validate(1, 2)).losses
    assert np.isnan(losses).all()


def test_validation_ends_when_the_site_says_stop() -> None:
    learner = Validating()

    def build(site: Site) -> Learner:
        return learner

    site = Site(should_stop=lambda: len(learner.calls) >= 2)
    losses = Workshop(build, site).validate(to_validate(91, 92, 93)).losses
    np.testing.assert_array_equal(losses, [91.0, 92.0, np.nan])
