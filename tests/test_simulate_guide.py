"""The commands of docs/simulate.md, as a new user types them."""

from __future__ import annotations

import json
from pathlib import Path

import guide
import pytest

PAGE = (Path(__file__).parents[1] / "docs/simulate.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_less_than_ten_lines_are_a_report_and_two_reports_are_compared(tmp_path: Path) -> None:
    [(name, text)] = guide.files(PAGE).items()
    assert sum(bool(line.strip()) for line in text.splitlines()) < 10
    (tmp_path / name).write_text(text)
    page = guide.Guide(folder=tmp_path)
    first, *others = guide.commands(PAGE)
    done = page.do(first)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert done.stdout.splitlines()[-1].split() == ["report", str(tmp_path / "results/report.html")]
    for step in others:
        done = page.do(step)
        assert done.returncode == 0, (step, done.stdout, done.stderr)
    [events] = (tmp_path / "results").glob("*.jsonl")
    rounds = [
        event for event in map(json.loads, events.read_text().splitlines()) if event["event"] == "round"
    ]
    assert rounds[-1]["consensus_distance"] < rounds[0]["consensus_distance"]
    assert rounds[-1]["metric"]["mean"] > rounds[0]["metric"]["mean"]
    assert (tmp_path / "both/report.html").stat().st_size > 10_000
