"""The page: one file, nothing of the outside in it, and nothing in it that a name could become."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from p2pfl.errors import StoreError
from p2pfl.simulations import comparison, report, scenario, sweep

_TOML = """
[run]
rounds = 3
closing_rounds = 1

[learner]
local_steps = 1
data = { source = "sklearn:wine" }
model = { kind = "logistic" }

[simulation]
engine = "population"
peers = 3
baselines = false

[simulation.grid]
"learner.optimizer.lr" = [0.1, 0.2]
"""
_HOSTILE = "</script><script>alert(1)</script><!-- \u2028 & '\""


class _Page(HTMLParser):
    """The elements of a page, with their attributes and the text directly in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See HTMLParser."""
        self.elements.append((tag, dict(attrs), []))

    def handle_data(self, data: str) -> None:
        """See HTMLParser."""
        if self.elements:
            self.elements[-1][2].append(data)

    def handle_endtag(self, tag: str) -> None:
        """See HTMLParser; what follows is no text of the element."""
        self.elements.append(("", {}, []))

    def named(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        """(attributes, text) of each `tag`."""
        return [(attributes, "".join(text)) for name, attributes, text in self.elements if name == tag]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Sequence[dict[str, Any]]:
    """The verdicts of two cells under two seeds, in a folder."""
    folder = tmp_path_factory.mktemp("study")
    path = folder / "study.toml"
    path.write_text(_TOML)
    return sweep.run(sweep.trials(scenario.load(str(path)), (0, 1)), folder=folder)


def _events(kept: Sequence[dict[str, Any]], name: str = "study") -> list[dict[str, Any]]:
    axes = {"lr": ["0.1", "0.2"]}
    return report.study_events(kept, scenario=name, axes=axes, outcomes=[], command=f"p2pfl simulate {name}")


def test_a_page_holds_the_rounds_of_every_trial_under_its_cell(kept: Sequence[dict[str, Any]]) -> None:
    head, *events = _events(kept)
    assert [one["label"] for one in head["groups"]] == ["lr 0.1", "lr 0.2"]
    assert head["seeds"] == [0, 1]
    for name, times in (("run began", 1), ("round", 4), ("run finished", 1)):
        found = [(event["group"], event["seed"]) for event in events if event["event"] == name]
        assert found == [place for place in ((0, 0), (0, 1), (1, 0), (1, 1)) for _ in range(times)]
    # A cell's graph is told once.
    assert ["graph" in event for event in events if event["event"] == "run began"] == [True, False] * 2


def test_a_page_refers_to_nothing_outside_itself(kept: Sequence[dict[str, Any]]) -> None:
    text = report.page(_events(kept), "study")
    assert re.findall(r"[a-z]+://", text) == []
    page = _Page(text)
    places = [
        value
        for _, attributes, _ in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action", "style") or name.startswith("on")
    ]
    assert places == ["data:,"]
    assert "url(" not in text
    assert "@import" not in text


def test_the_policy_allows_these_scripts_and_this_style_and_nothing_else(
    kept: Sequence[dict[str, Any]],
) -> None:
    page = _Page(report.page(_events(kept), "study"))
    [policy] = [
        attributes["content"]
        for attributes, _ in page.named("meta")
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    executed = [text for attributes, text in page.named("script") if "type" not in attributes]
    assert len(executed) == 6

    def hashes(texts: list[str]) -> list[str]:
        digests = (hashlib.sha256(text.encode()).digest() for text in texts)
        return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]

    assert rules["script-src"] == hashes(executed)
    assert rules["style-src"] == hashes([text for _, text in page.named("style")])
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == ["'none'"]
    assert not any("unsafe" in word for words in rules.values() for word in words)


def test_no_name_becomes_markup(kept: Sequence[dict[str, Any]]) -> None:
    events = _events(kept, _HOSTILE)
    text = report.page(events, _HOSTILE)
    page = _Page(text)
    assert len(page.named("script")) == 7
    assert page.named("title")[0][1] == _HOSTILE
    [data] = [text for attributes, text in page.named("script") if attributes.get("id") == "events"]
    assert json.loads(data) == events
    assert "alert(1)<" not in text
    assert "\u2028" not in data


def test_the_same_results_give_the_same_page_byte_for_byte(
    kept: Sequence[dict[str, Any]], tmp_path: Path
) -> None:
    path = Path(kept[0]["file"]).parent / "study.toml"
    todo = sweep.trials(scenario.load(str(path)), (0, 1))
    again = sweep.run(todo, folder=path.parent)
    first = report.write(tmp_path / "first.html", _events(kept))
    second = report.write(tmp_path / "second.html", _events(again))
    assert first.read_bytes() == second.read_bytes()


def test_many_rounds_are_thinned_and_both_ends_stay(
    kept: Sequence[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_ROUNDS", 8)
    monkeypatch.setattr(report, "_LEAST_ROUNDS", 2)
    rounds = [event for event in _events(kept) if event["event"] == "round"]
    assert [event["round"] for event in rounds] == [0, 3] * 4


def test_two_folders_are_drawn_over_each_other(kept: Sequence[dict[str, Any]], tmp_path: Path) -> None:
    side = comparison.read(Path(kept[0]["file"]).parent)
    rows = comparison.compare(side, side)
    head, *events = report.comparison_events(
        rows, ("a", "b"), (side, side), command="p2pfl simulate compare a b"
    )
    assert [one["label"] for one in head["groups"]] == [
        f"{side}, study, lr {lr}" for lr in ("0.1", "0.2") for side in ("a", "b")
    ]
    assert {event["group"] for event in events} == {0, 1, 2, 3}
    assert [row["difference"] for row in head["rows"]] == [0.0, 0.0]
    assert "a and b" in report.write(tmp_path / "report.html", [head, *events]).read_text()


def test_results_without_events_still_make_a_page(kept: Sequence[dict[str, Any]], tmp_path: Path) -> None:
    moved = [{**verdict, "file": str(tmp_path / "gone.json")} for verdict in kept]
    assert [event["event"] for event in _events(moved)] == ["report"]


def test_a_damaged_event_file_is_named_with_the_cure(kept: Sequence[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("[1]\n")
    with pytest.raises(StoreError, match=r"bad\.jsonl is no event file.*--fresh"):
        _events([{**kept[0], "file": str(tmp_path / "bad.json")}])
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(StoreError, match=r"bad\.jsonl cannot be read.*--fresh"):
        _events([{**kept[0], "file": str(tmp_path / "bad.json")}])
