"""`p2pfl predict`: the model that this site holds, on rows of one's own."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import click

from p2pfl.errors import LearnerError, StoreError

from . import home as homes
from .export import last_model
from .start import agreement_of, find_learner
from .terminal import Terminal, pass_terminal

__all__ = ["predict"]


@click.command(epilog="Example: p2pfl predict --input csv:new-patients.csv -o predicted.csv")
@click.option(
    "--input", "source", required=True, help="Rows: a source as in [learner.data], labels not needed."
)
@click.option("--run", "run_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write row, class and probabilities here.",
)
@pass_terminal
def predict(terminal: Terminal, source: str, run_file: Path | None, output: Path | None) -> None:
    """Classify rows by the model of this site's last commit.

    Nothing is sent anywhere.  Where the site holds its hub's model (an exchange of kind "hub"), its extractor
    and that model classify together; else its own model does.   Prints CSV: row, class, probability.
    """
    import msgspec
    import numpy as np

    from p2pfl import settings as node_settings
    from p2pfl.learn import probes
    from p2pfl.learn.learner import Site
    from p2pfl.learn.options import at_role
    from p2pfl.node.learner_child import open_workshop
    from p2pfl.node.learner_messages import LearnerSpec
    from p2pfl.run import exchange_of

    home = terminal.home
    settings = node_settings.load(home)
    spec = agreement_of(home, homes.identity_of(home), run_file)
    model, known, _ = last_model(home, spec)
    played = at_role(spec.learner, settings.node.role)
    rows = probes.read(source, played.data)
    find_learner(home, played.module, None)
    workshop = open_workshop(
        LearnerSpec(
            options=msgspec.json.encode(spec.learner),
            data=settings.node.data,
            name=settings.node.name,
            seed=spec.run.seed,
            role=settings.node.role,
            **exchange_of(spec),
        ),
        Site(),
    )
    pooled = None if known.pooled is None else np.array(known.pooled)
    p, whose = workshop.believe(model, rows, pooled, known.learner_state)
    if p.shape[0] != len(rows):
        raise LearnerError(f"the learner gave {p.shape[0]} predictions for {len(rows)} rows")
    names = played.data.classes or tuple(str(k) for k in range(p.shape[1]))
    chosen = p.argmax(axis=1)
    found = [
        {"row": i, "class": names[k], "probability": round(float(p[i, k]), 6)} for i, k in enumerate(chosen)
    ]
    if output is not None:
        text = _csv(["row", "class", *names], [[i, names[k], *p[i].round(6)] for i, k in enumerate(chosen)])
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StoreError(f"{output} cannot be written: {error.strerror}; choose another -o") from error
    said = {"rows": len(rows), "by": whose, "round": known.round, "file": str(output) if output else None}
    if output is not None:
        text = f"{len(rows)} rows classified by {_words(whose)} of round {known.round}: {output}"
        terminal.result(said, text)
    else:
        lines = _csv(["row", "class", "probability"], [list(row.values()) for row in found]).rstrip()
        terminal.result({**said, "predictions": found}, lines)


def _words(whose: str) -> str:
    return "this site's extractor and its hub's model" if whose == "hub" else "the model"


def _csv(head: list[str], rows: list[list[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()
