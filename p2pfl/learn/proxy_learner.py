"""A small model that travels and a private one that stays, teaching each other (ProxyFL).

The vector is the proxy's alone: its tensors' names begin with `proxy.`.  The private model may be anything
that answers and distils; it is learner state and is never sent.  Where both are TorchLearners each batch
teaches both; otherwise they take turns within the round, a few steps each, towards what the other then
believes of all own rows.

`n` rows, `K` classes.
Source: Kalra et al. 2023, arXiv:2111.11343 (ProxyFL), equations (3) and (4).
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.events import Metrics, Vector
from p2pfl.learn.batches import batches
from p2pfl.learn.distill import log_softmax
from p2pfl.learn.flat import Schema
from p2pfl.learn.learner import Learner, Update
from p2pfl.learn.torch_learner import TorchLearner

__all__ = ["ProxyLearner"]

# What knowledge/proxy.py looks for in the names of a proxy run's tensors.
_PREFIX = "proxy."
# Rows of a step where nobody says: p2pfl's own default.
_BATCH = 32
# Turns of a round where the two do not share batches: each sees four times what the other has become.
_TURNS = 4


class ProxyLearner:
    """A private model and its proxy, on the same rows.

    private, proxy: learners that answer; TorchLearners both, or learners that distil.  The rows are the
    private one's `own_rows`, else the proxy's, and both prepare them themselves.
    """

    def __init__(self, private: Learner, proxy: Learner, *, batch_size: int | None = None) -> None:
        """batch_size: rows that both see in one step; None is 32.

        Raises ConfigError when one of the two cannot teach or be taught.
        """
        for model, what in ((private, "private model"), (proxy, "proxy")):
            lost = [name for name in ("answer", "distill") if not hasattr(model, name)]
            if lost:
                raise ConfigError(f"the {what}, a {type(model).__name__}, has no {', '.join(lost)}")
        if not any(hasattr(model, "own_rows") for model in (private, proxy)):
            raise ConfigError(
                "neither the private model nor the proxy has own_rows(), to teach each other on"
            )
        if not isinstance(getattr(proxy, "schema", lambda: None)(), Schema):
            raise ConfigError(
                f"the proxy, a {type(proxy).__name__}, does not name its tensors; give it schema()"
            )
        self.local_steps: int | None = None
        self.should_stop: Callable[[], bool] = lambda: False
        self.progress: Callable[[], float] = lambda: 0.0
        self._private: Any = private
        self._proxy: Any = proxy
        for model in (self._private, self._proxy):
            if hasattr(model, "should_stop"):
                model.should_stop = lambda: self.should_stop()
            if hasattr(model, "progress"):
                model.progress = lambda: self.progress()
            if self.local_steps is None:
                self.local_steps = getattr(model, "local_steps", None)
        self._batch_size = batch_size
        self._theta: Vector = private.parameters()

    # --- what travels ----------------------------------------------------------------------------------

    def parameters(self) -> Vector:
        """The proxy's, (d,)."""
        vector: Vector = self._proxy.parameters()
        return vector

    def schema(self) -> Schema:
        """The proxy's tensors, each name behind `proxy.`."""
        schema: Schema = self._proxy.schema()
        return replace(schema, names=tuple(f"{_PREFIX}{name}" for name in schema.names))

    def schema_hash(self) -> bytes:
        """32 bytes of the proxy's model; private ones may differ."""
        own = getattr(self._proxy, "schema_hash", self._proxy.schema().hash)()
        return hashlib.sha256(b"p2pfl-proxy/1\n" + own).digest()

    # --- a learner of two models -----------------------------------------------------------------------

    def fit(self, parameters: Vector, rng: np.random.Generator) -> Update:
        """`fit_mutual` with equal parts of labels and of each other."""
        return self.fit_mutual(parameters, rng, alpha=0.5, beta=0.5, temperature=1.0)

    def fit_mutual(
        self,
        parameters: Vector,
        rng: np.random.Generator,
        *,
        alpha: float,
        beta: float,
        temperature: float,
    ) -> Update:
        """Train the proxy from `parameters`, (d,), and the private model from what it is.

        The proxy's loss is (1 - alpha) CE + alpha T^2 KL(private || proxy), the private model's so with beta.
        When either fails both are as before.
        """
        x, labels = self.own_rows()
        before = self.state()
        try:
            if isinstance(self._private, TorchLearner) and isinstance(self._proxy, TorchLearner):
                found, theta = self._together(parameters, rng, x, labels, alpha, beta, temperature)
            else:
                found, theta = self._in_turn(parameters, rng, x, labels, alpha, beta, temperature)
        except BaseException:
            self.restore(before)
            raise
        self._theta = theta
        return found

    def evaluate(self, parameters: Vector) -> Metrics:
        """The private model's metrics under their own names, the proxy's behind `proxy_`."""
        theirs = self._proxy.evaluate(parameters)
        return dict(self._private.evaluate(self._theta)) | {f"proxy_{n}": v for n, v in theirs.items()}

    def validate(self, parameters: Vector, rng: np.random.Generator) -> float:
        """The proxy's loss on training rows, NaN where it measures none."""
        return float(self._proxy.validate(parameters, rng)) if hasattr(self._proxy, "validate") else np.nan

    def answer(self, parameters: Vector, x: NDArray[Any]) -> NDArray[np.float32]:  # noqa: ARG002
        """Logits of the private model, (n, K), of raw rows (n, ...)."""
        logits: NDArray[np.float32] = self._private.answer(self._theta, x)
        return logits

    def predict(self, x: NDArray[Any]) -> NDArray[Any]:
        """The private model's own prediction for raw rows (n, ...)."""
        self._private.answer(self._theta, x[:1])
        predicted: NDArray[Any] = self._private.predict(x)
        return predicted

    def own_rows(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The training rows raw, and their classes."""
        shows = self._private if hasattr(self._private, "own_rows") else self._proxy
        x, labels = shows.own_rows()
        return np.asarray(x), np.asarray(labels, np.int64)

    def samples(self) -> int:
        """The number of training rows."""
        return len(self.own_rows()[1])

    def data_set(self) -> str:
        """What names the site's rows in its privacy account."""
        return str(self._private.data_set()) if hasattr(self._private, "data_set") else ""

    def statistics(self) -> NDArray[np.float64]:
        """Sums to pool across sites, of whichever model standardises with them."""
        for model in (self._private, self._proxy):
            if hasattr(model, "statistics") and len(sums := model.statistics()):
                return np.asarray(sums, np.float64)
        return np.zeros(0)

    def standardise(self, sums: NDArray[np.float64]) -> None:
        """Standardise the rows of both with pooled sums, where they asked for them."""
        for model in (self._private, self._proxy):
            if hasattr(model, "statistics") and len(model.statistics()):
                model.standardise(sums)

    def state(self) -> bytes:
        """What must survive a crash, as safetensors: the private model, and what each keeps to itself."""
        kept = {"private.parameters": np.array(self._theta)}
        for name, model in (("private", self._private), ("proxy", self._proxy)):
            if hasattr(model, "state"):
                kept[f"{name}.state"] = np.frombuffer(model.state(), np.uint8).copy()  # type: ignore[assignment]
        packed: bytes = save(kept)
        return packed

    def restore(self, state: bytes) -> None:
        """Takes back what `state` gave.  Raises LearnerError when it is of another model."""
        kept = load(state)
        theta = kept.get("private.parameters")
        if theta is None or theta.shape != self._theta.shape or theta.dtype != np.float32:
            raise LearnerError("the saved learner state holds another private model; it changed since then")
        for name, model in (("private", self._private), ("proxy", self._proxy)):
            if (saved := kept.get(f"{name}.state")) is not None and saved.size:
                model.restore(saved.tobytes())
        self._theta = theta

    # --- within ----------------------------------------------------------------------------------------

    def _together(
        self,
        parameters: Vector,
        rng: np.random.Generator,
        x: NDArray[Any],
        labels: NDArray[np.int64],
        alpha: float,
        beta: float,
        temperature: float,
    ) -> tuple[Update, Vector]:
        """Each batch teaches both, by what both believed of it before."""
        size = self._batch_size or _BATCH
        order = batches(len(x), size, self.local_steps, rng)
        samples, totals = 0, np.zeros(2)
        with (
            self._private.pupil(self._theta, rng, x, labels) as large,
            self._proxy.pupil(parameters, rng, x, labels) as small,
        ):
            for rows in map(torch.from_numpy, order):
                if self.should_stop():
                    break
                theirs, ours = large.look(rows), small.look(rows)
                losses = small.learn(theirs, alpha, temperature), large.learn(ours, beta, temperature)
                samples += len(rows)
                totals += np.array(losses) * len(rows)
        names = ("proxy_train_loss", "train_loss")
        metrics = dict(zip(names, (totals / samples).tolist(), strict=True)) if samples else {}
        return Update(parameters=small.vector, samples=samples, metrics=metrics), large.vector

    def _in_turn(
        self,
        parameters: Vector,
        rng: np.random.Generator,
        x: NDArray[Any],
        labels: NDArray[np.int64],
        alpha: float,
        beta: float,
        temperature: float,
    ) -> tuple[Update, Vector]:
        """Turns of a few epochs or parts of one, on CE + w / (1 - w) T^2 KL, which is the loss over 1 - w."""
        size = min(self._batch_size or _BATCH, len(x))
        steps = self.local_steps or -(-len(x) // size)
        turns = min(_TURNS, steps)
        small, large = parameters, self._theta
        samples, metrics = 0, {}
        for turn in range(turns):
            if self.should_stop():
                break
            rows = _rows_of_turn(len(x), size, steps * (turn + 1) // turns - steps * turn // turns, rng)
            how: dict[str, Any] = {"batch": size, "temperature": temperature}
            theirs = np.exp(log_softmax(self._private.answer(large, x[rows])))
            ours = np.exp(log_softmax(self._proxy.answer(small, x[rows])))
            told = self._proxy.distill(small, x[rows], theirs, rng, **_weighed(alpha, labels[rows]), **how)
            done = self._private.distill(large, x[rows], ours, rng, **_weighed(beta, labels[rows]), **how)
            small, large = told.parameters, done.parameters
            samples += told.samples
            metrics = {f"proxy_{name}": value for name, value in told.metrics.items()} | dict(done.metrics)
        return Update(parameters=small, samples=samples, metrics=metrics), large


def _rows_of_turn(n: int, size: int, steps: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return batches(n, size, steps, rng).reshape(-1)


def _weighed(weight: float, labels: NDArray[np.int64]) -> dict[str, Any]:
    """How `distill` is told of (1 - weight) CE + weight KL: without labels where the weight is all."""
    if weight >= 1:
        return {"alpha": 1.0, "labels": None}
    return {"alpha": weight / (1 - weight), "labels": labels}
