"""Reports: one HTML file without a single reference outside itself, that draws what trials were like.

The page is the dashboard of p2pfl/node/dashboard.  There, three kinds of static files are served; here they
are written into one, with the events in a block of data that no browser executes, and a content security
policy that allows exactly these scripts and this style, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from p2pfl.errors import StoreError

from . import event_file, summary
from .grid import shown
from .recorder import VERSION
from .run_card import evenly

__all__ = ["comparison_events", "page", "rounds_of", "study_events", "write"]

_Event = dict[str, Any]
# Rounds in a page, over all trials: 2 MB, which opens at once.  A trial keeps a dozen at least.
_ROUNDS = 12_000
_LEAST_ROUNDS = 12
# Trials whose warnings and single peers' curves are in a page.
_FEW_TRIALS = 8
# Groups of which each has its graph drawn.
_GRAPHS = 64
# Of a cell's summary, what the page shows.
_SUMMARY = (
    "cell",
    "metric",
    "pooled",
    "alone",
    "reference",
    "backdoor",
    "knowledge",
    "compute",
    "consensus_distance",
    "mass",
    "bytes_sent",
    "bytes_per_peer_round",
    "wall_s",
    "peers",
    "byzantine",
    "bounds_broken",
    "online_loss",
)


def study_events(
    verdicts: Sequence[Mapping[str, Any]],
    *,
    scenario: str,
    axes: Mapping[str, Sequence[str]],
    outcomes: Sequence[Mapping[str, Any]],
    command: str,
) -> list[_Event]:
    """What the page on one scenario is drawn from.   verdicts: with `file`, beside which their events are."""
    cells = summary.cells(verdicts)
    places = [cell["cell"] for cell in cells]
    groups = [{**_short(cell), "label": shown(cell["cell"]) or scenario} for cell in cells]
    head = _head(verdicts, kind="study", title=scenario, command=command)
    head |= {
        "groups": groups,
        "axes": {axis: list(cases) for axis, cases in axes.items()},
        "expectations": list(outcomes),
        "is_lower_better": summary.is_lower_better(cells[0]["metric"]["name"]),
    }
    placed = [(places.index(verdict["cell"]), verdict) for verdict in verdicts]
    return [head, *_recorded(placed)]


def comparison_events(
    rows: Sequence[Mapping[str, Any]],
    names: tuple[str, str],
    sides: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]],
    *,
    command: str,
) -> list[_Event]:
    """What the page on two folders is drawn from.   rows: as comparison.py gives them."""
    groups: list[_Event] = []
    placed: list[tuple[int, Mapping[str, Any]]] = []
    for row in rows:
        for side, name, verdicts in zip(("first", "second"), names, sides, strict=True):
            if row[side] is None:
                continue
            label = ", ".join(filter(None, (name, row["scenario"], shown(row["cell"]))))
            placed += [
                (len(groups), verdict)
                for verdict in verdicts
                if verdict["scenario"] == row["scenario"] and verdict["cell"] == row["cell"]
            ]
            groups.append({**_short(row[side]), "cell": row["cell"], "label": label})
    every = [*sides[0], *sides[1]]
    head = _head(every, kind="comparison", title=" and ".join(names), command=command)
    head |= {
        "groups": groups,
        "axes": {},
        "expectations": [],
        "is_lower_better": summary.is_lower_better(every[0]["metric"]["name"]),
        "names": list(names),
        "rows": [
            {
                "label": ", ".join(filter(None, (row["scenario"], shown(row["cell"])))),
                "metric": next(row[side]["metric"]["name"] for side in ("first", "second") if row[side]),
                "first": _short(row["first"]) if row["first"] else None,
                "second": _short(row["second"]) if row["second"] else None,
                "seeds": row["seeds"],
                "difference": row["difference"],
                "interval": row["interval"],
            }
            for row in rows
        ],
    }
    return [head, *_recorded(placed)]


def rounds_of(verdict: Mapping[str, Any]) -> Iterable[_Event]:
    """The recorded rounds of a trial.  Raises StoreError."""
    return (event for event in _events_of(verdict) if event.get("event") == "round")


def page(events: Sequence[Mapping[str, Any]], title: str) -> str:
    """The page that draws `events`, whole: scripts, style and data inlined."""
    folder = resources.files("p2pfl.node") / "dashboard"
    text = (folder / "index.html").read_text(encoding="utf-8")
    scripts = [_inline(folder, name) for name in re.findall(r'<script src="([\w.]+)" defer></script>', text)]
    styles = [_inline(folder, name) for name in re.findall(r'<link rel="stylesheet" href="([\w.]+)">', text)]
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none';"
        f" script-src {' '.join(map(_source, scripts))}; style-src {' '.join(map(_source, styles))}"
    )
    text = re.sub(r'\n *<(?:script src|link rel="stylesheet")[^\n]*', "", text)
    text = re.sub(r"<title>[^<]*</title>", lambda _: f"<title>{html.escape(title)}</title>", text)
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    text = text.replace("<title>", head + "<title>", 1)
    text = text.replace("</head>", "".join(f"<style>{style}</style>\n" for style in styles) + "</head>", 1)
    data = _data(events)
    end = f'<script type="application/json" id="events">{data}</script>\n'
    end += "".join(f"<script>{script}</script>\n" for script in scripts)
    return text.replace("</body>", end + "</body>", 1)


def write(path: Path, events: Sequence[Mapping[str, Any]]) -> Path:
    """Make `path` the page on `events`, whole or not at all.  Raises StoreError."""
    title = f"{events[0]['title']} - p2pfl" if events else "p2pfl"
    fresh = path.with_suffix(".tmp")
    try:
        fresh.write_text(page(events, title), encoding="utf-8")
        return fresh.replace(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}; is there room?") from error


# --- the events ------------------------------------------------------------------------------------------


def _head(verdicts: Sequence[Mapping[str, Any]], *, kind: str, title: str, command: str) -> _Event:
    keys = "".join(sorted(str(verdict.get("trial")) for verdict in verdicts))
    return {
        "v": VERSION,
        "event": "report",
        "kind": kind,
        "title": title,
        "command": command,
        "seeds": sorted({verdict["seed"] for verdict in verdicts}),
        "trials": len(verdicts),
        "wall_s": sum(verdict["wall_s"] for verdict in verdicts),
        "results": hashlib.sha256(keys.encode()).hexdigest(),
    }


def _short(cell: Mapping[str, Any]) -> _Event:
    return {key: cell.get(key) for key in _SUMMARY}


def _recorded(placed: Sequence[tuple[int, Mapping[str, Any]]]) -> list[_Event]:
    """The events of all trials, each with its group, thinned so that they fit in a page."""
    most = max(_LEAST_ROUNDS, _ROUNDS // max(1, len(placed)))
    is_few = len(placed) <= _FEW_TRIALS
    events, seen = [], set()
    for group, verdict in placed:
        found = list(_events_of(verdict))
        rounds = [event for event in found if event["event"] == "round"]
        kept = set(map(id, _thinned(rounds, most)))
        for event in found:
            short = {key: value for key, value in event.items() if key not in ("v", "trial")}
            match event["event"]:
                case "run began" if group in seen or group >= _GRAPHS:
                    short.pop("graph")
                case "round" if id(event) not in kept:
                    continue
                case "round" if not is_few:
                    short.pop("by_peer", None)
                case "fact" if not is_few:
                    continue
            events.append({**short, "group": group, "seed": verdict["seed"]})
        seen.add(group)
    return events


def _thinned(rounds: Sequence[_Event], most: int) -> list[_Event]:
    """At most about `most` rounds: those at which the metric was measured first, then others between them."""
    if len(rounds) <= most:
        return list(rounds)
    measured = [i for i, event in enumerate(rounds) if "metric" in event]
    chosen = {measured[i] for i in evenly(len(measured), most)} | set(evenly(len(rounds), most))
    return [rounds[i] for i in sorted(chosen)]


def _events_of(verdict: Mapping[str, Any]) -> list[_Event]:
    """A trial's events; none where no file has them, as in results of an older release."""
    path = event_file.place(Path(verdict["file"]))
    return list(event_file.read(path)) if path.exists() else []


# --- the file --------------------------------------------------------------------------------------------


def _inline(folder: Any, name: str) -> str:
    text = (folder / name).read_text(encoding="utf-8")
    assert "</" not in text, f"{name} would end its own element"
    return str(text)


def _source(text: str) -> str:
    """A hash as a content security policy has it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data(events: Sequence[Mapping[str, Any]]) -> str:
    """JSON that neither ends its element nor begins another, whatever names it holds."""
    text = json.dumps(list(events), ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
