"""Jobs of an exchange of knowledge: what each gives, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from lessons import digits, done, options, recorded, shop, work
from sklearn.linear_model import SGDClassifier
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from p2pfl.errors import LearnerError
from p2pfl.events import Train
from p2pfl.ids import PeerId
from p2pfl.learn.distill import log_softmax
from p2pfl.learn.learner import OwnRows
from p2pfl.learn.own_rows import held_out
from p2pfl.learn.sklearn_learner import SklearnLearner
from p2pfl.learn.torch_learner import TorchLearner
from p2pfl.work import (
    Answer,
    Answered,
    Distill,
    Expected,
    Extract,
    Extracted,
    Fit,
    Fitted,
    Learn,
    Mutual,
    Pull,
    Summarise,
    Summarised,
    Teacher,
)

GKT = options(model={"kind": "gkt"}, roles={"hub": {"capacity": 2.0}, "edge": {}}, optimizer={"lr": 0.02})
A, B = PeerId("a"), PeerId("b")


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- what a site shows, and what it can give --------------------------------------------------------


def test_held_out_rows_are_a_tenth_and_the_same_everywhere() -> None:
    assert [int(held_out(0, n).sum()) for n in (1, 4, 5, 9, 30, 100)] == [0, 0, 1, 1, 3, 10]
    np.testing.assert_array_equal(held_out(5, 100), held_out(5, 100))
    assert (held_out(5, 100) != held_out(6, 100)).any()


@pytest.mark.parametrize("kind", ["logistic", "mlp", "cnn", "gkt", "sklearn"])
def test_own_rows_are_the_raw_training_rows_in_their_order(kind: str) -> None:
    d = digits()
    if kind == "sklearn":
        found: Any = SklearnLearner(SGDClassifier(), d.x_train, d.y_train, d.x_test, d.y_test)
    else:
        standardise = "none" if kind == "gkt" else "site"
        found = shop("none", options(model={"kind": kind}, standardise=standardise)).learner
    assert isinstance(found, OwnRows)
    x, y = found.own_rows()
    np.testing.assert_array_equal(x, d.x_train)
    np.testing.assert_array_equal(y, d.y_train)


class Pairs(Dataset[Any]):
    """A map-style data set of a user."""

    def __init__(self, d: Any) -> None:
        self.d = d

    def __len__(self) -> int:
        return len(self.d.y_train)

    def __getitem__(self, number: int) -> Any:
        if number >= len(self):
            raise IndexError(number)
        return torch.from_numpy(self.d.x_train[number]).reshape(1, 8, 8), int(self.d.y_train[number])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield torch.zeros(64), 0


def _of_loader(train: Any) -> TorchLearner:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return TorchLearner(net, train, train, nn.functional.cross_entropy, lambda p: torch.optim.SGD(p, lr=0.1))


def test_a_users_loader_shows_its_rows_in_the_data_sets_order_however_it_shuffles() -> None:
    d = digits()
    loader = DataLoader(Pairs(d), batch_size=7, shuffle=True, drop_last=True)
    x, y = _of_loader(loader).own_rows()
    np.testing.assert_array_equal(x, d.x_train.reshape(-1, 1, 8, 8))
    np.testing.assert_array_equal(y, d.y_train)


@pytest.mark.parametrize(
    "train",
    [
        [(torch.zeros(2, 64), torch.zeros(2, dtype=torch.long))],
        DataLoader(Stream()),
        DataLoader(TensorDataset(torch.zeros(4, 64), torch.zeros(4))),
        DataLoader(TensorDataset(torch.zeros(4, 64))),
    ],
)
def test_a_loader_whose_samples_cannot_be_named_says_so(train: Any) -> None:
    with pytest.raises(LearnerError, match=r"map-style|classes 0, 1|row, class"):
        _of_loader(train).own_rows()


def test_what_a_learner_can_give_is_said_at_the_start() -> None:
    assert shop("none").ready().expected is None
    assert shop("probe").ready().expected == Expected(classes=10)
    assert shop("proto").ready().expected == Expected(classes=10, width=64)
    proxies = options(model={"kind": "logistic"}, proxy={"kind": "logistic"})
    assert shop("proxy", proxies).ready().expected == Expected(classes=10)
    hub, edge = (shop("hub", GKT, role=role).ready().expected for role in ("hub", "edge"))
    assert hub is not None
    assert edge is not None
    assert (hub.classes, hub.width, hub.capacity, edge.capacity) == (10, 256, 2.0, 0.0)
    assert (hub.split, hub.model, hub.model_values) == (edge.split, edge.model, edge.model_values)
    assert len(hub.split) == len(hub.model) == 32


def test_another_first_extractor_or_other_classes_are_another_split() -> None:
    one = shop("hub", GKT, role="edge").ready().expected
    two = shop("hub", GKT, role="edge", seed=4).ready().expected
    assert one is not None
    assert two is not None
    assert one.split != two.split
    assert one.model == two.model


@pytest.mark.parametrize(
    ("kind", "model", "said"),
    [
        ("hub", "mlp", "fit_taught.*SplitLearner"),
        ("proxy", "mlp", "fit_mutual.*learner.proxy"),
        ("proto", "logistic", "no hidden layer"),
        ("gossip", "mlp", "gossip"),
    ],
)
def test_a_learner_that_cannot_do_what_its_run_needs_is_refused(kind: str, model: str, said: str) -> None:
    with pytest.raises(LearnerError, match=said):
        shop(kind, options(model={"kind": model})).ready()


# --- fits ---------------------------------------------------------------------------------------------


def test_a_plain_fit_is_the_learners_own() -> None:
    bench = shop("probe")
    start = bench.ready().parameters
    worked = done(bench, Fit(), start)
    trained = bench.train(Train(round=4, parameters=start, seed=(7, 1), progress=0.5, deadline=1.0))
    assert worked.result == Fitted()
    np.testing.assert_array_equal(np.asarray(worked.parameters), np.asarray(trained.parameters))
    assert worked.metrics == trained.metrics


def test_a_fit_in_a_hub_run_leaves_the_held_out_rows_out() -> None:
    bench, learner = recorded()
    done(bench, Fit(), np.zeros(2, np.float32))
    x, labels, targets, how = learner.asked[0]
    fits = ~held_out(3, 20)
    assert fits.sum() == 18
    np.testing.assert_array_equal(x, learner.x[fits])
    np.testing.assert_array_equal(labels, learner.labels[fits])
    assert targets is None
    assert how["is_frozen"] is False


def test_each_row_gets_its_own_soft_label_and_a_row_without_one_its_own_answer() -> None:
    bench, learner = recorded()
    rows = np.array([7, 2, 19], np.uint64)
    z = np.array([[5.0, 0, 0], [0, 5.0, 0], [0, 0, 5.0]])
    teacher = Teacher(ids=rows, log_p=log_softmax(z), alpha=0.7, temperature=2.0)
    done(bench, Fit(teacher=teacher, is_frozen=True), np.zeros(2, np.float32))
    _, _, targets, how = learner.asked[0]
    assert how == {"alpha": 0.7, "temperature": 2.0, "is_frozen": True}
    beliefs = np.tile(np.exp(log_softmax(np.array([[1.0, 2.0, 0.5]]))), (20, 1))
    beliefs[[7, 2, 19]] = np.exp(log_softmax(z))
    np.testing.assert_allclose(targets, beliefs[~held_out(3, 20)], rtol=1e-6)


def test_a_soft_label_of_no_row_is_a_fault() -> None:
    bench, _ = recorded()
    teacher = Teacher(ids=np.array([20], np.uint64), log_p=np.zeros((1, 3)), alpha=1.0, temperature=3.0)
    worked = bench.work(work(Fit(teacher=teacher), np.zeros(2, np.float32)))
    assert worked.result is None
    assert "row 20" in worked.fault


def test_a_frozen_extractor_stays_bit_for_bit_and_the_head_moves() -> None:
    bench = shop("hub", GKT, role="edge")
    start = done(bench, Fit(), bench.ready().parameters).parameters
    assert start is not None
    schema = bench.ready().schema
    assert schema is not None
    moved = done(bench, Fit(is_frozen=True), start).parameters
    assert moved is not None
    for name, place in zip(schema.names, schema.slices(), strict=True):
        is_still = np.array_equal(moved[place], start[place])
        assert is_still == name.startswith("extractor."), name
    thawed = done(bench, Fit(), start).parameters
    assert thawed is not None
    assert not np.array_equal(thawed[schema.slices()[0]], start[schema.slices()[0]])


@pytest.mark.parametrize(
    "job",
    [
        Fit(is_frozen=True),
        Fit(teacher=Teacher(ids=np.zeros(0, np.uint64), log_p=np.zeros((0, 10)), alpha=1.0, temperature=3.0)),
        Fit(mutual=Mutual(alpha=0.5, beta=0.5, temperature=1.0)),
        Learn(features={}, only_answer={}, alpha=1.0, temperature=3.0),
    ],
)
def test_what_the_runs_kind_does_not_have_is_a_fault_and_no_crash(job: Any) -> None:
    bench = shop("probe")
    worked = bench.work(work(job, bench.ready().parameters))
    assert worked.result is None
    assert worked.fault


def test_a_pull_draws_the_embeddings_of_known_classes() -> None:
    bench = shop("proto", options(local_steps=40))
    start = bench.ready().parameters
    found = done(bench, Summarise(), start).result
    assert isinstance(found, Summarised)
    assert found.embeddings.shape == (60, 64)
    np.testing.assert_array_equal(found.labels, digits().y_train)
    goals = np.random.default_rng(0).uniform(0, 2, size=(10, 64)).astype(np.float32)
    known = np.arange(10) < 5
    pulled = done(bench, Fit(pull=Pull(centres=goals, is_known=known, strength=20.0)), start).parameters
    after: Any = done(bench, Summarise(), pulled).result
    gap = ((after.embeddings - goals[after.labels]) ** 2).mean(axis=1)
    assert gap[known[after.labels]].mean() < gap[~known[after.labels]].mean() / 1.5


# --- predictions, features ---------------------------------------------------------------------------


def test_answers_are_logits_of_the_probe_set_and_confidence_of_held_out_rows() -> None:
    bench = shop("probe")
    start = bench.ready().parameters
    worked = done(bench, Answer(), start)
    assert isinstance(worked.result, Answered)
    assert worked.result.logits.shape == (40, 10)
    assert worked.parameters is None
    learner: Any = bench.learner
    own = learner.answer(start, digits().x_train[held_out(3, 60)])
    np.testing.assert_allclose(worked.result.confidence, np.exp(log_softmax(own)).max(axis=1))


def test_distilling_teaches_the_rows_that_are_used_and_no_other() -> None:
    bench = shop("probe", options(model={"kind": "logistic"}))
    start = bench.ready().parameters
    p, used = np.full((40, 10), 0.01), np.arange(40) < 20
    p[:, 3] = 0.91
    job = Distill(p=p, is_used=used, alpha=1.0, temperature=1.0, epochs=30)
    worked = done(bench, job, start)
    assert worked.metrics.keys() == {"distill_loss"}
    after: Any = done(bench, Answer(), worked.parameters).result
    assert (after.logits[:20].argmax(axis=1) == 3).all()
    changed = p.copy()
    changed[20:] = 0.1
    again = done(bench, Distill(p=changed, is_used=used, alpha=1.0, temperature=1.0, epochs=30), start)
    np.testing.assert_array_equal(np.asarray(again.parameters), np.asarray(worked.parameters))
    none = done(bench, Distill(p=p, is_used=np.zeros(40, bool), alpha=1.0, temperature=1.0, epochs=1), start)
    assert none.parameters is None


def test_features_are_of_own_rows_under_their_numbers() -> None:
    bench, learner = recorded()
    found = done(bench, Extract(most=100), np.zeros(2, np.float32)).result
    assert isinstance(found, Extracted)
    assert found.ids.dtype == np.uint64
    np.testing.assert_array_equal(found.hidden, learner.x)
    np.testing.assert_array_equal(found.is_held_out, held_out(3, 20))
    few: Any = done(bench, Extract(most=8), np.zeros(2, np.float32)).result
    assert few.ids.size == 8
    np.testing.assert_array_equal(few.hidden, learner.x[few.ids.astype(int)])
    np.testing.assert_array_equal(few.labels, learner.labels[few.ids.astype(int)])
