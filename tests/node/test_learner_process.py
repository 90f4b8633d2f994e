"""The learner's own process: whatever user code does, the daemon gets an answer.

A clock that is turned by hand makes a deadline pass exactly when a test says so, and no test waits for one.
"""

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import trio
from trio.testing import MockClock

from p2pfl.errors import LearnerError
from p2pfl.events import Evaluate, Train
from p2pfl.node.learner_child import LearnerSpec
from p2pfl.node.learner_process import GRACE_S, LearnerProcess

# A learner whose next fit does what a file beside it says: the daemon's messages stay as they are.
_USER_CODE = """
import ctypes, json, os, signal, subprocess, sys, threading, time
from pathlib import Path
import numpy as np
import p2pfl.learn.learner as learning

HERE = Path(__file__).parent

class User:
    def __init__(self, site):
        self.site = site
        self.x = np.zeros(4, np.float32)
        self.fits = 0
        self.mean = 0.0
        self.head = b"fresh"

    def parameters(self): return self.x
    def samples(self): return 12
    def statistics(self): return np.array([1.0, 2.0])
    def standardise(self, sums): self.mean += float(sums[0])
    def state(self): return self.head
    def restore(self, state): self.head = bytes(state)

    def evaluate(self, parameters):
        if (HERE / "evaluate").exists(): exec((HERE / "evaluate").read_text())
        return {"loss": float(parameters.sum()), "nan": float("nan"), "mean": self.mean}

    def fit(self, parameters, rng):
        self.fits += 1
        result = parameters + 1
        update = lambda p: learning.Update(parameters=p, samples=3, metrics={"loss": 0.5, "fits": self.fits})
        scope = {"self": self, "parameters": parameters, "rng": rng, "update": update, "result": result}
        scope |= {"os": os, "sys": sys, "np": np, "signal": signal, "HERE": HERE}
        if (HERE / "fit").exists():
            exec(compile((HERE / "fit").read_text(), str(HERE / "mine.py"), "exec"), scope)
        self.head = b"after %d" % self.fits if self.head == b"fresh" else self.head + b"+"
        return scope.get("out", update(scope["result"]))

def learner(site):
    if (HERE / "build").exists(): exec((HERE / "build").read_text())
    return User(site)
"""


class Site:
    """A learner process and the folder whose files steer its user code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.heard = trio.Event()
        self.process = LearnerProcess(said=self._hear)

    def _hear(self, line: str) -> None:
        self.lines.append(line)
        if "here" in line:
            self.heard.set()

    def do(self, what: str, code: str | None) -> None:
        """From now on `fit`, `evaluate` or `build` runs `code`; None is the usual."""
        if code is None:
            (self.folder / what).unlink(missing_ok=True)
        else:
            (self.folder / what).write_text(code)

    async def start(self) -> Any:
        return await self.process.start(spec())


def spec(module: str = "user_code:learner") -> LearnerSpec:
    return LearnerSpec(options=msgspec.json.encode({"module": module}), name="ward", seed=7)


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    (tmp_path / "user_code.py").write_text(_USER_CODE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    site = Site(tmp_path)
    yield site
    await site.process.aclose()


def train(number: int = 1, **fields: Any) -> Train:
    """A job whose deadline is 1000 seconds away."""
    values: dict[str, Any] = {"parameters": np.full(4, number, np.float32), "seed": (7, 2**70, number)}
    return Train(round=number, progress=0.25, deadline=trio.current_time() + 1000, **(values | fields))


def evaluate(number: int = 1) -> Evaluate:
    return Evaluate(round=number, parameters=np.ones(4, np.float32))


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


async def test_a_fit_that_watches_should_stop_gives_its_partial_work(
    site: Site, mock_clock: MockClock
) -> None:
    await site.start()
    site.do("fit", "print('here')\nwhile not self.site.should_stop(): pass\nresult = parameters + 7")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pass_the_deadline, site, mock_clock, 1000.0)
        trained = await site.process.train(train(1))
    assert trained.fault == ""
    np.testing.assert_array_equal(np.asarray(trained.parameters), np.full(4, 8.0))
    site.do("fit", "result = np.full(4, self.site.should_stop(), np.float32)")
    trained = await site.process.train(train(2))
    np.testing.assert_array_equal(np.asarray(trained.parameters), np.zeros(4))


async def _pass_the_deadline(site: Site, clock: MockClock, seconds: float) -> None:
    await site.heard.wait()
    clock.jump(seconds)


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
        nursery.start_soon(_pass_the_deadline, site, mock_clock, 1000.0 + GRACE_S)
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
        nursery.start_soon(_pass_the_deadline, site, mock_clock, 2000.0)
        await site.process.train(train(1))
    assert _is_dead(int((site.folder / "pid").read_text()))


def _is_dead(pid: int) -> bool:
    """Whether `pid` has ended; it may not have been waited for yet by whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


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


async def test_a_pipe_that_user_code_writes_nonsense_to_is_a_fault(site: Site) -> None:
    await site.start()
    site.do("fit", "os.write(int(sys.argv[2]), b'\\x03\\0\\0\\0abc')\nimport time\ntime.sleep(100)")
    assert "broke its protocol" in (await site.process.train(train())).fault
    site.do("fit", "os.write(int(sys.argv[2]), b'\\xff\\xff\\xff\\xff')\nimport time\ntime.sleep(100)")
    assert "broke its protocol" in (await site.process.train(train())).fault


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


async def test_a_build_that_never_ends_is_a_fault_at_the_deadline(site: Site, mock_clock: MockClock) -> None:
    site.do("build", "print('here', flush=True)\nwhile True: pass")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pass_the_deadline, site, mock_clock, 10_000.0)
        with pytest.raises(LearnerError, match=r"did not start.*did not stop by the deadline"):
            await site.start()


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


async def test_a_job_of_another_size_is_a_fault(site: Site) -> None:
    assert "not been started" in (await site.process.train(train())).fault
    await site.start()
    trained = await site.process.train(train(parameters=np.zeros(9, np.float32)))
    assert "expected (4,) float32" in trained.fault


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


def _open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


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
from p2pfl.node.learner_child import LearnerSpec

async def main():
    learner = LearnerProcess(said=lambda line: print(line, flush=True))
    await learner.start(LearnerSpec(options=b'{"module": "user_code:learner"}'))
    print("torch" in sys.modules, "sklearn" in sys.modules, learner.pid, flush=True)
    await learner.train(Train(round=1, parameters=np.zeros(4, np.float32), seed=(1,), progress=0.0,
                              deadline=float("inf")))

trio.run(main)
"""


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
