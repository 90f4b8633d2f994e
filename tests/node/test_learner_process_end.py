"""How a learner's process ends: at a deadline, with its job, with its daemon, and leaving nothing behind.

A clock that is turned by hand makes a deadline pass exactly when a test says so, and no test waits for one.
"""

import os
import select
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import trio
from learner_sites import Site, pass_the_deadline, steered_site, train
from trio.testing import MockClock

from p2pfl.errors import LearnerError
from p2pfl.node.learner_process import GRACE_S


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with steered_site(tmp_path, monkeypatch) as site:
        yield site


async def test_a_fit_that_watches_should_stop_gives_its_partial_work(
    site: Site, mock_clock: MockClock
) -> None:
    await site.start()
    site.do("fit", "print('here')\nwhile not self.site.should_stop(): pass\nresult = parameters + 7")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pass_the_deadline, site, mock_clock, 1000.0)
        trained = await site.process.train(train(1))
    assert trained.fault == ""
    np.testing.assert_array_equal(np.asarray(trained.parameters), np.full(4, 8.0))
    site.do("fit", "result = np.full(4, self.site.should_stop(), np.float32)")
    trained = await site.process.train(train(2))
    np.testing.assert_array_equal(np.asarray(trained.parameters), np.zeros(4))


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "print('here')\nwhile True: pass",
        "print('here')\nimport ctypes\nctypes.PyDLL(None).sleep(1000)  # holds the interpreter lock",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: print('here' * 1000)",
    ],
)
async def test_a_fit_that_does_not_stop_is_killed_after_the_grace(
    site: Site, mock_clock: MockClock, code: str
) -> None:
    await site.start()
    pid = site.process.pid
    assert pid is not None
    site.do("fit", code)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pass_the_deadline, site, mock_clock, 1000.0 + GRACE_S)
        trained = await site.process.train(train(1))
    assert trained.fault.startswith("the learner did not stop by the deadline")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    site.do("fit", None)
    assert (await site.process.train(train(2))).fault == ""


async def test_what_the_learner_started_dies_with_it(site: Site, mock_clock: MockClock) -> None:
    await site.start()
    site.do(
        "fit",
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        "(HERE / 'pid').write_text(str(child.pid))\nprint('here')\nwhile True: pass",
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pass_the_deadline, site, mock_clock, 2000.0)
        await site.process.train(train(1))
    assert _is_dead(int((site.folder / "pid").read_text()))


def _is_dead(pid: int) -> bool:
    """Whether `pid` ends within five seconds: a kill is carried out when its victim next runs."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], 5.0)[0])
    finally:
        os.close(process)


async def test_a_build_that_never_ends_is_a_fault_at_the_deadline(site: Site, mock_clock: MockClock) -> None:
    site.do("build", "print('here', flush=True)\nwhile True: pass")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pass_the_deadline, site, mock_clock, 10_000.0)
        with pytest.raises(LearnerError, match=r"did not start.*did not stop by the deadline"):
            await site.start()


async def test_a_cancelled_job_kills_the_process_and_the_next_one_works(site: Site) -> None:
    await site.start()
    pid = site.process.pid
    assert pid is not None
    site.do("fit", "print('here')\nwhile True: pass")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.process.train, train(1))
        await site.heard.wait()
        nursery.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    site.do("fit", None)
    assert (await site.process.train(train(2))).fault == ""


async def test_closing_ends_the_job_under_way_and_answers_later_ones(site: Site) -> None:
    await site.start()
    site.do("fit", "print('here')\nwhile True: pass")
    faults = []

    async def fit() -> None:
        faults.append((await site.process.train(train(1))).fault)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fit)
        await site.heard.wait()
        await site.process.aclose()
    assert faults[0].startswith("the learner was closed")
    assert site.process.pid is None
    assert "closed" in (await site.process.train(train(2))).fault
    await site.process.aclose()


async def test_a_job_that_comes_too_late_is_a_fault_and_costs_no_process(
    site: Site, mock_clock: MockClock
) -> None:
    await site.start()
    job, pid = train(), site.process.pid
    mock_clock.jump(2000)
    assert "passed before the fit could begin" in (await site.process.train(job)).fault
    assert (await site.process.train(train())).fault == ""
    assert site.process.pid == pid


def _open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.slow
async def test_nothing_is_left_open_when_it_ends(site: Site) -> None:
    await site.start()
    await site.process.aclose()
    before = _open_descriptors()
    await site.start()
    site.do("fit", "os.abort()")
    await site.process.train(train(1))
    site.do("fit", None)
    await site.process.train(train(2))
    await site.process.aclose()
    assert _open_descriptors() == before


_DAEMON = """
import sys, trio, numpy as np
from p2pfl.events import Train
from p2pfl.node.learner_process import LearnerProcess
from p2pfl.node.learner_messages import LearnerSpec

async def main():
    learner = LearnerProcess(said=lambda line: print(line, flush=True))
    await learner.start(LearnerSpec(options=b'{"module": "user_code:learner"}'))
    print("torch" in sys.modules, "sklearn" in sys.modules, learner.pid, flush=True)
    await learner.train(Train(round=1, parameters=np.zeros(4, np.float32), seed=(1,), progress=0.0,
                              deadline=float("inf")))

trio.run(main)
"""


@pytest.mark.slow
async def test_a_learner_dies_with_its_daemon_which_never_imports_torch(site: Site) -> None:
    site.do("build", "import torch")
    site.do("fit", "print('here')\nwhile True: pass")
    process = await trio.lowlevel.open_process([sys.executable, "-c", _DAEMON], stdout=subprocess.PIPE)
    assert process.stdout is not None
    text = ""
    while "here" not in text:
        text += (await process.stdout.receive_some()).decode()
    torch, sklearn, pid = text.split()[:3]
    assert (torch, sklearn) == ("False", "False")
    exit_of_learner = os.pidfd_open(int(pid))
    process.kill()
    await process.wait()
    await trio.lowlevel.wait_readable(exit_of_learner)
    os.close(exit_of_learner)
    await process.stdout.aclose()
