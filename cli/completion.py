"""`p2pfl completion`: click's own scripts."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from p2pfl.errors import ConfigError

__all__ = ["completion"]


@click.command(epilog="Example: p2pfl completion bash > ~/.local/share/bash-completion/completions/p2pfl")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    found = get_completion_class(shell)
    if found is None:
        raise ConfigError(f"click has no completion for {shell}")
    click.echo(found(context.find_root().command, {}, "p2pfl", "_P2PFL_COMPLETE").source())
