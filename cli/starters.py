"""The files that `p2pfl run new` writes: an agreement, and a learner that works before it is edited."""

from __future__ import annotations

import json

from p2pfl.errors import ConfigError

__all__ = ["INIT_NAME", "agreement_text", "learner_text"]

# The first model beside learner.py, when the run starts from one.
INIT_NAME = "init.safetensors"

_AGREEMENT = """\
# The agreement: the same words at every site, or the sites do not talk to each other.
# `p2pfl run check` tries it here; `p2pfl run hash` names it; `p2pfl run join` takes part.

[run]
name = {name}
rounds = 50
seed = {seed}
# Round 0 begins when this many members are there.
members_at_start = {members}
# Mixing without training at the end, so that all sites end on one model.
closing_rounds = 3
# A round goes on without those who are not heard by then.
deadline_s = 120.0
# The share of neighbours to be heard, over three rounds; below it the node pauses and says why.
quorum = 0.5

[learner]
# learner.py, beside this file; every site has its own copy and reads its own rows.
module = "learner:learner"
local_steps = 20
batch_size = 32

[gossip]
topology = {{ kind = "exponential" }}
averaging = {{ kind = "push-sum" }}

[trust]
# The keys that admit and revoke members, and how many of them it takes: more than half.
founders = {founders}
quorum = {quorum}
"""

_HEAD = '''\
"""The learner of run {name}: a model, and this site's rows.  Replace `load` and the model by your own."""

'''

_LOAD = '''\
def load(site):
    """x (n, 20) float32 and y (n,) int64 of this site.

    From an .npz file named as `data` in node.toml; without one, made-up rows that differ from site to site.
    """
    if site.data:
        with np.load(site.data) as rows:
            return rows["x"].astype(np.float32), rows["y"].astype(np.int64)
    rng = np.random.default_rng(list(site.name.encode()))
    x = rng.normal(size=(400, 20)).astype(np.float32)
    hidden = np.random.default_rng(0).normal(size=20)
    return x, (x @ hidden + 0.5 * rng.normal(size=400) > 0).astype(np.int64)
'''

_INIT = '''\


def first_model():
    """The tensors that the run starts from, the same file at every site."""
    path = Path(__file__).with_name("{file}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != "{digest}":
        raise ValueError(f"{{path}} is not the model this run starts from")
    return load_file(path)
'''

_TORCH = """\
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

import p2pfl


{load}


def learner(site: p2pfl.Site) -> p2pfl.Learner:
    x, y = load(site)
    rows = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    test, train = torch.utils.data.random_split(rows, [0.25, 0.75], torch.Generator().manual_seed(0))
    model = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
{start}    return p2pfl.TorchLearner(
        model=model,
        train=DataLoader(train, batch_size=32, shuffle=True),
        test=DataLoader(test, batch_size=256),
        loss=torch.nn.functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    )
"""

_SKLEARN = """\
import numpy as np
from sklearn.linear_model import SGDClassifier

import p2pfl


{load}


def learner(site: p2pfl.Site) -> p2pfl.Learner:
    x, y = load(site)
    n = len(x) // 4
    estimator = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.01)
    # `classes` are those of the agreement, also where a site lacks one.
    return p2pfl.SklearnLearner(estimator, x[n:], y[n:], x[:n], y[:n], classes=[0, 1])
"""

_NUMPY = '''\
import numpy as np

import p2pfl


{load}


class Logistic:
    """Logistic regression by gradient descent: the three methods that any learner has."""

    def __init__(self, x, y, steps):
        n = len(x) // 4
        self.train, self.test, self.steps = (x[n:], y[n:]), (x[:n], y[:n]), steps
        self.theta = np.zeros(x.shape[1] + 1, np.float32)

    def parameters(self):
        return self.theta.copy()

    def fit(self, parameters, rng):
        theta, (x, y) = parameters.astype(np.float64), self.train
        for _ in range(self.steps):
            rows = rng.integers(len(x), size=32)
            error = self.probability(theta, x[rows]) - y[rows]
            theta[:-1] -= 0.1 * error @ x[rows] / len(rows)
            theta[-1] -= 0.1 * error.mean()
        return p2pfl.Update(parameters=theta.astype(np.float32), samples=self.samples())

    def evaluate(self, parameters):
        x, y = self.test
        p = np.clip(self.probability(parameters, x), 1e-7, 1 - 1e-7)
        loss = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
        return {{"loss": float(loss), "accuracy": float(np.mean((p > 0.5) == y))}}

    def samples(self):
        return len(self.train[0])

    @staticmethod
    def probability(theta, x):
        return 1 / (1 + np.exp(-(x @ theta[:-1] + theta[-1])))


def learner(site: p2pfl.Site) -> p2pfl.Learner:
    x, y = load(site)
    model = Logistic(x, y, site.local_steps or 20)
{start}    return model
'''

_STARTERS = {"torch": _TORCH, "sklearn": _SKLEARN, "numpy": _NUMPY}
_START_FROM = {
    "torch": ("safetensors.torch", "    model.load_state_dict(first_model())\n"),
    "numpy": ("safetensors.numpy", '    model.theta = first_model()["theta"].astype(np.float32)\n'),
}


def agreement_text(*, name: str, seed: int, founders: tuple[str, ...], members: int) -> str:
    """A run.toml whose founders can admit by a majority of their number."""
    return _AGREEMENT.format(
        name=json.dumps(name),
        seed=seed,
        founders=json.dumps(list(founders)),
        quorum=len(founders) // 2 + 1,
        members=members,
    )


def learner_text(framework: str, name: str, init_digest: str | None) -> str:
    """A learner.py.  init_digest: the SHA-256 of INIT_NAME when the run starts from that file.

    Raises ConfigError when the framework's starter cannot start from a file.
    """
    load, start, head = _LOAD.strip(), "", _HEAD.format(name=name.replace('"', "'").replace("\\", "/"))
    if init_digest is not None:
        if framework not in _START_FROM:
            raise ConfigError(
                f"--init with --from {framework}: its linear models start at zero; use torch or numpy"
            )
        module, line = _START_FROM[framework]
        load += "\n" + _INIT.rstrip().format(file=INIT_NAME, digest=init_digest)
        head += f"import hashlib\nfrom pathlib import Path\n\nfrom {module} import load_file\n"
        start = line
    return head + _STARTERS[framework].format(load=load, start=start)
