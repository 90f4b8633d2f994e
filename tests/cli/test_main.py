from __future__ import annotations

import importlib.util
import json
import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from p2pfl import errors
from p2pfl.cli.client import ControlClient
from p2pfl.cli.exits import EXIT_CODES, Exit, problem_of
from p2pfl.cli.main import COMMANDS, main
from p2pfl.cli.terminal import columns

PROGRAM = [sys.executable, "-c", "from p2pfl.cli.main import main; main()"]


def every_command() -> list[tuple[str, ...]]:
    """The words of every command there is, groups included."""
    found: list[tuple[str, ...]] = [()]
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        found.append((name,))
        if isinstance(command, click.Group):
            found += [(name, inner) for inner in command.commands]
    return found


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_command_explains_itself_with_an_example(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*words, "--help"])
    assert result.exit_code == 0
    assert "Example: p2pfl" in result.stdout
    assert result.stdout == CliRunner().invoke(main, [*words, "-h"]).stdout


def test_the_short_help_of_a_lazy_command_is_its_own_first_line() -> None:
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        assert (command.help or "").startswith(COMMANDS[name][1].rstrip(".")), name


def test_help_lists_every_command_whose_file_exists_and_no_other() -> None:
    text = CliRunner().invoke(main, ["--help"]).stdout
    for name, (place, line) in COMMANDS.items():
        exists = importlib.util.find_spec(place.partition(":")[0]) is not None
        assert (line[:40] in text.replace("\n", " ")) == exists, name


def test_help_prints_every_exit_code() -> None:
    text = CliRunner().invoke(main, ["--help"]).stdout
    for code, meaning in EXIT_CODES.items():
        assert f"{int(code):<5}{meaning}" in text
    assert set(EXIT_CODES) == set(Exit)


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from p2pfl.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'libp2p', 'numpy', 'trio', 'httpx', 'rich', 'starlette'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    # The processor's time, the best of three: other work on the machine is not the command's.
    seconds = []
    for _ in range(3):
        began = processor_s()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
        seconds.append(processor_s() - began)
    assert min(seconds) < 0.3


def processor_s() -> float:
    """What the processes that this one has waited for took so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_version_names_the_distribution() -> None:
    assert CliRunner().invoke(main, ["--version"]).stdout.startswith("p2pfl 0.")


@pytest.mark.parametrize(
    ("error", "code", "exit_"),
    [
        (errors.ConfigError("a; b"), "config", Exit.USAGE),
        (errors.NotRunningError("a; b"), "not-running", Exit.NOT_RUNNING),
        (errors.UnreachableError("a; b"), "unreachable", Exit.UNREACHABLE),
        (errors.RefusedError("a; b"), "refused", Exit.REFUSED),
        (errors.RemoteError("a; b"), "remote", Exit.FAILED),
        (errors.LearnerError("a; b"), "learner", Exit.FAILED),
        (errors.StoreError("a; b"), "store", Exit.FAILED),
        (errors.AggregationError("a; b"), "failed", Exit.FAILED),
        (errors.LocalError("a; b"), "failed", Exit.FAILED),
        (errors.P2PFLError("a; b"), "failed", Exit.FAILED),
        (ExceptionGroup("", [ExceptionGroup("", [errors.StoreError("a; b")])]), "store", Exit.FAILED),
        (ExceptionGroup("", [OSError(), errors.RefusedError("a; b")]), "refused", Exit.REFUSED),
    ],
)
def test_every_error_has_its_word_its_hint_and_its_exit_code(
    error: Exception, code: str, exit_: Exit
) -> None:
    problem = problem_of(error)
    assert (problem.code, problem.exit, problem.message, problem.hint) == (code, exit_, "a", "b")


def test_every_error_of_the_tree_is_mapped() -> None:
    for name in errors.__all__:
        assert problem_of(getattr(errors, name)("what; cure")).exit in list(Exit)


def test_errors_are_two_lines_on_stderr_without_a_traceback(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--home", str(tmp_path), "status"])
    assert result.exit_code == Exit.NOT_RUNNING
    assert result.stdout == ""
    assert result.stderr == (
        f"error: no node runs in {tmp_path}\nhint: `p2pfl --home {tmp_path} node start` starts it\n"
    )


def test_with_json_an_error_is_one_object_on_stderr(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["status", "--json", "--home", str(tmp_path)])
    said = json.loads(result.stderr)
    assert said["v"] == 1
    assert said["error"]["code"] == "not-running"
    assert said["exit"] == result.exit_code == 3


def test_a_wrong_flag_is_usage_and_points_at_help() -> None:
    result = CliRunner().invoke(main, ["status", "--colour"])
    assert result.exit_code == Exit.USAGE
    assert "`p2pfl status --help` shows what it takes" in result.stderr
    as_json = CliRunner().invoke(main, ["status", "--colour", "--json"])
    assert json.loads(as_json.stderr)["error"]["code"] == "usage"


def test_an_unexpected_error_shows_its_traceback_only_when_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(ControlClient, "get", broken)
    calm = CliRunner().invoke(main, ["status", "--home", str(tmp_path)])
    loud = CliRunner().invoke(main, ["status", "-vv", "--home", str(tmp_path)])
    assert calm.exit_code == loud.exit_code == Exit.FAILED
    assert "unexpected KeyError" in calm.stderr
    assert "Traceback" not in calm.stderr
    assert "Traceback" in loud.stderr


def test_global_flags_are_taken_before_and_after_the_command(tmp_path: Path) -> None:
    for words in (
        ["--home", str(tmp_path), "--json", "status"],
        ["status", "--json", "--home", str(tmp_path)],
    ):
        assert str(tmp_path) in json.loads(CliRunner().invoke(main, words).stderr)["error"]["message"]


def test_the_home_comes_from_the_flag_before_the_environment(tmp_path: Path) -> None:
    environment = {"P2PFL_HOME": str(tmp_path / "env")}
    by_env = CliRunner().invoke(main, ["status"], env=environment)
    by_flag = CliRunner().invoke(
        main, ["--home", str(tmp_path / "flag"), "--node", "b", "status"], env=environment
    )
    assert str(tmp_path / "env") in by_env.stderr
    assert str(tmp_path / "flag" / "b") in by_flag.stderr


@pytest.mark.slow
def test_the_other_project_of_this_name_is_refused_with_the_cure(tmp_path: Path) -> None:
    foreign = tmp_path / "site" / "p2pfl-0.4.3.dist-info"
    foreign.mkdir(parents=True)
    (foreign / "METADATA").write_text("Metadata-Version: 2.1\nName: p2pfl\nVersion: 0.4.3\n")
    environment = {"PYTHONPATH": str(foreign.parent), "P2PFL_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*PROGRAM, *words], env=environment, capture_output=True, text=True, timeout=60)

    refused = run("node", "init")
    assert refused.returncode == Exit.USAGE
    assert "another project named p2pfl (0.4.3)" in refused.stderr
    assert "pip uninstall p2pfl" in refused.stderr
    assert not (tmp_path / "node.toml").exists()
    explained = run("doctor", "--offline")
    assert explained.returncode == Exit.FAILED
    assert "pip uninstall p2pfl" in explained.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert "_P2PFL_COMPLETE" in result.stdout


def test_completion_offers_commands_below_a_lazy_group() -> None:
    environment = {"_P2PFL_COMPLETE": "bash_complete", "COMP_WORDS": "p2pfl node ", "COMP_CWORD": "2"}
    result = subprocess.run(
        PROGRAM, env={**environment, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60
    )
    assert "plain,init" in result.stdout


def test_columns_line_up_and_mark_what_is_missing() -> None:
    assert columns([("a", None), ("bbb", 2)], ("n", "x")).splitlines() == ["n    x", "a    -", "bbb  2"]
