from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from control_target import BETA, FakeTarget, served
from safetensors.numpy import load_file, save_file

from p2pfl import ledger
from p2pfl.cli.exits import Exit
from p2pfl.cli.main import main
from p2pfl.ids import PeerId
from p2pfl.learn import factory
from p2pfl.learn.flat import schema_of
from p2pfl.learn.learner import Site
from p2pfl.node.store import Store
from p2pfl.run import canonical, load, run_id
from p2pfl.trust import identity
from p2pfl.trust.certificates import issue_certificate
from p2pfl.trust.tickets import write_ticket


def p2pfl(home: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--home", str(home), *words])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node without a run."""
    folder = tmp_path / "home"
    assert p2pfl(folder, "node", "init", "--name", "alpha").exit_code == 0
    return folder


@pytest.fixture
def agreement(home: Path, tmp_path: Path) -> Path:
    """A run that this node has founded, with a numpy learner beside it."""
    assert p2pfl(home, "run", "new", "--from", "numpy", str(tmp_path / "ward")).exit_code == 0
    return tmp_path / "ward" / "run.toml"


@pytest.fixture(autouse=True)
def own_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test imports its own learner.py, and leaves the path as it was."""
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "learner", raising=False)


def test_a_new_run_is_founded_by_this_node(home: Path, agreement: Path) -> None:
    spec = load(agreement)
    assert spec.trust.founders == (identity.load(home / "identity.key").peer_id,)
    assert (spec.run.name, spec.run.members_at_start, spec.trust.quorum) == ("ward", 2, 1)


def test_a_new_run_never_overwrites(home: Path, agreement: Path) -> None:
    text = agreement.read_text()
    assert p2pfl(home, "run", "new", str(agreement.parent)).exit_code == Exit.USAGE
    assert agreement.read_text() == text


def test_without_a_node_a_new_run_has_no_founder_and_says_so(tmp_path: Path) -> None:
    result = p2pfl(tmp_path / "none", "run", "new", str(tmp_path / "r"))
    assert result.exit_code == 0
    assert "trust.founders" in result.stderr
    assert load(tmp_path / "r" / "run.toml").trust.founders == ()


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "sklearn", "numpy"])
def test_every_starter_trains_before_it_is_edited(tmp_path: Path, framework: str) -> None:
    assert p2pfl(tmp_path / "none", "run", "new", "--from", framework, str(tmp_path / "r")).exit_code == 0
    result = p2pfl(tmp_path / "none", "run", "check", str(tmp_path / "r" / "run.toml"), "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["share_bytes"] == 4 * said["parameters"]
    assert said["samples"] == 300
    assert said["metrics"]["accuracy"] > 0


def test_the_numpy_starter_learns_what_its_rows_hold(agreement: Path) -> None:
    import sys

    sys.path.insert(0, str(agreement.parent))
    spec = load(agreement)
    learner = factory.build(factory.resolve(spec.learner), Site(name="alpha", seed=1, options=spec.learner))
    theta = learner.parameters()
    for number in range(10):
        theta = learner.fit(theta, np.random.default_rng(number)).parameters
    assert learner.evaluate(theta)["accuracy"] > 0.85


def test_a_run_may_start_from_a_model_named_by_its_digest(home: Path, tmp_path: Path) -> None:
    first = tmp_path / "first.safetensors"
    save_file({"theta": np.arange(21, dtype=np.float32) / 100}, first)
    folder = tmp_path / "warm"
    assert p2pfl(home, "run", "new", "--from", "numpy", "--init", str(first), str(folder)).exit_code == 0
    assert hashlib.sha256(first.read_bytes()).hexdigest() in (folder / "learner.py").read_text()
    import sys

    sys.path.insert(0, str(folder))
    learner = factory.resolve(load(folder / "run.toml").learner)(Site(name="alpha"))
    assert np.array_equal(learner.parameters(), np.arange(21, dtype=np.float32) / 100)
    save_file({"theta": np.zeros(21, np.float32)}, folder / "init.safetensors")
    with pytest.raises(ValueError, match="not the model this run starts from"):
        factory.resolve(load(folder / "run.toml").learner)(Site(name="alpha"))


def test_a_torch_run_may_start_from_a_model(home: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_tensors

    model = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    save_tensors(model.state_dict(), tmp_path / "first.safetensors")
    folder = tmp_path / "warm"
    words = ["run", "new", "--from", "torch", "--init", str(tmp_path / "first.safetensors"), str(folder)]
    assert p2pfl(home, *words).exit_code == 0
    assert p2pfl(home, "run", "check", str(folder / "run.toml")).exit_code == 0


def test_a_sklearn_run_cannot_start_from_a_model_and_says_why(home: Path, tmp_path: Path) -> None:
    first = tmp_path / "first.safetensors"
    save_file({"theta": np.zeros(3, np.float32)}, first)
    result = p2pfl(home, "run", "new", "--from", "sklearn", "--init", str(first), str(tmp_path / "r"))
    assert result.exit_code == Exit.USAGE
    assert not (tmp_path / "r").exists()


def test_check_reckons_bytes_memory_and_time(home: Path, agreement: Path) -> None:
    said = json.loads(p2pfl(home, "run", "check", str(agreement), "--json").stdout)
    # 21 parameters, two members: one neighbour each way.
    assert said["bytes_sent_per_round"] == 84
    assert said["inbox_bytes"] == 2 * 84
    assert said["rounds_in_all"] == 53
    assert said["run_id"] == run_id(load(agreement))
    assert 0 < said["seconds_per_round"] < 10


def test_check_says_how_fast_the_plan_mixes(home: Path, agreement: Path) -> None:
    assert "mixing      spectral gap 1\n" in p2pfl(home, "run", "check", str(agreement)).stdout


def test_check_says_what_a_small_spectral_gap_means(home: Path, agreement: Path) -> None:
    text = agreement.read_text().replace('"exponential"', '"ring"')
    agreement.write_text(text.replace("members_at_start = 2", "members_at_start = 40"))
    said = json.loads(p2pfl(home, "run", "check", str(agreement), "--json").stdout)
    gap = 1 - (1 + 2 * np.cos(2 * np.pi / 40)) / 3
    assert said["spectral_gap"] == pytest.approx(gap)
    assert said["rounds_to_halve"] == pytest.approx(np.log(2) / gap, rel=0.01)
    words = p2pfl(home, "run", "check", str(agreement)).stdout
    assert f"small: it takes {said['rounds_to_halve']:.0f} rounds until models are half as far apart" in words


def test_check_refuses_averaging_that_would_not_converge(home: Path, agreement: Path) -> None:
    text = agreement.read_text().replace(
        '"exponential"', '"explicit", directed = true, edges = [[0,1],[1,2],[2,0],[0,2]]'
    )
    agreement.write_text(
        text.replace('"push-sum"', '"d-psgd"').replace("members_at_start = 2", "members_at_start = 3")
    )
    result = p2pfl(home, "run", "check", str(agreement))
    assert result.exit_code == Exit.USAGE
    assert "d-psgd" in result.stderr


def test_check_refuses_a_graph_that_leaves_somebody_out(home: Path, agreement: Path) -> None:
    text = agreement.read_text().replace(
        '"exponential"', '"explicit", directed = true, edges = [[0,1],[1,0],[0,2]]'
    )
    agreement.write_text(text.replace("members_at_start = 2", "members_at_start = 3"))
    result = p2pfl(home, "run", "check", str(agreement))
    assert result.exit_code == Exit.USAGE
    assert "not strongly connected" in result.stderr
    assert "nothing of site 2 ever reaches the others" in result.stderr


def test_check_names_who_a_lopsided_graph_starves_and_what_helps(home: Path, agreement: Path) -> None:
    edges = [[i, j] for i in range(9) for j in sorted({0, min(i + 1, 8)} - {i})]
    text = agreement.read_text().replace('"exponential"', f'"explicit", directed = true, edges = {edges}')
    text = text.replace("members_at_start = 2", "members_at_start = 9")
    agreement.write_text(text)
    result = p2pfl(home, "run", "check", str(agreement))
    assert "less than a twentieth of their weight to site 7, site 8" in result.stderr
    assert "push-pull" in result.stderr
    agreement.write_text(text.replace('"push-sum"', '"push-pull"'))
    result = p2pfl(home, "run", "check", str(agreement), "--json")
    assert "twentieth" not in result.stderr
    # The model and the tracker of 21 parameters, to two neighbours.
    assert json.loads(result.stdout)["bytes_sent_per_round"] == 2 * 2 * 84


def test_check_refuses_what_does_not_fit_in_memory(home: Path, agreement: Path) -> None:
    code = (agreement.parent / "learner.py").read_text()
    big = code.replace("np.zeros(x.shape[1] + 1, np.float32)", "np.zeros(300_000, np.float32)")
    fit = "return p2pfl.Update(parameters=parameters, samples=self.samples())\n        theta, (x"
    (agreement.parent / "learner.py").write_text(
        big.replace("theta, (x", fit, 1).replace("x, y = self.test\n", "return {}\n")
    )
    node = home / "node.toml"
    node.write_text(node.read_text().replace("memory_mb = 4096", "memory_mb = 2"))
    result = p2pfl(home, "run", "check", str(agreement))
    assert result.exit_code == Exit.USAGE
    assert "limits.memory_mb" in result.stderr
    node.write_text(node.read_text().replace("memory_mb = 2", "memory_mb = 3"))
    assert p2pfl(home, "run", "check", str(agreement)).exit_code == 0


def test_check_says_what_the_learner_got_wrong(home: Path, agreement: Path) -> None:
    file = agreement.parent / "learner.py"
    file.write_text(file.read_text().replace("theta[-1] -= 0.1 * error.mean()", "theta[-1] = np.inf"))
    result = p2pfl(home, "run", "check", str(agreement))
    assert result.exit_code == Exit.FAILED
    assert "NaN" in result.stderr or "infinite" in result.stderr


def test_hash_is_the_same_however_the_file_is_laid_out(home: Path, agreement: Path, tmp_path: Path) -> None:
    from p2pfl.run import write_toml

    other = tmp_path / "other.toml"
    other.write_text(write_toml(json.loads(canonical(load(agreement)))))
    first, second = (p2pfl(home, "run", "hash", str(path)).stdout for path in (agreement, other))
    assert first == second == run_id(load(agreement)) + "\n"


def test_joining_shows_the_terms_and_needs_consent(home: Path, agreement: Path) -> None:
    result = p2pfl(home, "run", "join", str(agreement))
    assert result.exit_code == Exit.USAGE
    assert "--yes" in result.stderr
    for word in ("shared", "rounds", "learner", "trust", "privacy", "founder"):
        assert word in result.stderr
    assert not (home / "run.toml").exists()


def test_a_founder_joins_without_a_ticket(home: Path, agreement: Path) -> None:
    result = p2pfl(home, "run", "join", str(agreement), "--yes", "--json")
    assert json.loads(result.stdout)["capacity"] == "founder"
    assert (home / "run.toml").read_text() == agreement.read_text()
    assert json.loads(p2pfl(home, "run", "hash", "--json").stdout)["run_id"] == run_id(load(agreement))


def test_a_stranger_without_a_ticket_is_told_what_to_ask_for(tmp_path: Path, agreement: Path) -> None:
    p2pfl(tmp_path / "b", "node", "init")
    result = p2pfl(tmp_path / "b", "run", "join", str(agreement), "--yes")
    assert result.exit_code == Exit.REFUSED
    assert f"trust invite {identity.load(tmp_path / 'b' / 'identity.key').peer_id}" in result.stderr


def ticket_for(home: Path, agreement: Path, subject: str, founder: identity.Identity | None = None) -> str:
    certificate = issue_certificate(
        founder or identity.load(home / "identity.key"),
        run=run_id(load(agreement)),
        subject=PeerId(subject),
        now=1_700_000_000,
        nonce=bytes(16),
    )
    return write_ticket(certificate, ["/ip4/10.0.0.1/tcp/4911/p2p/" + subject])


def test_a_ticket_admits_its_subject_and_brings_addresses(
    home: Path, agreement: Path, tmp_path: Path
) -> None:
    other = tmp_path / "b"
    p2pfl(other, "node", "init")
    mine = identity.load(other / "identity.key").peer_id
    ticket = ticket_for(home, agreement, mine)
    result = p2pfl(
        other, "run", "join", str(agreement), "--ticket", ticket, "--yes", "--bootstrap", "/ip4/1.2.3.4/tcp/5"
    )
    assert result.exit_code == 0, result.stderr
    assert (other / "ticket").read_text().strip() == ticket
    assert "/ip4/10.0.0.1/tcp/4911" in (other / "node.toml").read_text()
    assert "/ip4/1.2.3.4/tcp/5" in (other / "node.toml").read_text()


def test_a_ticket_of_another_key_run_or_founder_is_refused(
    home: Path, agreement: Path, tmp_path: Path
) -> None:
    other = tmp_path / "b"
    p2pfl(other, "node", "init")
    mine = identity.load(other / "identity.key").peer_id
    stolen = ticket_for(home, agreement, BETA)
    forged = ticket_for(home, agreement, mine, identity.Identity(bytes(32)))
    good = ticket_for(home, agreement, mine)
    for ticket, reason in ((stolen, "this node is"), (forged, "must countersign")):
        result = p2pfl(other, "run", "join", str(agreement), "--ticket", ticket, "--yes")
        assert (result.exit_code, reason in result.stderr) == (Exit.REFUSED, True), result.stderr
    agreement.write_text(agreement.read_text().replace("rounds = 50", "rounds = 51"))
    result = p2pfl(other, "run", "join", str(agreement), "--ticket", good, "--yes")
    assert result.exit_code == Exit.REFUSED
    assert "word for word" in result.stderr
    assert not (other / "run.toml").exists()
    damaged = p2pfl(other, "run", "join", str(agreement), "--ticket", good[:-4], "--yes")
    assert damaged.exit_code == Exit.USAGE


def test_joining_another_run_drops_the_old_ticket_and_waits_for_the_node(
    home: Path, agreement: Path, tmp_path: Path
) -> None:
    assert p2pfl(home, "run", "join", str(agreement), "--yes").exit_code == 0
    (home / "ticket").write_text(ticket_for(home, agreement, BETA))
    agreement.write_text(agreement.read_text().replace("rounds = 50", "rounds = 51"))
    with served(home):
        assert p2pfl(home, "run", "join", str(agreement), "--yes").exit_code == Exit.USAGE
    result = p2pfl(home, "run", "join", str(agreement), "--yes")
    assert result.exit_code == 0
    assert "without handing over" in result.stderr
    assert not (home / "ticket").exists()


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_pause_and_resume_reach_the_node(home: Path, verb: str) -> None:
    target = FakeTarget()
    with served(home, target):
        assert p2pfl(home, "run", verb).exit_code == 0
    assert target.commands == [(verb, {})]


def test_leaving_needs_consent(home: Path) -> None:
    target = FakeTarget()
    with served(home, target):
        assert p2pfl(home, "run", "leave").exit_code == Exit.USAGE
        assert target.commands == []
        assert p2pfl(home, "run", "leave", "--yes").exit_code == 0
    assert target.commands == [("leave", {})]


def committed(home: Path, agreement: Path, w: float) -> None:
    """A disk that holds x = w * (0, 1, 2, ...) of `agreement`."""
    x = np.float32(w) * np.arange(21, dtype=np.float32)
    book = ledger.Ledger(run=run_id(load(agreement)), me="me", incarnation=1, w=w, round=9)
    with Store.open(home) as store:
        store.commit(run_id(load(agreement)), ledger.write(book, x, None, ledger.Pool()), (), 1.0)


def test_a_stopped_node_exports_the_debiased_model(home: Path, agreement: Path, tmp_path: Path) -> None:
    p2pfl(home, "run", "join", str(agreement), "--yes")
    committed(home, agreement, 0.25)
    file = tmp_path / "model.safetensors"
    said = json.loads(p2pfl(home, "run", "export", "-o", str(file), "--json").stdout)
    assert said["round"] == 9
    assert np.allclose(load_file(file)["parameters"], np.arange(21))
    assert said["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert p2pfl(home, "run", "export", "-o", str(file)).exit_code == Exit.FAILED


def test_an_export_carries_the_names_that_the_learner_gave(
    home: Path, agreement: Path, tmp_path: Path
) -> None:
    p2pfl(home, "run", "join", str(agreement), "--yes")
    committed(home, agreement, 1.0)
    schema = schema_of({"w": np.zeros((4, 5), np.float32), "b": np.zeros(1, np.float32)})
    with Store.open(home) as store:
        store.put(f"schema:{run_id(load(agreement))}", msgspec.json.encode(schema))
    assert p2pfl(home, "run", "export", "-o", str(tmp_path / "m.safetensors")).exit_code == 0
    tensors = load_file(tmp_path / "m.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {"w": (4, 5), "b": (1,)}


def test_a_running_node_writes_the_export_itself(home: Path, agreement: Path, tmp_path: Path) -> None:
    p2pfl(home, "run", "join", str(agreement), "--yes")
    target, file = FakeTarget(), tmp_path / "m.safetensors"
    target.answer = {"digest": "ab" * 32, "round": 3}
    with served(home, target):
        said = json.loads(p2pfl(home, "run", "export", "-o", str(file), "--json").stdout)
    assert target.commands == [("export", {"path": str(file)})]
    assert (said["round"], said["sha256"], said["bytes"]) == (3, "ab" * 32, 7)


def test_there_is_nothing_to_export_before_the_first_round(
    home: Path, agreement: Path, tmp_path: Path
) -> None:
    file = str(tmp_path / "model.safetensors")
    assert p2pfl(home, "run", "export", "-o", file).exit_code == Exit.USAGE
    p2pfl(home, "run", "join", str(agreement), "--yes")
    assert p2pfl(home, "run", "export", "-o", file).exit_code == Exit.FAILED
