"""A learner for FedGKT: an edge that trains here, and a hub's model where this site is a hub or holds one.

What travels as parameters, if anything does, are the edge's.  The hub's model is kept beside it and is
learner state.  A row is classified by the edge's head (`accuracy`), and where the hub's model is held also by
that model on the edge's features (`hub_accuracy`): the composite, of which the paper reports the accuracy.

`n` rows, `d` hidden values, `K` classes, `m` parameters of the hub's model.
Source: He, Annavaram & Avestimehr 2020, arXiv:2007.14513, equations (8) to (11).
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.events import Metrics, Vector
from p2pfl.learn.flat import Schema
from p2pfl.learn.learner import DISTILL_ROWS, Update
from p2pfl.learn.torch_learner import TorchLearner
from p2pfl.work import Expected

__all__ = ["SplitLearner"]


class SplitLearner:
    """An edge, and a hub's model.

    edge: its `features` are what travels; the tensors whose names begin with `extractor.` make them.
    hub: makes a TorchLearner on rows of features, (n, d), whose loaders are not used; None where this site
    never has a hub's model.   capacity: how much this site is worth as a hub, 0 for none; such a site makes
    the hub's model only once one is delivered.
    """

    def __init__(
        self,
        edge: TorchLearner,
        hub: Callable[[], TorchLearner] | None = None,
        *,
        capacity: float = 0.0,
        epochs: int = 3,
        batch_size: int = 64,
        classes: Sequence[str] = (),
        extractor: str = "extractor",
    ) -> None:
        """epochs: over all samples of all edges, when the hub learns.   batch_size: of the hub.

        classes: their names in order, where they have some: edges with others are of another split.
        Raises ConfigError for a capacity without a hub, and an edge without such an extractor.
        """
        if capacity > 0 and hub is None:
            raise ConfigError(f"capacity is {capacity:g} and there is no hub model; give hub, or capacity 0")
        self.should_stop: Callable[[], bool] = lambda: False
        self.progress: Callable[[], float] = lambda: 0.0
        self._edge, self._make_hub = edge, hub
        self._capacity, self._epochs, self._batch_size = capacity, epochs, batch_size
        self._extractor = extractor
        edge.should_stop = lambda: self.should_stop()
        edge.progress = lambda: self.progress()
        first = edge.parameters()
        hidden = edge.features(first, edge.own_rows()[0][:1])
        self._width = hidden.shape[1]
        self._classes = edge.answer(first, edge.own_rows()[0][:1]).shape[1]
        self._split = self._split_of(edge, first, list(classes))
        self._hub: TorchLearner | None = None
        self._theta: Vector = np.zeros(0, np.float32)
        self._is_held = False
        self._model, self._model_values = b"", 0
        if hub is not None:
            made = self._made_hub(hub)
            self._model, self._model_values = made.schema().hash(), made.parameters().size
            if made.answer(made.parameters(), hidden).shape != (1, self._classes):
                raise ConfigError(
                    f"the hub's model does not give {self._classes} classes, as the edge does; check its last"
                    " layer"
                )
            if capacity > 0:
                self._take_hub(made)

    # --- the edge, as any learner ----------------------------------------------------------------------

    @property
    def local_steps(self) -> int | None:
        """Batches of the edge's fit."""
        return self._edge.local_steps

    @local_steps.setter
    def local_steps(self, steps: int | None) -> None:
        self._edge.local_steps = steps

    def parameters(self) -> Vector:
        """The edge's, (d,)."""
        return self._edge.parameters()

    def fit(self, parameters: Vector, rng: np.random.Generator) -> Update:
        """Train the edge on its own rows."""
        return self._edge.fit(parameters, rng)

    def evaluate(self, parameters: Vector) -> Metrics:
        """Of the edge's head, `loss` and `accuracy`; of the composite, `hub_loss` and `hub_accuracy`."""
        measured = dict(self._edge.evaluate(parameters))
        if self._hub is not None and self._is_held:
            whole = self._edge.evaluate_above(parameters, self._hub, self._theta)
            measured |= {f"hub_{name}": value for name, value in whole.items()}
        return measured

    def validate(self, parameters: Vector, rng: np.random.Generator) -> float:
        """The loss of the edge's head on training rows."""
        return self._edge.validate(parameters, rng)

    def predict(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Logits, (n, K), of raw rows: the composite's where the hub's model is held, else the head's."""
        if self._hub is None or not self._is_held:
            return self._edge.predict(x)
        return self.hub_answer(self._edge.features(self._edge.parameters(), x))

    def answer(self, parameters: Vector, x: NDArray[Any]) -> NDArray[np.float32]:
        """Logits of the head, (n, K), of raw rows."""
        return self._edge.answer(parameters, x)

    def features(self, parameters: Vector, x: NDArray[Any]) -> NDArray[np.float32]:
        """Hidden values, (n, d), of raw rows."""
        return self._edge.features(parameters, x)

    def distill(
        self,
        parameters: Vector,
        x: NDArray[Any],
        targets: NDArray[np.floating],
        rng: np.random.Generator,
        *,
        epochs: int = 1,
        batch: int = DISTILL_ROWS,
        temperature: float = 3.0,
        alpha: float = 1.0,
        labels: NDArray[np.int64] | None = None,
    ) -> Update:
        """Train the edge on a teacher's beliefs of rows (n, ...); see learner.py."""
        return self._edge.distill(
            parameters,
            x,
            targets,
            rng,
            epochs=epochs,
            batch=batch,
            temperature=temperature,
            alpha=alpha,
            labels=labels,
        )

    def fit_near(
        self,
        parameters: Vector,
        rng: np.random.Generator,
        prototypes: NDArray[np.floating],
        known: NDArray[np.bool_],
        weight: float,
    ) -> Update:
        """`fit` of the edge, its features drawn to the prototypes (K, d)."""
        return self._edge.fit_near(parameters, rng, prototypes, known, weight)

    def own_rows(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The training rows raw, and their classes."""
        return self._edge.own_rows()

    def samples(self) -> int:
        """The number of training rows."""
        return self._edge.samples()

    def classes(self) -> int:
        """The number of classes."""
        return int(self._classes)

    def schema(self) -> Schema:
        """The edge's tensors."""
        return self._edge.schema()

    def schema_hash(self) -> bytes:
        """32 bytes of the edge's model."""
        return self._edge.schema_hash()

    def data_set(self) -> str:
        """What names the site's rows in its privacy account."""
        return self._edge.data_set()

    def statistics(self) -> NDArray[np.float64]:
        """Sums to pool across sites."""
        return self._edge.statistics()

    def standardise(self, sums: NDArray[np.float64]) -> None:
        """Standardise the rows with pooled sums."""
        self._edge.standardise(sums)

    def state(self) -> bytes:
        """What must survive a crash: of the edge, and the hub's model with its optimizer if there is one."""
        tensors: dict[str, NDArray[Any]] = {"edge": np.frombuffer(self._edge.state(), np.uint8)}
        if self._hub is not None:
            tensors["hub"] = self._theta
            tensors["hub.state"] = np.frombuffer(self._hub.state(), np.uint8)
            tensors["is_held"] = np.asarray([self._is_held], np.uint8)
        packed: bytes = save({name: np.array(tensor) for name, tensor in tensors.items()})
        return packed

    def restore(self, state: bytes) -> None:
        """Takes back what `state` gave.  Raises LearnerError when it is of another model."""
        tensors = load(state)
        if not ({"edge"} == tensors.keys() or {"edge", "hub", "hub.state", "is_held"} == tensors.keys()):
            raise LearnerError(f"saved learner state holds {sorted(tensors)}, which is no edge and hub")
        self._edge.restore(tensors["edge"].tobytes())
        if "hub" in tensors:
            hub = self._hub_to_be()
            hub.restore(tensors["hub.state"].tobytes())
            self._theta, self._is_held = self._checked(tensors["hub"]), bool(tensors["is_held"][0])

    # --- what FedGKT asks of it ------------------------------------------------------------------------

    def expected(self) -> Expected:
        """The shape of its knowledge."""
        return Expected(
            classes=self._classes,
            width=self._width,
            split=self._split,
            capacity=self._capacity,
            model=self._model,
            model_values=self._model_values,
        )

    def fit_taught(
        self,
        parameters: Vector,
        x: NDArray[Any],
        labels: NDArray[np.int64],
        targets: NDArray[np.floating] | None,
        rng: np.random.Generator,
        *,
        temperature: float = 3.0,
        alpha: float = 1.0,
        is_frozen: bool = False,
    ) -> Update:
        """`fit` of the edge on rows (n, ...), towards their classes and a hub's beliefs (n, K), or None."""
        return self._edge.fit_taught(
            parameters,
            x,
            labels,
            targets,
            rng,
            temperature=temperature,
            alpha=alpha,
            still_part=self._extractor if is_frozen else "",
        )

    def learn(
        self,
        hidden: NDArray[np.float32],
        labels: NDArray[np.int64],
        targets: NDArray[np.floating],
        rng: np.random.Generator,
        *,
        temperature: float = 3.0,
        alpha: float = 1.0,
    ) -> Metrics:
        """Train the hub's model on hidden values (n, d), all mixed; when that fails it is as before."""
        batch = min(self._batch_size, len(hidden))
        update = self._hub_to_be().fit_taught(
            self._theta,
            hidden,
            labels,
            targets,
            rng,
            steps=-(-self._epochs * len(hidden) // batch),
            batch=batch,
            temperature=temperature,
            alpha=alpha,
        )
        self._theta, self._is_held = update.parameters, True
        return update.metrics

    def hub_distill(
        self,
        hidden: NDArray[np.float32],
        targets: NDArray[np.floating],
        rng: np.random.Generator,
        *,
        epochs: int = 1,
        temperature: float = 3.0,
        alpha: float = 1.0,
    ) -> Metrics:
        """Train the hub's model towards beliefs (n, K) of hidden values (n, d) whose classes nobody knows."""
        update = self._hub_to_be().distill(
            self._theta, hidden, targets, rng, epochs=epochs, temperature=temperature, alpha=alpha
        )
        self._theta, self._is_held = update.parameters, True
        return update.metrics

    def hub_answer(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits, (n, K), of hidden values (n, d)."""
        return self._hub_to_be().answer(self._theta, hidden)

    def hub_model(self) -> Vector:
        """The hub's model, a copy, (m,).  Raises LearnerError where there is none."""
        self._hub_to_be()
        return self._theta.copy()

    def adopt_hub_model(self, model: Vector) -> None:
        """From now on the hub's model is `model`, (m,).  Raises LearnerError when it is of another kind."""
        self._hub_to_be()
        self._theta, self._is_held = self._checked(model), True

    @property
    def holds_hub_model(self) -> bool:
        """Whether the hub's model was trained here, or came from a hub."""
        return self._is_held

    # --- within ----------------------------------------------------------------------------------------

    def _hub_to_be(self) -> TorchLearner:
        if self._hub is None:
            if self._make_hub is None:
                raise LearnerError(
                    "this site has no hub model to learn or answer with; give SplitLearner a hub, or"
                    " learner.roles.NAME.capacity"
                )
            self._take_hub(self._made_hub(self._make_hub))
        assert self._hub is not None
        return self._hub

    def _made_hub(self, make: Callable[[], TorchLearner]) -> TorchLearner:
        hub = make()
        hub.should_stop = lambda: self.should_stop()
        hub.progress = lambda: self.progress()
        return hub

    def _take_hub(self, hub: TorchLearner) -> None:
        self._hub, self._theta = hub, hub.parameters()

    def _checked(self, model: NDArray[Any]) -> Vector:
        if model.dtype != np.float32 or model.shape != (self._model_values,):
            raise LearnerError(
                f"a hub model of {model.dtype} {model.shape} came, this one has ({self._model_values},)"
                " float32; check that all hubs run the same model"
            )
        return np.array(model)

    def _split_of(self, edge: TorchLearner, first: Vector, classes: list[str]) -> bytes:
        """What all edges of one hub share: the features' size, the classes, the extractor's first tensors."""
        schema = edge.schema()
        prefix = f"{self._extractor}."
        kept = [
            (name, shape, first[place].astype("<f4").tobytes())
            for name, shape, place in zip(schema.names, schema.shapes, schema.slices(), strict=True)
            if name.startswith(prefix)
        ]
        if not kept:
            raise ConfigError(
                f"no shared tensor of the edge begins with {prefix!r}; name the module that makes the"
                " features `extractor`, or say extractor=..., and share it"
            )
        digest = hashlib.sha256(b"p2pfl-split/1\n")
        digest.update(repr((self._width, self._classes, classes)).encode())
        for name, shape, values in kept:
            digest.update(repr((name, tuple(shape))).encode() + values)
        return digest.digest()
