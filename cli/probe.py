"""`p2pfl run probe`: a probe set, named by its content for an agreement."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pfl.errors import ConfigError

from .terminal import Terminal, pass_terminal

if TYPE_CHECKING:
    from p2pfl.learn.options import DataOptions

__all__ = ["probe"]


def _data_options(file: Path) -> DataOptions:
    """`[learner.data]` of an agreement that may still lack its probe set.  Raises ConfigError."""
    import msgspec

    from p2pfl.learn.options import DataOptions

    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        return msgspec.convert(table.get("learner", {}).get("data", {}), DataOptions)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, AttributeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: learner.data: {error}") from error


@click.command(epilog="Example: p2pfl run probe 'idx:mnist#50000-51000' --run ward/run.toml")
@click.argument("source")
@click.option(
    "--run",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The agreement whose [learner.data] says how a row is read.",
)
@pass_terminal
def probe(terminal: Terminal, source: str, file: Path | None) -> None:
    """Print the digest of a probe set, as the lines that an agreement has of it.

    SOURCE is as in [learner.data]; labels are ignored, and #FIRST-LAST behind it takes a part of the rows.
    """
    from p2pfl.learn import probes
    from p2pfl.run import write_toml

    rows = probes.read(source, None if file is None else _data_options(file))
    found = {"source": source, "digest": probes.digest_of(rows), "samples": len(rows)}
    terminal.result(found, write_toml({"knowledge.probe": found}).rstrip())
