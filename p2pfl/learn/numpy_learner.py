"""Built-in logistic regression and multilayer perceptron, in numpy alone.

Sites without torch can take part, and a small model trains faster here than through a framework's dispatch.
`d` is the number of shared parameters.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.events import Metrics, Vector
from p2pfl.learn import metrics
from p2pfl.learn.batches import batches
from p2pfl.learn.data import Dataset, rows_meaning
from p2pfl.learn.descent import Course, descend_by, diverged
from p2pfl.learn.distill import check_lesson, log_softmax, mixture, soften
from p2pfl.learn.flat import Schema, schema_of_specs
from p2pfl.learn.learner import VALIDATION_ROWS, Update
from p2pfl.learn.options import ModelOptions, OptimizerOptions, Standardise
from p2pfl.learn.perceptron import Perceptron, initial, layer_schema, logits, mean_loss, probabilities
from p2pfl.learn.schedule import rate_factor
from p2pfl.learn.standardise import Rows

__all__ = ["NumpyLearner"]

# Purpose number of the draw of first parameters: keeps it apart from every other draw of the run's seed.
_INITIAL = 1


class NumpyLearner:
    """Logistic regression or an MLP on a Dataset, trained by SGD with momentum.

    With two classes `logistic` has one logit and d = k + 1 for k features; otherwise d = C (k + 1).
    Two fits from the same parameters, state and rng give the same bits.  `evaluate` leaves the model at the
    parameters it was given, and `predict` uses the model as it stands.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        model: ModelOptions | None = None,
        optimizer: OptimizerOptions | None = None,
        local_steps: int | None = None,
        batch_size: int = 32,
        share: tuple[str, ...] = ("*",),
        standardise: Standardise = "none",
        seed: int = 0,
        per_class: bool = False,
    ) -> None:
        """local_steps: None is the site's, or one epoch.   seed: the run's, so that all sites start equal.

        per_class: measure the accuracy of each class, too.
        """
        model = model or ModelOptions()
        if model.kind in ("cnn", "gkt"):
            raise ConfigError(f'model kind "{model.kind}" needs torch; see p2pfl.learn.torch_models')
        self.local_steps = local_steps
        self.should_stop: Callable[[], bool] = lambda: False
        self.progress: Callable[[], float] = lambda: 0.0
        self._dataset, self._per_class = dataset, per_class
        self._optimizer = optimizer or OptimizerOptions()
        self.rows = Rows(dataset.x_train, dataset.x_test, standardise, dataset.features)
        hidden = model.hidden if model.kind == "mlp" else ()
        outputs = 1 if dataset.n_classes == 2 and not hidden else dataset.n_classes
        self._batch_size = max(1, min(batch_size, len(dataset.x_train)))
        self._net = Perceptron((dataset.x_train.shape[1], *hidden, outputs), self._batch_size)
        full = self._net.schema
        self._schema = schema_of_specs(zip(full.names, full.shapes, full.dtypes, strict=True), share)
        places = dict(zip(full.names, full.slices(), strict=True))
        self._shared = [(places[name], where) for name, where in self._named_slices()]
        self._private = {name: places[name] for name in full.names if name not in self._schema.names}
        self._theta: Vector = self._net.theta[0]
        self._theta[:] = initial(self._net.layers, np.random.default_rng([seed, _INITIAL]), model.init)
        self._momentum: NDArray[np.float32] = np.zeros((1, full.size), np.float32)

    def parameters(self) -> Vector:
        """The shared parameters now, a copy, (d,)."""
        vector = np.empty(self._schema.size, np.float32)
        for place, where in self._shared:
            vector[where] = self._theta[place]
        return vector

    def fit(self, parameters: Vector, rng: np.random.Generator) -> Update:
        """SGD steps from `parameters`, (d,); `samples` counts the rows seen, `train_loss` is their mean.

        Raises LearnerError when the statistics are still to come or training diverges; the layers that are
        not shared and the momentum are then as before, so the round can be tried again.
        """
        net, x, y = self._net, self.rows.x_train, self._dataset.y_train

        def backward(rows: NDArray[np.int64]) -> NDArray[np.float64]:
            return net.backward(x[rows], y[rows])

        return self._fit(parameters, rng, backward)

    def fit_near(
        self,
        parameters: Vector,
        rng: np.random.Generator,
        prototypes: NDArray[np.floating],
        known: NDArray[np.bool_],
        weight: float,
    ) -> Update:
        """`fit`, with the last hidden layer drawn to the prototypes (K, h); see learner.py."""
        net, x, y = self._net, self.rows.x_train, self._dataset.y_train
        h = self._hidden_width()
        if prototypes.shape != (self._dataset.n_classes, h) or known.shape != prototypes.shape[:1]:
            raise LearnerError(
                f"prototypes have shape {prototypes.shape}, known {known.shape}, expected"
                f" ({self._dataset.n_classes}, {h}); all sites need embeddings of one size"
            )

        def backward(rows: NDArray[np.int64]) -> NDArray[np.float64]:
            z, labels = net.forward(x[rows]), y[rows[0]]
            log_p = log_softmax(z[0])
            dz = np.exp(log_p)
            dz[np.arange(len(labels)), labels] -= 1
            gap = (net.hidden()[0] - prototypes[labels]) * known[labels, None]
            net.backward_from(x[rows], dz / len(labels), 2 * weight * gap / gap.size)
            own = log_p[np.arange(len(labels)), labels].mean()
            return np.array([weight * (gap**2).mean() - own])

        return self._fit(parameters, rng, backward)

    def answer(self, parameters: Vector, x: NDArray[Any]) -> NDArray[np.float32]:
        """Logits, (n, C), of raw rows (n, k); a single logit z is (0, z)."""
        self._adopt(parameters)
        return _two_sided(logits(self._theta, self._net.layers, self.rows.transform(x)))

    def features(self, parameters: Vector, x: NDArray[Any]) -> NDArray[np.float32]:
        """The last hidden layer, (n, h), of raw rows (n, k).  Raises LearnerError for a logistic model."""
        self._adopt(parameters)
        h, layers = self._hidden_width(), self._net.layers
        below = logits(self._theta[: layer_schema(layers[:-1]).size], layers[:-1], self.rows.transform(x))
        assert below.shape[1] == h
        return np.maximum(below, 0)

    def distill(
        self,
        parameters: Vector,
        x: NDArray[Any],
        targets: NDArray[np.floating],
        rng: np.random.Generator,
        *,
        epochs: int = 1,
        batch: int = 64,
        temperature: float = 3.0,
        alpha: float = 1.0,
        labels: NDArray[np.int64] | None = None,
    ) -> Update:
        """SGD on a teacher's beliefs of rows (n, k), see learner.py; momentum starts at zero."""
        check_lesson(len(x), targets, self._dataset.n_classes, temperature)
        self._adopt(parameters)
        inputs, q = self.rows.transform(x), soften(targets, temperature)
        size = min(batch, len(x))
        net = Perceptron(self._net.layers, size)
        net.theta[0] = self._theta

        def backward(rows: NDArray[np.int64]) -> NDArray[np.float64]:
            z = _two_sided(net.forward(inputs[rows])[0])
            known = None if labels is None else labels[rows[0]]
            loss, dz = mixture(z, q[rows[0]], known, temperature=temperature, alpha=alpha)
            net.backward_from(inputs[rows], dz[None, :, -net.layers[-1] :])
            return np.array([loss])

        order = batches(len(x), size, -(-epochs * len(x) // max(size, 1)), rng)
        v = np.zeros_like(net.theta)
        losses = descend_by(backward, net, v, self._optimizer, self._rate(), order[:, None], self.should_stop)
        if not np.isfinite(net.theta).all():
            raise diverged(self._optimizer)
        self._theta[:] = net.theta[0]
        done = {"distill_loss": float(np.mean(losses))} if losses else {}
        return Update(parameters=self.parameters(), samples=len(losses) * size, metrics=done)

    def evaluate(self, parameters: Vector) -> Metrics:
        """`loss` (nats), `accuracy` and, with two classes, `auc` on the test rows.

        `auc` is left out where the test rows hold one class only.
        """
        self.rows.check_ready()
        self._adopt(parameters)
        z, y = logits(self._theta, self._net.layers, self.rows.x_test), self._dataset.y_test
        p = probabilities(z)
        measured = {"loss": mean_loss(z, y), "accuracy": metrics.accuracy(y, p.argmax(axis=1))}
        if self._per_class:
            d = self._dataset
            measured |= metrics.by_class(y, p.argmax(axis=1), d.y_train, d.n_classes)
        if self._dataset.n_classes == 2:
            # The difference of logits orders rows as p does, without its ties near 0 and 1.
            area = metrics.auc(y, z[:, -1] - z[:, 0] if z.shape[1] == 2 else z[:, 0])
            if not np.isnan(area):
                measured["auc"] = area
        return measured

    def validate(self, parameters: Vector, rng: np.random.Generator) -> float:
        """The mean loss (nats) on at most VALIDATION_ROWS training rows, infinite when it is not finite."""
        self.rows.check_ready()
        self._adopt(parameters)
        rows = rng.permutation(len(self.rows.x_train))[:VALIDATION_ROWS]
        loss = mean_loss(
            logits(self._theta, self._net.layers, self.rows.x_train[rows]), self._dataset.y_train[rows]
        )
        return loss if np.isfinite(loss) else np.inf

    def predict(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Class probabilities, (n, C), of raw rows (n, k), standardised here as the training rows were."""
        return probabilities(logits(self._theta, self._net.layers, self.rows.transform(x)))

    def samples(self) -> int:
        """The number of training rows."""
        return len(self._dataset.x_train)

    def classes(self) -> int:
        """The number of classes."""
        return self._dataset.n_classes

    def own_rows(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The training rows raw, (n, k), and their classes, (n,)."""
        return self.rows.raw_train, self._dataset.y_train

    def data_set(self) -> str:
        """What names the site's rows in its privacy account."""
        return self.rows.digest()

    def course(self) -> Course | None:
        """What it must have in common with others to be fitted together with them (stacked.py).

        None when it cannot be: some layers are not shared, or the number of steps is its own.
        """
        if self._private or self.local_steps is None:
            return None
        return Course(
            layers=self._net.layers,
            batch_size=self._batch_size,
            local_steps=self.local_steps,
            optimizer=self._optimizer,
        )

    def labels(self) -> NDArray[np.int64]:
        """The classes of the training rows, (n,)."""
        return self._dataset.y_train

    def schema(self) -> Schema:
        """The names and shapes of the tensors in the vector."""
        return self._schema

    def schema_hash(self) -> bytes:
        """32 bytes that sites compare at the handshake: the Schema, the columns and the classes."""
        return hashlib.sha256(self._schema.hash() + rows_meaning(self._dataset)).digest()

    def statistics(self) -> NDArray[np.float64]:
        """Sums to pool across sites, (3k,); empty unless standardise = "federation"."""
        return self.rows.statistics()

    def standardise(self, sums: NDArray[np.float64]) -> None:
        """Standardise the rows with pooled sums, (3k,)."""
        self.rows.standardise(sums)

    def state(self) -> bytes:
        """What must survive a crash, as safetensors: layers not shared, and momentum if it is kept."""
        tensors = {name: self._theta[place] for name, place in self._private.items()}
        if not self._optimizer.reset:
            tensors["momentum"] = self._momentum[0]
        return save(tensors) if tensors else b""

    def restore(self, state: bytes) -> None:
        """Takes back what `state` gave.  Raises LearnerError when it is of another model."""
        targets = {name: self._theta[place] for name, place in self._private.items()}
        if not self._optimizer.reset:
            targets["momentum"] = self._momentum[0]
        tensors = load(state) if state else {}
        if {name: array.shape for name, array in tensors.items()} != {
            name: array.shape for name, array in targets.items()
        }:
            raise LearnerError(
                f"saved learner state holds {sorted(tensors)}, this model keeps {sorted(targets)};"
                " the model changed since it was saved"
            )
        for name, array in tensors.items():
            targets[name][:] = array

    def _fit(
        self,
        parameters: Vector,
        rng: np.random.Generator,
        backward: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    ) -> Update:
        self.rows.check_ready()
        self._adopt(parameters)
        order = batches(len(self.rows.x_train), self._batch_size, self.local_steps, rng)
        if self._optimizer.reset:
            self._momentum[:] = 0
        before = self._theta.copy(), self._momentum.copy()
        losses = descend_by(
            backward,
            self._net,
            self._momentum,
            self._optimizer,
            self._rate(),
            order[:, None],
            self.should_stop,
        )
        if not np.isfinite(self._theta).all():
            self._theta[:], self._momentum[:] = before
            raise diverged(self._optimizer)
        done = {"train_loss": float(np.mean(losses))} if losses else {}
        return Update(parameters=self.parameters(), samples=len(losses) * self._batch_size, metrics=done)

    def _rate(self) -> np.float32:
        return np.float32(self._optimizer.lr * rate_factor(self._optimizer, self.progress()))

    def _hidden_width(self) -> int:
        if len(self._net.layers) < 3:
            raise LearnerError('a logistic model has no hidden layer to embed rows in; use kind = "mlp"')
        return self._net.layers[-2]

    def _named_slices(self) -> list[tuple[str, slice]]:
        return list(zip(self._schema.names, self._schema.slices(), strict=True))

    def _adopt(self, parameters: Vector) -> None:
        if parameters.shape != (self._schema.size,):
            raise LearnerError(
                f"parameters have shape {parameters.shape}, this model has {self._schema.size};"
                " check that all sites run the same model"
            )
        for place, where in self._shared:
            self._theta[place] = parameters[where]


def _two_sided(z: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (n, C) of (n, o): a single one is that of class 1 of two."""
    return np.concatenate([np.zeros_like(z), z], axis=1) if z.shape[1] == 1 else z
