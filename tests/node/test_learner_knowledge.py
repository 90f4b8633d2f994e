"""A learner in an exchange of knowledge gives the same in its own process as in the node's."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import trio
from learner_sites import Site, steered_site
from lessons import PROBE, digits, options, work

from p2pfl.errors import LearnerError
from p2pfl.events import Evaluate
from p2pfl.ids import PeerId
from p2pfl.learn import data
from p2pfl.node import learner_messages
from p2pfl.node.inline_learner import InlineLearner
from p2pfl.node.learner_messages import LearnerSpec
from p2pfl.node.learner_process import LearnerProcess
from p2pfl.work import (
    Answer,
    Distill,
    Extract,
    Fit,
    Judge,
    Learn,
    Mix,
    Mutual,
    Pull,
    Samples,
    Summarise,
    Teacher,
    Worked,
)

A = PeerId("a")


def _spec(folder: Path, kind: str, table: dict[str, Any], **fields: Any) -> LearnerSpec:
    path = folder / "rows.npz"
    data.save(path, digits())
    chosen = msgspec.json.encode(options(**table))
    probe = PROBE if kind == "probe" else {}
    return LearnerSpec(options=chosen, data=f"npz:{path}", seed=3, exchange=kind, **probe, **fields)


async def _hub_jobs(learner: Any, theta: Any) -> list[Worked]:
    """Every job of a hub run, each worked on what the ones before gave."""
    ask = _asker(learner)
    found = [await ask(Fit(), theta)]
    theta = found[-1].parameters
    found.append(await ask(Extract(most=40), theta))
    x: Any = found[-1].result
    coded = np.clip(np.round(x.hidden * 10), -127, 127).astype(np.int8)
    scales = np.full(len(coded), 0.1, np.float32)
    features = {A: Samples(hidden=coded, scales=scales, z=x.logits.astype(np.float16), labels=x.labels)}
    found.append(await ask(Judge(features=features), theta))
    learn = Learn(features=features, only_answer={PeerId("b"): features[A]}, alpha=1.0, temperature=3.0)
    found.append(await ask(learn, theta))
    learned: Any = found[-1].result
    found.append(await ask(Mix(models={A: learned.model * 2}), theta))
    teacher = Teacher(ids=x.ids, log_p=learned.logits[A], alpha=1.0, temperature=3.0)
    found.append(await ask(Fit(teacher=teacher, is_frozen=True), theta))
    return found


async def _probe_jobs(learner: Any, theta: Any) -> list[Worked]:
    ask = _asker(learner)
    found = [await ask(Answer(), theta)]
    p = np.full((40, 10), 0.1)
    job = Distill(p=p, is_used=np.arange(40) < 30, alpha=1.0, temperature=3.0, epochs=2)
    return [*found, await ask(job, theta)]


async def _proto_jobs(learner: Any, theta: Any) -> list[Worked]:
    ask = _asker(learner)
    pull = Pull(centres=np.ones((10, 64), np.float32), is_known=np.arange(10) < 5, strength=1.0)
    return [await ask(Summarise(), theta), await ask(Fit(pull=pull), theta)]


async def _proxy_jobs(learner: Any, theta: Any) -> list[Worked]:
    return [await _asker(learner)(Fit(mutual=Mutual(alpha=0.5, beta=0.5, temperature=1.0)), theta)]


def _asker(learner: Any) -> Any:
    async def ask(job: Any, theta: Any) -> Worked:
        worked: Worked = await learner.work(work(job, theta, deadline=trio.current_time() + 1000))
        assert worked.fault == "", (job, worked.fault)
        return worked

    return ask


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "hub": (_hub_jobs, {"model": {"kind": "gkt"}, "capacity": 1.0, "hub_epochs": 1, "local_steps": 2}),
    "probe": (_probe_jobs, {}),
    "proto": (_proto_jobs, {}),
    "proxy": (_proxy_jobs, {"proxy": {"kind": "logistic"}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
async def test_a_job_gives_the_same_in_a_process_of_its_own(kind: str, tmp_path: Path) -> None:
    jobs, table = CASES[kind]
    spec = _spec(tmp_path, kind, table)
    answers = []
    for learner in (InlineLearner(), LearnerProcess()):
        ready = await learner.start(spec)
        try:
            answers.append((ready.expected, await jobs(learner, ready.parameters)))
        finally:
            await learner.aclose()
    (mine, here), (theirs, there) = answers
    assert mine == theirs
    assert mine is not None
    for one, other in zip(here, there, strict=True):
        assert msgspec.to_builtins(_plain(one)) == msgspec.to_builtins(_plain(other))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [value.dtype.str, value.shape, value.tobytes()]
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__name__, *(_plain(getattr(value, f.name)) for f in fields(value))]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in sorted(value.items())}
    return value


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with steered_site(tmp_path, monkeypatch) as site:
        yield site


@asynccontextmanager
async def _probing(site: Site) -> AsyncIterator[None]:
    """The site's learner in a probe run, of rows of the agreement."""
    code = """
User.answer = lambda self, parameters, x: np.tile(np.arange(3.0), (len(x), 1)) + parameters[0]
User.distill = lambda self, parameters, x, targets, rng, **how: self.fit(parameters, rng)
"""
    site.do("build", code)
    spec = LearnerSpec(
        options=msgspec.json.encode({"module": "user_code:learner"}), seed=7, exchange="probe", **PROBE
    )
    await site.process.start(spec)
    yield


async def test_a_users_learner_answers_and_its_state_comes_back_after_its_death(site: Site) -> None:
    async with _probing(site):
        ask = _asker(site.process)
        start = np.zeros(4, np.float32)
        found: Any = await ask(Answer(), start)
        assert found.result.logits.shape == (40, 3)
        assert found.parameters is None
        fitted = await ask(Fit(), start)
        assert fitted.learner_state == b"after 1"
        np.testing.assert_array_equal(np.asarray(fitted.parameters), np.ones(4))
        site.do("fit", "os._exit(9)")
        p = np.full((40, 3), 1 / 3)
        distill = Distill(p=p, is_used=np.ones(40, bool), alpha=1.0, temperature=1.0, epochs=1)
        died = await site.process.work(work(distill, start, deadline=trio.current_time() + 1000))
        assert died.result is None
        assert "status 9" in died.fault
        site.do("fit", None)
        assert (await ask(distill, start)).learner_state == b"after 1+"


async def test_a_message_that_is_too_large_is_a_fault_and_the_learner_lives(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _probing(site):
        pid = site.process.pid
        monkeypatch.setattr(learner_messages, "MAX_MESSAGE_BYTES", 500)
        p = np.full((40, 3), 1 / 3)
        job = Distill(p=p, is_used=np.ones(40, bool), alpha=1.0, temperature=1.0, epochs=1)
        worked = await site.process.work(
            work(job, np.zeros(4, np.float32), deadline=trio.current_time() + 1000)
        )
        assert worked.result is None
        assert "most_samples" in worked.fault
        monkeypatch.undo()
        await _asker(site.process)(Answer(), np.zeros(4, np.float32))
        assert site.process.pid == pid


async def test_no_job_begins_after_its_deadline(site: Site) -> None:
    async with _probing(site):
        late = await site.process.work(work(Answer(), np.zeros(4, np.float32), deadline=trio.current_time()))
        assert late.result is None
        assert "deadline" in late.fault


async def test_a_learner_that_is_closed_answers_with_a_fault(tmp_path: Path) -> None:
    for learner in (InlineLearner(), LearnerProcess()):
        worked = await learner.work(work(Answer(), np.zeros(4, np.float32)))
        assert (worked.result, worked.round, worked.number) == (None, 4, 1)
        assert "not been started" in worked.fault


async def test_a_probe_set_of_other_content_ends_the_start(tmp_path: Path) -> None:
    spec = _spec(tmp_path, "probe", {})
    wrong = msgspec.structs.replace(spec, probe_digest="00" * 32)
    with pytest.raises(LearnerError, match="p2pfl run probe"):
        await InlineLearner().start(wrong)
    gone = msgspec.structs.replace(spec, probe_source="npz:/nowhere.npz")
    with pytest.raises(LearnerError, match=r"probe set: .*does not exist"):
        await InlineLearner().start(gone)


async def test_a_site_without_the_agreements_role_does_not_start(tmp_path: Path) -> None:
    table = {"roles": {"hub": {"capacity": 1.0}, "edge": {}}, "model": {"kind": "gkt"}}
    for role, said in (("", "edge, hub"), ("hbu", "no role 'hbu'")):
        with pytest.raises(LearnerError, match=said):
            await InlineLearner().start(_spec(tmp_path, "hub", table, role=role))
    ready = await InlineLearner().start(_spec(tmp_path, "hub", table, role="hub"))
    assert ready.expected is not None
    assert ready.expected.capacity == 1.0


async def test_the_stop_at_the_deadline_reaches_a_job_in_a_thread(tmp_path: Path) -> None:
    learner = InlineLearner(runner=partial(trio.to_thread.run_sync))
    ready = await learner.start(_spec(tmp_path, "probe", {"local_steps": 50_000}))
    job = replace(work(Fit(), ready.parameters), deadline=trio.current_time() + 0.05)
    worked = await learner.work(job)
    assert worked.fault == ""
    assert worked.parameters is not None
    evaluated = await learner.evaluate(Evaluate(round=0, parameters=worked.parameters))
    assert evaluated.metrics["accuracy"] > 0
