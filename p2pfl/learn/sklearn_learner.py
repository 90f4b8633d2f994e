"""A scikit-learn estimator as a learner.

For estimators whose model is `coef_` and `intercept_` (SGDClassifier, SGDRegressor, Perceptron,
LogisticRegression with warm_start) or `coefs_` and `intercepts_` (MLPClassifier, MLPRegressor).
`d` is the number of shared parameters.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.events import Metrics, Vector
from p2pfl.learn import metrics
from p2pfl.learn.batches import batches
from p2pfl.learn.distill import LOG_FLOOR, check_lesson
from p2pfl.learn.flat import Schema, flatten, schema_of, unflatten
from p2pfl.learn.learner import VALIDATION_ROWS, Update

__all__ = ["SklearnLearner"]

_Array = NDArray[Any]


class SklearnLearner:
    """An estimator trained by `partial_fit` on batches, or by a warm-started `fit` on all rows.

    Linear models start at zero.  A multilayer perceptron starts from its own draw under `seed`, after a step
    on a row of zeros for each class: sklearn makes the weights only inside a fit, and this one is the same at
    all sites.  Its optimizer starts anew in each round; SGD's step count is kept as learner state.
    """

    def __init__(
        self,
        estimator: Any,
        x_train: _Array,
        y_train: _Array,
        x_test: _Array,
        y_test: _Array,
        classes: Sequence[Any] | None = None,
        *,
        local_steps: int | None = None,
        batch_size: int = 32,
        share: Sequence[str] = ("*",),
        seed: int = 0,
        per_class: bool = False,
    ) -> None:
        """x: (n, k), y: (n,).   classes: all labels of the agreement; None takes those found at this site.

        local_steps: calls of partial_fit, each on `batch_size` rows; None is the site's, or one epoch.  A
        warm-started `fit` uses the estimator's own max_iter instead.   per_class: measure the accuracy of
        each class, too.
        """
        try:
            from sklearn.base import is_regressor
            from sklearn.exceptions import ConvergenceWarning
        except ImportError as error:
            raise ConfigError(
                "SklearnLearner needs scikit-learn; install the extra: pip install 'p2pfl-node[sklearn]'"
            ) from error
        self.local_steps = local_steps
        self.should_stop: Callable[[], bool] = lambda: False
        self._estimator, self._unfinished = estimator, ConvergenceWarning
        self._x_train, self._y_train = np.asarray(x_train), np.asarray(y_train)
        self._x_test, self._y_test = np.asarray(x_test), np.asarray(y_test)
        self._batch_size, self._per_class = batch_size, per_class
        self._is_partial = hasattr(estimator, "partial_fit")
        self._settings = estimator.get_params(deep=False)
        if not self._is_partial and not self._settings.get("warm_start", False):
            raise ConfigError(
                f"{type(estimator).__name__} has no partial_fit and starts anew at every fit;"
                " set warm_start=True, or use SGDClassifier"
            )
        if self._settings.get("average", False):
            raise ConfigError(
                "SGD with average=True returns an average and trains another model; set average=False"
            )
        self._classes: _Array | None = None
        if not is_regressor(estimator):
            found = np.concatenate([self._y_train, self._y_test])
            self._classes = np.unique(found if classes is None else np.asarray(classes))
            strangers = np.setdiff1d(found, self._classes)
            if len(strangers) or len(self._classes) < 2:
                raise ConfigError(f"labels {strangers.tolist()} are not in classes {self._classes.tolist()}")
        self._begin(seed)
        self._schema = schema_of(self._tensors(), tuple(share))

    def parameters(self) -> Vector:
        """The shared parameters now, a copy, (d,)."""
        return flatten(self._tensors(), self._schema)

    def fit(self, parameters: Vector, rng: np.random.Generator) -> Update:
        """Train from `parameters`, (d,); the estimator's random_state is drawn from `rng`.

        Raises LearnerError when training diverges or the rows lack a class that the estimator needs.  What is
        not shared is then as before, so the round can be tried again.
        """
        return self._trained(parameters, rng, lambda: self._train(rng))

    def evaluate(self, parameters: Vector) -> Metrics:
        """On the test rows: `accuracy`, and `auc` for two classes.

        `loss` is in nats where the estimator gives probabilities, and the mean squared error of a regressor.
        """
        self._adopt(parameters)
        predicted = self._estimator.predict(self._x_test)
        if self._classes is None:
            return {"loss": float(np.mean((predicted - self._y_test) ** 2))}
        labels = np.searchsorted(self._classes, self._y_test)
        measured = {"accuracy": metrics.accuracy(self._y_test, predicted)}
        if self._per_class:
            found = np.searchsorted(self._classes, predicted)
            measured |= metrics.by_class(labels, found, self.own_rows()[1], len(self._classes))
        scores = None
        if hasattr(self._estimator, "predict_proba"):
            scores = self._estimator.predict_proba(self._x_test)
            measured["loss"] = metrics.log_loss(labels, scores)
        if hasattr(self._estimator, "decision_function"):
            scores = self._estimator.decision_function(self._x_test)
        if scores is not None and len(self._classes) == 2:
            area = metrics.auc(labels, scores)
            if not np.isnan(area):
                measured["auc"] = area
        return measured

    def validate(self, parameters: Vector, rng: np.random.Generator) -> float:
        """The loss of `evaluate` on at most VALIDATION_ROWS training rows; NaN where there is none."""
        self._adopt(parameters)
        rows = rng.permutation(len(self._x_train))[:VALIDATION_ROWS]
        x, y = self._x_train[rows], self._y_train[rows]
        if self._classes is None:
            loss = float(np.mean((self._estimator.predict(x) - y) ** 2))
        elif hasattr(self._estimator, "predict_proba"):
            loss = metrics.log_loss(np.searchsorted(self._classes, y), self._estimator.predict_proba(x))
        else:
            return np.nan
        return loss if np.isfinite(loss) else np.inf

    def predict(self, x: _Array) -> _Array:
        """The estimator's own prediction for rows (n, k), as the model stands."""
        return np.asarray(self._estimator.predict(x))

    def answer(self, parameters: Vector, x: _Array) -> NDArray[np.float32]:
        """Log-probabilities in -20..0, (n, K), of rows (n, k); or decision values.

        Raises LearnerError for a regressor.
        """
        if self._classes is None:
            raise LearnerError("a regressor has no classes to give beliefs of; exchange its weights instead")
        self._adopt(parameters)
        if hasattr(self._estimator, "predict_proba"):
            p = np.asarray(self._estimator.predict_proba(x), np.float64)
            return np.log(np.maximum(p, np.exp(LOG_FLOOR))).astype(np.float32)
        scores = np.asarray(self._estimator.decision_function(x), np.float32)
        return scores if scores.ndim == 2 else np.stack([np.zeros_like(scores), scores], axis=1)

    def distill(
        self,
        parameters: Vector,
        x: _Array,
        targets: NDArray[np.floating],
        rng: np.random.Generator,
        *,
        epochs: int = 1,
        batch: int = 64,
        temperature: float = 3.0,
        alpha: float = 1.0,
        labels: NDArray[np.int64] | None = None,
    ) -> Update:
        """`partial_fit` on rows (n, k) whose classes are drawn from the teacher's beliefs; see learner.py.

        The gradient on drawn classes is in the mean that on the beliefs themselves, at temperature 1: that of
        the call is not used.  alpha is the share of rows, 0..1, that are drawn in each epoch.
        Raises LearnerError for an estimator without classes or partial_fit, and as `fit` does.
        """
        if self._classes is None or not self._is_partial:
            raise LearnerError(
                f"{type(self._estimator).__name__} cannot distil; use a classifier with partial_fit"
            )
        check_lesson(len(x), targets, len(self._classes), temperature)
        classes, edges = self._classes, np.cumsum(targets, axis=1, dtype=np.float64)

        def train() -> int:
            samples = 0
            size = max(1, min(batch, len(x)))
            for rows in batches(len(x), size, -(-epochs * len(x) // size), rng):
                if self.should_stop():
                    break
                drawn = rows[rng.random(len(rows)) < alpha]
                # Scaled by the row's own sum, so that rounding leaves no draw above the last class.
                u = rng.random(len(drawn)) * edges[drawn, -1]
                taught = (edges[drawn] <= u[:, None]).sum(axis=1)
                own = rows[:0] if labels is None else rows
                chosen = np.concatenate([own, drawn])
                found = taught if labels is None else np.concatenate([labels[own], taught])
                if len(chosen):
                    self._call("partial_fit", x[chosen], classes[found])
                samples += len(rows)
            return samples

        return self._trained(parameters, rng, train)

    def samples(self) -> int:
        """The number of training rows."""
        return len(self._x_train)

    def own_rows(self) -> tuple[_Array, NDArray[np.int64]]:
        """The training rows, (n, k), and their classes 0..K-1, (n,).  Raises LearnerError for a regressor."""
        if self._classes is None:
            raise LearnerError("a regressor's rows have no classes; exchange its weights instead")
        return self._x_train, np.searchsorted(self._classes, self._y_train)

    def schema(self) -> Schema:
        """The names and shapes of the tensors in the vector."""
        return self._schema

    def schema_hash(self) -> bytes:
        """32 bytes that sites compare at the handshake: names, shapes and the order of classes."""
        classes = [] if self._classes is None else [str(label) for label in self._classes]
        meaning = json.dumps(classes, separators=(",", ":")).encode()
        return hashlib.sha256(self._schema.hash() + meaning).digest()

    def state(self) -> bytes:
        """What must survive a crash, as safetensors: tensors that are not shared, and SGD's step count."""
        tensors = {
            name: np.ascontiguousarray(t) for name, t in self._tensors().items() if self._is_private(name)
        }
        if hasattr(self._estimator, "t_"):
            tensors["t_"] = np.asarray([self._estimator.t_], np.float64)
        return save(tensors) if tensors else b""

    def restore(self, state: bytes) -> None:
        """Takes back what `state` gave.  Raises LearnerError when it is of another model."""
        tensors = load(state) if state else {}
        own = self._tensors()
        step = tensors.pop("t_", None)
        kept = {name: tensor.shape for name, tensor in own.items() if self._is_private(name)}
        if {name: tensor.shape for name, tensor in tensors.items()} != kept:
            raise LearnerError(
                f"saved learner state holds {sorted(tensors)}, this model keeps {sorted(kept)};"
                " the model changed since it was saved"
            )
        self._assign(own | tensors)
        if step is not None and step.shape == (1,) and hasattr(self._estimator, "t_"):
            self._estimator.t_ = type(self._estimator.t_)(step[0])

    def _begin(self, seed: int) -> None:
        """Makes the estimator allocate its model without looking at this site's rows."""
        rows = 2 if self._classes is None else len(self._classes)
        x = np.zeros((rows, self._x_train.shape[1]), self._x_train.dtype)
        y = np.zeros(rows, self._y_train.dtype) if self._classes is None else self._classes
        self._reseed(seed % 2**31)
        if self._is_partial and self._classes is not None:
            self._call("partial_fit", x, y, classes=self._classes)
        else:
            self._call("partial_fit" if self._is_partial else "fit", x, y)
        if not (hasattr(self._estimator, "coef_") or hasattr(self._estimator, "coefs_")):
            raise ConfigError(f"{type(self._estimator).__name__} has neither coef_ nor coefs_ to share")
        if hasattr(self._estimator, "coef_"):
            self._assign({name: np.zeros_like(tensor) for name, tensor in self._tensors().items()})
        if hasattr(self._estimator, "t_"):
            self._estimator.t_ = type(self._estimator.t_)(1)

    def _trained(self, parameters: Vector, rng: np.random.Generator, train: Callable[[], int]) -> Update:
        """What `train` makes of the estimator; it gives the rows seen.  When it raises, all is put back."""
        before = self.state()
        self._adopt(parameters)
        self._reseed(int(rng.integers(2**31)))
        self._forget_optimizer()
        try:
            samples = train()
            if not all(np.isfinite(tensor).all() for tensor in self._tensors().values()):
                raise LearnerError(
                    "training diverged: parameters are not finite; lower the rate or scale the data"
                )
        except BaseException:
            if self._classes is not None:
                # A failed fit may already have replaced them by the classes of this site's rows.
                self._estimator.classes_ = self._classes
            self.restore(before)
            raise
        return Update(parameters=self.parameters(), samples=samples)

    def _train(self, rng: np.random.Generator) -> int:
        """One round's training; gives the rows seen."""
        if not self._is_partial:
            self._call("fit", self._x_train, self._y_train)
            return len(self._x_train)
        samples = 0
        for rows in batches(len(self._x_train), self._batch_size, self.local_steps, rng):
            if self.should_stop():
                break
            self._call("partial_fit", self._x_train[rows], self._y_train[rows])
            samples += len(rows)
        return samples

    def _tensors(self) -> dict[str, _Array]:
        e = self._estimator
        if hasattr(e, "coefs_"):
            tensors = {f"coefs_.{layer}": W for layer, W in enumerate(e.coefs_)}
            return tensors | {f"intercepts_.{layer}": b for layer, b in enumerate(e.intercepts_)}
        return {"coef_": np.asarray(e.coef_), "intercept_": np.atleast_1d(e.intercept_)}

    def _assign(self, tensors: dict[str, _Array]) -> None:
        e = self._estimator
        if hasattr(e, "coefs_"):
            e.coefs_ = [np.array(tensors[f"coefs_.{layer}"]) for layer in range(len(e.coefs_))]
            e.intercepts_ = [np.array(tensors[f"intercepts_.{layer}"]) for layer in range(len(e.intercepts_))]
        else:
            e.coef_, e.intercept_ = np.array(tensors["coef_"]), np.array(tensors["intercept_"])

    def _is_private(self, name: str) -> bool:
        return name not in self._schema.names

    def _adopt(self, parameters: Vector) -> None:
        self._assign(self._tensors() | unflatten(parameters, self._schema))

    def _reseed(self, seed: int) -> None:
        if "random_state" in self._settings:
            self._estimator.set_params(random_state=seed)

    def _forget_optimizer(self) -> None:
        # sklearn's perceptrons keep Adam's moments in a private attribute and make it anew when it is gone.
        if hasattr(self._estimator, "_optimizer"):
            del self._estimator._optimizer

    def _call(self, method: str, *arguments: Any, **options: Any) -> None:
        try:
            with warnings.catch_warnings(), np.errstate(over="ignore", invalid="ignore"):
                # A round ends before convergence: that is the point of it.
                warnings.simplefilter("ignore", self._unfinished)
                getattr(self._estimator, method)(*arguments, **options)
        except ValueError as error:
            cure = "" if self._is_partial else "; without partial_fit, a site's rows must hold every class"
            raise LearnerError(f"{type(self._estimator).__name__}.{method}: {error}{cure}") from error
