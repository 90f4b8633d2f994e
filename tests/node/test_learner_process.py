"""The learner's own process: jobs go in, answers and output come out, and nothing else is shared."""

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import trio
from learner_sites import Site, evaluate, steered_site, train

from p2pfl.events import Validate
from p2pfl.learn.learner import DpSgd
from p2pfl.node.learner_messages import LearnerSpec
from p2pfl.node.learner_process import LearnerProcess
from p2pfl.release import Release


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with steered_site(tmp_path, monkeypatch) as site:
        yield site


async def test_jobs_go_in_and_events_come_out(site: Site) -> None:
    ready = await site.start()
    assert ready.samples == 12
    assert len(ready.schema_hash) == 32
    np.testing.assert_array_equal(ready.parameters, np.zeros(4, np.float32))
    np.testing.assert_array_equal(ready.statistics, [1.0, 2.0])
    trained = await site.process.train(train(3))
    assert (trained.round, trained.fault) == (3, "")
    assert trained.parameters is not None
    assert trained.parameters.dtype == np.float32
    np.testing.assert_array_equal(trained.parameters, np.full(4, 4.0))
    assert trained.metrics == {"loss": 0.5, "fits": 1.0}
    assert trained.learner_state == b"after 1"
    evaluated = await site.process.evaluate(evaluate(3))
    assert (evaluated.round, dict(evaluated.metrics)) == (3, {"loss": 4.0, "mean": 0.0})
    assert site.process.fault == ""


def validate(*values: float, seconds: float = 60.0) -> Validate:
    models = tuple(np.full(4, value, np.float32) for value in values)
    deadline = trio.current_time() + seconds
    return Validate(round=5, models=models, seed=(7, 2**70), deadline=deadline)


async def test_models_are_validated_one_after_the_other_on_the_same_rows(site: Site) -> None:
    await site.start()
    validated = await site.process.validate(validate(1, 2, 1))
    assert site.process.fault == ""
    draw = np.random.default_rng((7, 2**70)).random()
    assert validated.round == 5
    np.testing.assert_allclose(validated.losses, [4 + draw, 8 + draw, 4 + draw])


async def test_a_model_that_kills_the_learner_ends_the_validation_and_not_the_daemon(site: Site) -> None:
    await site.start()
    site.do("validate", "if parameters[0] == 2: os._exit(3)")
    losses = (await site.process.validate(validate(1, 2, 3))).losses
    assert np.isfinite(losses[0])
    assert np.isnan(losses[1:]).all()
    assert "status 3" in site.process.fault
    site.do("validate", None)
    assert np.isfinite((await site.process.validate(validate(1, 2))).losses).all()


async def test_after_the_deadline_nothing_is_validated(site: Site) -> None:
    await site.start()
    assert np.isnan((await site.process.validate(validate(1, seconds=0.0))).losses).all()


async def test_every_random_choice_comes_from_the_jobs_seed(site: Site) -> None:
    await site.start()
    site.do("fit", "result = rng.standard_normal(4).astype(np.float32)")
    trained = await site.process.train(train(3))
    expected = np.random.default_rng((7, 2**70, 3)).standard_normal(4).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(trained.parameters), expected)


async def test_an_answer_is_not_changed_by_the_next_job(site: Site) -> None:
    await site.start()
    first = await site.process.train(train(1))
    await site.process.train(train(50))
    np.testing.assert_array_equal(np.asarray(first.parameters), np.full(4, 2.0))


async def test_the_federations_sums_standardise_once(site: Site) -> None:
    await site.start()
    sums = np.array([5.0])
    for number in (1, 2):
        await site.process.train(train(number, statistics=sums))
    assert (await site.process.evaluate(evaluate())).metrics["mean"] == 5.0


async def test_the_learner_sees_how_far_the_run_is(site: Site) -> None:
    await site.start()
    site.do("fit", "result = np.full(4, self.site.progress(), np.float32)")
    trained = await site.process.train(train())
    np.testing.assert_array_equal(np.asarray(trained.parameters), np.full(4, 0.25))


async def test_a_huge_print_neither_stalls_nor_fills_the_daemon(site: Site) -> None:
    await site.start()
    site.do(
        "fit",
        "sys.stdout.write('y' * 30_000_000)\nprint()\n"
        "for n in range(20_000): print('line', n, file=sys.stderr)\nos.write(1, b'\\xff\\xfe raw\\n')",
    )
    trained = await site.process.train(train())
    assert trained.fault == ""
    assert len(site.process.output) == 200
    assert max(map(len, site.lines)) <= 2_000
    assert site.process.output[-2:] == ("line 19999", "\ufffd\ufffd raw")


async def test_the_child_has_none_of_the_daemons_descriptors(site: Site) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.set_inheritable(True)
        await site.start()
        site.do(
            "fit",
            "for link in HERE.__class__('/proc/self/fd').iterdir():\n"
            "    if link.exists() or link.is_symlink(): print(link.name, os.readlink(link))",
        )
        await site.process.train(train())
    assert any("p2pfl-learner" in line for line in site.lines)
    assert not any("socket" in line for line in site.lines)
    kinds = [line.split(" ", 1)[1] for line in site.lines]
    # Standard output and error, and one pipe each way.
    assert sum(kind.startswith("pipe:") for kind in kinds) == 4


async def test_linear_algebra_has_one_thread_unless_the_site_says_otherwise(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    site.do("fit", "print(os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS'])")
    await site.start()
    await site.process.train(train())
    assert site.lines == ["1 3"]


async def test_what_a_fit_releases_comes_with_the_learner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "noisy_code.py").write_text(
        "import numpy as np\n"
        "from p2pfl import Release\n"
        "class Noisy:\n"
        "    def __init__(self, site): self.sigma = site.dp_sgd.noise_multiplier\n"
        "    def parameters(self): return np.zeros(2, np.float32)\n"
        "    def fit(self, parameters, rng): raise AssertionError('not asked for a fit')\n"
        "    def evaluate(self, parameters): return {}\n"
        "    def release(self): return Release(sigma=self.sigma, q=0.5, steps=2)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    learner = LearnerProcess()
    options = msgspec.json.encode({"module": "noisy_code:Noisy"})
    asked = DpSgd(clip=1.0, noise_multiplier=1.3)
    try:
        ready = await learner.start(LearnerSpec(options=options, data="ward.npz", dp_sgd=asked))
    finally:
        await learner.aclose()
    assert ready.release == Release(sigma=1.3, q=0.5, steps=2)
    assert ready.data_set == "source ward.npz"
