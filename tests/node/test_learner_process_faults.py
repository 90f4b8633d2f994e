"""Whatever user code does wrong, the daemon gets an answer with the reason, and the next job works."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import trio
from learner_sites import Site, evaluate, spec, steered_site, train
from trio.testing import MockClock

from p2pfl.errors import LearnerError


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with steered_site(tmp_path, monkeypatch) as site:
        yield site


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (
            "raise ValueError('the rows\\n are gone')",
            r"ValueError: the rows are gone \(mine.py:1 in <module>\)",
        ),
        ("1 / 0", "ZeroDivisionError"),
        ("exit(3)", r"SystemExit: the user's code called exit\(3\)"),
        ("raise MemoryError", "MemoryError"),
        ("out = update(np.zeros(3, np.float32))", "3 parameters, it was built with 4"),
        ("out = update(np.zeros((2, 2), np.float32))", r"array \(2, 2\) float32"),
        ("out = update(np.zeros(4))", r"array \(4,\) float64"),
        ("out = update([0.0] * 4)", "gave a list"),
        ("out = None", "gave a NoneType"),
        ("out = update(np.array([0, 1, np.nan, np.inf], np.float32))", "2 of 4 parameters are not finite"),
        ("self.state = lambda: 5", r"state\(\) gave int"),
    ],
)
async def test_wrong_user_code_is_a_fault_and_the_process_goes_on(site: Site, code: str, fault: str) -> None:
    await site.start()
    pid = site.process.pid
    site.do("fit", code)
    trained = await site.process.train(train())
    assert trained.parameters is None
    with pytest.raises(AssertionError, match=fault):
        raise AssertionError(trained.fault)
    assert "\n" not in trained.fault
    assert site.process.fault == trained.fault
    assert site.process.pid == pid
    if "self.state" not in code:
        site.do("fit", None)
        assert (await site.process.train(train())).fault == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", r"killed by signal 9; was it out of memory\?"),
        ("os.abort()", r"killed by signal 6; last output: .*Fatal Python error: Aborted.*mine.py"),
        ("import ctypes; ctypes.string_at(0)", "killed by signal 11; .*Segmentation fault"),
        ("print('going', flush=True); os._exit(4)", "ended with status 4; last output: going"),
        ("os._exit(0)", "ended with status 0"),
    ],
)
async def test_a_dead_process_is_a_fault_and_the_next_job_gets_another(
    site: Site, code: str, fault: str
) -> None:
    await site.start()
    assert (await site.process.train(train(1))).learner_state == b"after 1"
    pid = site.process.pid
    site.do("fit", code)
    trained = await site.process.train(train(2))
    with pytest.raises(AssertionError, match=fault):
        raise AssertionError(trained.fault)
    assert trained.parameters is None
    site.do("fit", None)
    again = await site.process.train(train(3))
    assert site.process.pid != pid
    assert again.metrics["fits"] == 1.0
    # The new process went on from the state that the old one had after its last good fit.
    assert again.learner_state == b"after 1+"


async def test_a_pipe_that_user_code_writes_nonsense_to_is_a_fault(site: Site) -> None:
    await site.start()
    site.do("fit", "os.write(int(sys.argv[2]), b'\\x03\\0\\0\\0abc')\nimport time\ntime.sleep(100)")
    assert "broke its protocol" in (await site.process.train(train())).fault
    site.do("fit", "os.write(int(sys.argv[2]), b'\\xff\\xff\\xff\\xff')\nimport time\ntime.sleep(100)")
    assert "broke its protocol" in (await site.process.train(train())).fault


@pytest.mark.slow
async def test_a_learner_that_cannot_be_built_says_why(site: Site) -> None:
    with pytest.raises(LearnerError, match=r"did not start.*no module 'absent'"):
        await site.process.start(spec("absent:learner"))
    site.do("build", "raise OSError('no such ward')")
    with pytest.raises(LearnerError, match="no such ward"):
        await site.start()
    site.do("build", "os._exit(5)")
    with pytest.raises(LearnerError, match="ended with status 5"):
        await site.start()
    site.do("build", "exit()")
    with pytest.raises(LearnerError, match="exit"):
        await site.start()
    site.do("build", None)
    assert (await site.start()).samples == 12


@pytest.mark.slow
async def test_a_learner_that_cannot_come_back_is_a_fault_in_every_round(
    site: Site, mock_clock: MockClock
) -> None:
    await site.start()
    site.do("fit", "os._exit(1)")
    await site.process.train(train(1))
    site.do("fit", None)
    site.do("build", "raise OSError('the share is not mounted')")
    for number in (2, 3, 4):
        trained = await site.process.train(train(number))
        assert "the share is not mounted" in trained.fault
    assert "(3 starts failed)" in trained.fault
    # From now on it is tried once a minute, and the reason is given at once in between.
    site.do("build", None)
    assert "the share is not mounted" in (await site.process.train(train(5))).fault
    assert (await site.process.evaluate(evaluate(5))).metrics == {}
    mock_clock.jump(61.0)
    assert (await site.process.train(train(6))).fault == ""


async def test_a_learner_that_comes_back_as_another_model_is_a_fault(site: Site) -> None:
    await site.start()
    site.do("fit", "os._exit(1)")
    await site.process.train(train(1))
    site.do("build", "User.parameters = lambda self: np.zeros(5, np.float32)")
    assert "another model" in (await site.process.train(train(2))).fault


async def test_an_evaluation_that_fails_has_no_metrics_and_a_reason(site: Site) -> None:
    await site.start()
    site.do("evaluate", "raise KeyError('auc')")
    assert (await site.process.evaluate(evaluate())).metrics == {}
    assert site.process.fault.startswith("KeyError: 'auc'")
    site.do("evaluate", "os.abort()")
    assert (await site.process.evaluate(evaluate())).metrics == {}
    assert "signal 6" in site.process.fault
    site.do("evaluate", None)
    assert (await site.process.evaluate(evaluate())).metrics["loss"] == 4.0


async def test_a_process_that_died_between_jobs_is_replaced(site: Site) -> None:
    await site.start()
    pid = site.process.pid
    assert pid is not None
    exit_of_learner = os.pidfd_open(pid)
    os.kill(pid, 9)
    await trio.lowlevel.wait_readable(exit_of_learner)
    os.close(exit_of_learner)
    assert (await site.process.train(train())).fault == ""
    assert site.process.pid != pid


async def test_a_job_of_another_size_is_a_fault(site: Site) -> None:
    assert "not been started" in (await site.process.train(train())).fault
    await site.start()
    trained = await site.process.train(train(parameters=np.zeros(9, np.float32)))
    assert "expected (4,) float32" in trained.fault
