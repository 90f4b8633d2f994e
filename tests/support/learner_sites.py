"""A learner's own process whose user code does what files beside it say."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import trio
from trio.testing import MockClock

from p2pfl.events import Evaluate, Train
from p2pfl.node.learner_messages import LearnerSpec
from p2pfl.node.learner_process import LearnerProcess

__all__ = ["Site", "steered_site", "spec", "train", "evaluate", "pass_the_deadline"]

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

    def validate(self, parameters, rng):
        if (HERE / "validate").exists(): exec((HERE / "validate").read_text())
        return float(parameters.sum()) + rng.random()

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


@asynccontextmanager
async def steered_site(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """A site in `folder`, not started; its process ends with the block."""
    (folder / "user_code.py").write_text(_USER_CODE)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    site = Site(folder)
    try:
        yield site
    finally:
        await site.process.aclose()


def spec(module: str = "user_code:learner") -> LearnerSpec:
    return LearnerSpec(options=msgspec.json.encode({"module": module}), name="ward", seed=7)


def train(number: int = 1, **fields: Any) -> Train:
    """A job whose deadline is 1000 seconds away."""
    values: dict[str, Any] = {"parameters": np.full(4, number, np.float32), "seed": (7, 2**70, number)}
    return Train(round=number, progress=0.25, deadline=trio.current_time() + 1000, **(values | fields))


def evaluate(number: int = 1) -> Evaluate:
    return Evaluate(round=number, parameters=np.ones(4, np.float32))


async def pass_the_deadline(site: Site, clock: MockClock, seconds: float) -> None:
    """Once the learner has printed "here", let `seconds` pass."""
    await site.heard.wait()
    clock.jump(seconds)
