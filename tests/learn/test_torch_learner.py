from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.learn.data import Dataset, load, part
from p2pfl.learn.learner import Learner
from p2pfl.learn.options import ModelOptions, OptimizerOptions
from p2pfl.learn.torch_learner import TorchLearner
from p2pfl.learn.torch_models import TensorBatches, cnn, image_of, module_learner


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _rng(seed: int = 0) -> Any:
    return np.random.default_rng(seed)


def _net(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def _data(n: int = 48, classes: Any = 3, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    return TensorDataset(
        torch.from_numpy(x), torch.from_numpy(np.abs(x[:, 0] * 2).astype(np.int64) % classes)
    )


def _sgd(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def _learner(net: Any = None, **options: Any) -> Any:
    train = options.pop("train", DataLoader(_data(), batch_size=16, shuffle=True))
    optimizer = options.pop("optimizer", _sgd)
    loss = options.pop("loss", nn.functional.cross_entropy)
    return TorchLearner(
        net or _net(), train, DataLoader(_data(seed=1), batch_size=20), loss, optimizer, **options
    )


def test_parameters_and_floating_buffers_travel_and_counters_stay() -> None:
    learner: Any = _learner()
    assert isinstance(learner, Learner)
    # Linear 6x8+8, batch norm 4x8, linear 8x3+3.
    assert len(learner.parameters()) == 56 + 32 + 27
    learner.fit(learner.parameters(), _rng())
    assert b"num_batches_tracked" in learner.state()  # type: ignore[attr-defined]


def test_a_shuffled_loader_and_dropout_repeat_with_the_rng() -> None:
    first, second = _learner(), _learner()
    start = first.parameters()
    torch.manual_seed(1)
    one = first.fit(start, _rng(1)).parameters
    torch.manual_seed(2)
    assert second.fit(start, _rng(1)).parameters.tobytes() == one.tobytes()
    assert second.fit(start, _rng(2)).parameters.tobytes() != one.tobytes()


def test_a_fit_leaves_the_global_generator_and_the_loaders_own_as_they_were() -> None:
    own = torch.Generator().manual_seed(5)
    loader: Any = DataLoader(_data(), batch_size=16, shuffle=True, generator=own)
    learner = _learner(train=loader)
    before, own_before = torch.get_rng_state(), own.get_state()
    learner.fit(learner.parameters(), _rng())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(own.get_state(), own_before)
    assert loader.generator is own
    assert loader.sampler.generator is own


def test_local_steps_count_batches_across_epochs_and_none_is_one_epoch() -> None:
    learner = _learner()
    assert learner.fit(learner.parameters(), _rng()).samples == 48
    learner.local_steps = 7
    assert learner.fit(learner.parameters(), _rng()).samples == 7 * 16


def test_a_fit_that_is_told_to_stop_returns_its_partial_work() -> None:
    learner = _learner(local_steps=20)
    calls = iter([False, False, True])
    learner.should_stop = lambda: next(calls)
    assert learner.fit(learner.parameters(), _rng()).samples == 32


def test_steps_are_those_of_the_users_own_loop() -> None:
    net = nn.Linear(6, 3)
    whole = [tuple(_data().tensors)]
    learner = _learner(net, train=whole, local_steps=4)
    start = learner.parameters()
    mine = learner.fit(start, _rng()).parameters
    reference = nn.Linear(6, 3)
    nn.utils.vector_to_parameters(torch.tensor(start), reference.parameters())
    optimizer = _sgd(reference.parameters())
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference(whole[0][0]), whole[0][1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert mine.tobytes() == nn.utils.parameters_to_vector(reference.parameters()).detach().numpy().tobytes()


def test_evaluation_is_in_eval_mode_and_weights_batches_by_rows() -> None:
    learner = _learner()
    theta = learner.fit(learner.parameters(), _rng()).parameters
    measured = learner.evaluate(theta)
    assert measured == learner.evaluate(theta)
    x, y = _data(seed=1).tensors
    z = torch.from_numpy(learner.predict(x.numpy()))
    assert measured["loss"] == pytest.approx(nn.functional.cross_entropy(z, y).item(), rel=1e-5)
    assert measured["accuracy"] == pytest.approx((z.argmax(1) == y).float().mean().item())
    assert set(measured) == {"loss", "accuracy"}


def test_two_classes_give_auc_from_two_scores_or_from_one_logit() -> None:
    data = _data(classes=2)
    two = TorchLearner(nn.Linear(6, 2), DataLoader(data), DataLoader(data), nn.functional.cross_entropy, _sgd)
    assert set(two.evaluate(two.parameters())) == {"loss", "accuracy", "auc"}
    floats = DataLoader(TensorDataset(data.tensors[0], data.tensors[1].float()[:, None]), batch_size=8)
    one = TorchLearner(nn.Linear(6, 1), floats, floats, nn.BCEWithLogitsLoss(), _sgd)
    assert set(one.evaluate(one.parameters())) == {"loss", "accuracy", "auc"}


def test_a_regression_is_measured_by_its_loss_alone() -> None:
    x = _data().tensors[0]
    loader = DataLoader(TensorDataset(x, x[:, :1]), batch_size=8)
    learner = TorchLearner(nn.Linear(6, 1), loader, loader, nn.functional.mse_loss, _sgd)
    assert set(learner.evaluate(learner.parameters())) == {"loss"}


def test_own_metrics_join_those_measured() -> None:
    learner = _learner(metrics=lambda outputs, targets: {"rows": len(outputs), "top": targets.max()})
    assert learner.evaluate(learner.parameters()) | {"rows": 48.0, "top": 2.0} == learner.evaluate(
        learner.parameters()
    )


def test_an_own_fit_replaces_the_loop() -> None:
    def fit(model: Any, loader: Any) -> Any:
        with torch.no_grad():
            model[0].weight.add_(sum(len(y) for _, y in loader))
        return {"mine": 3}

    learner = _learner(loss=None, optimizer=None, fit=fit)
    start = learner.parameters()
    update = learner.fit(start, _rng())
    assert update.metrics == {"mine": 3.0}
    assert update.samples == 48
    np.testing.assert_allclose((update.parameters - start)[:48], 48, rtol=1e-5)
    assert set(learner.evaluate(start)) == {"accuracy"}
    with pytest.raises(ConfigError, match="needs loss and optimizer, or fit"):
        _learner(loss=None)


def test_a_private_head_stays_and_survives_a_restart() -> None:
    learner, other = _learner(share=["0.*", "1.*"]), _learner(_net(7), share=["0.*", "1.*"])
    theta = learner.fit(learner.parameters(), _rng()).parameters
    assert len(theta) == 56 + 32
    measured = learner.evaluate(theta)
    assert other.evaluate(theta) != measured
    other.restore(learner.state())
    assert other.evaluate(theta) == measured
    with pytest.raises(LearnerError, match="the model changed since it was saved"):
        _learner().restore(learner.state())


@pytest.mark.parametrize("make", [_sgd, lambda p: torch.optim.AdamW(p, lr=0.01)])
def test_an_optimizer_that_is_kept_survives_a_restart(make: Any) -> None:
    learner, other = (_learner(optimizer=make, reset_optimizer=False) for _ in range(2))
    middle = learner.fit(learner.parameters(), _rng(1)).parameters
    state = learner.state()
    end = learner.fit(middle, _rng(2)).parameters
    assert other.fit(middle, _rng(2)).parameters.tobytes() != end.tobytes()
    other.restore(state)
    assert other.fit(middle, _rng(2)).parameters.tobytes() == end.tobytes()


def test_an_optimizer_of_another_model_or_that_cannot_be_kept_is_refused() -> None:
    learner = _learner(optimizer=lambda p: torch.optim.Adam(p), reset_optimizer=False)
    learner.fit(learner.parameters(), _rng())
    wider = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(0.3), nn.Linear(9, 3))
    with pytest.raises(LearnerError, match="the model changed"):
        _learner(wider, reset_optimizer=False).restore(learner.state())


def test_an_optimizer_anew_each_round_forgets() -> None:
    learner, other = _learner(), _learner()
    middle = learner.fit(learner.parameters(), _rng(1)).parameters
    assert (
        learner.fit(middle, _rng(2)).parameters.tobytes() == other.fit(middle, _rng(2)).parameters.tobytes()
    )


def test_tied_weights_travel_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Linear(6, 6, bias=False)
            self.decode = nn.Linear(6, 6, bias=False)
            self.decode.weight = self.encode.weight

        def forward(self, x: Any) -> Any:
            return self.decode(self.encode(x))

    learner = _learner(Tied())
    assert len(learner.parameters()) == 36
    learner.evaluate(np.zeros(36, np.float32))


def test_other_precisions_travel_as_float32() -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        net = nn.Linear(6, 3).to(dtype)
        learner = _learner(net)
        theta = learner.parameters()
        assert theta.dtype == np.float32
        learner._tensors.adopt(theta)
        assert learner.parameters().tobytes() == theta.tobytes()


def test_read_only_vectors_serve() -> None:
    learner = _learner()
    theta = learner.parameters()
    theta.flags.writeable = False
    learner.evaluate(theta)


def test_a_round_that_diverged_can_be_tried_again() -> None:
    learner = _learner(optimizer=lambda p: torch.optim.SGD(p, lr=1e38), local_steps=20, share=["0.*"])
    start, state = learner.parameters(), learner.state()
    with pytest.raises(LearnerError, match="diverged"):
        learner.fit(start, _rng())
    assert learner.state() == state


def test_a_loader_without_batches_and_a_vector_of_another_model_are_errors() -> None:
    learner = _learner(train=DataLoader(_data(), batch_size=100, drop_last=True))
    with pytest.raises(LearnerError, match="gave no batch"):
        learner.fit(learner.parameters(), _rng())
    with pytest.raises(LearnerError, match="this model has 115"):
        learner.evaluate(np.zeros(114, np.float32))


def test_statistics_are_for_learners_that_hold_their_rows() -> None:
    assert len(_learner().statistics()) == 0
    _learner().standardise(np.zeros(0))
    with pytest.raises(LearnerError, match="reads its own data"):
        _learner().standardise(np.ones(3))


def test_the_schedule_scales_the_rate_and_does_not_compound() -> None:
    learner = _learner(nn.Linear(6, 3), train=[tuple(_data().tensors)], schedule=lambda p: 1 - p)
    start = learner.parameters()
    full = learner.fit(start, _rng()).parameters - start
    learner.progress = lambda: 0.75
    quarter = learner.fit(start, _rng()).parameters - start
    np.testing.assert_allclose(quarter, full / 4, rtol=1e-3, atol=1e-7)
    kept = _learner(
        nn.Linear(6, 3),
        train=[tuple(_data().tensors)],
        schedule=lambda p: 1 - p,
        reset_optimizer=False,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05),
    )
    kept.progress = lambda: 0.75
    kept.fit(start, _rng())
    np.testing.assert_allclose(kept.fit(start, _rng()).parameters - start, full / 4, rtol=1e-3, atol=1e-7)


@pytest.fixture(scope="module")
def digits() -> Any:
    return load("sklearn:digits")


@pytest.mark.slow
def test_a_small_cnn_learns_the_digits_and_all_sites_start_equal(digits: Dataset) -> None:
    options: dict[str, Any] = {"optimizer": OptimizerOptions(lr=0.05), "local_steps": 150, "seed": 3}
    learner = module_learner(digits, **options)
    torch.manual_seed(99)
    other = module_learner(part(digits, np.arange(100)), **options)
    start = learner.parameters()
    assert start.tobytes() == other.parameters().tobytes()
    assert len(start) == 16 * 9 + 16 + 32 * 16 * 9 + 32 + 10 * 128 + 10
    update = learner.fit(start, _rng())
    assert learner.evaluate(update.parameters)["accuracy"] > 0.93
    assert learner.fit(start, _rng()).parameters.tobytes() == update.parameters.tobytes()
    assert (
        learner.schema_hash()
        == other.schema_hash()
        != module_learner(digits, model=ModelOptions(kind="cnn", channels=(4, 4))).schema_hash()
    )


def test_a_cnn_sees_the_rows_standardised_by_the_federation(digits: Dataset) -> None:
    learner = module_learner(digits, standardise="federation", local_steps=2)
    with pytest.raises(LearnerError, match="call standardise"):
        learner.fit(learner.parameters(), _rng())
    sums = learner.statistics()
    assert sums.shape == (192,)
    learner.standardise(sums * 3)
    alone = module_learner(digits, standardise="site", local_steps=2)
    theta = alone.fit(alone.parameters(), _rng()).parameters
    np.testing.assert_allclose(learner.fit(learner.parameters(), _rng()).parameters, theta, atol=1e-6)


def test_images_are_taken_from_the_source_or_from_a_square_row(digits: Dataset) -> None:
    assert image_of(digits) == (1, 8, 8)
    assert cnn((3, 9, 7), 4)(torch.zeros(2, 189)).shape == (2, 4)
    with pytest.raises(ConfigError, match="13 features are none"):
        image_of(load("sklearn:wine"))


def test_batches_in_memory_are_full_when_shuffled_and_whole_when_not() -> None:
    x, y = torch.arange(10).float()[:, None], torch.arange(10)
    shuffled = list(TensorBatches(x, y, 4, shuffle=True))
    assert [len(b) for _, b in shuffled] == [4, 4, 4]
    assert set(torch.cat([b for _, b in shuffled])[:10].tolist()) == set(range(10))
    assert torch.cat([b for _, b in TensorBatches(x, y, 4, shuffle=False)]).tolist() == list(range(10))


def test_a_model_is_validated_in_eval_mode_on_training_batches_that_the_rng_draws() -> None:
    learner = _learner(train=DataLoader(_data(600), batch_size=16, shuffle=True))
    start = learner.parameters()
    trained = learner.fit(start, _rng()).parameters
    assert learner.validate(trained, _rng(1)) == learner.validate(trained, _rng(1))
    assert learner.validate(trained, _rng(1)) != learner.validate(trained, _rng(2))
    assert learner.validate(trained, _rng(1)) < learner.validate(start, _rng(1))
    # Neither the running means of the batch norm nor the global generator moved.
    np.testing.assert_array_equal(learner.parameters(), start)
    state = torch.get_rng_state()
    learner.validate(start, _rng())
    assert torch.equal(torch.get_rng_state(), state)
    assert learner.validate(np.full_like(start, np.inf), _rng()) == np.inf
    assert np.isnan(_learner(loss=None, optimizer=None, fit=lambda *_: None).validate(start, _rng()))
