# SPDX-License-Identifier: Apache-2.0
"""`ffswitch completion`: the shell's part of tab completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  ffswitch completion bash > /etc/bash_completion.d/ffswitch
    zsh:   ffswitch completion zsh > "${fpath[1]}/_ffswitch"
    fish:  ffswitch completion fish > ~/.config/fish/completions/ffswitch.fish
    """
    found = get_completion_class(shell)
    assert found is not None  # the Choice above names click's own
    click.echo(found(context.find_root().command, {}, "ffswitch", "_FFSWITCH_COMPLETE").source())


COMMANDS = (completion,)
