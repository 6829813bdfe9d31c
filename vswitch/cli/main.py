# SPDX-License-Identifier: Apache-2.0
"""`ffswitch`: the command line. Every failure is one line on standard error and exit code 1, or 2 for usage."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from vswitch import __version__
from vswitch.cli.client import INVALID_PARAMS, ClientError, RpcError

DEFAULT_RUN_DIR = "/run/ffswitch"


# The module of each command. Only that of the one called is imported: add-port is called once for each container.
_MODULES = {
    "ports": ("add-port", "del-port", "list-ports", "show", "set", "get"),
    "flows": ("dump-flows", "fdb"),
    "overlay": ("status", "explain"),
    "stats": ("stats",),
    "workers": ("rebalance",),
    "top": ("top",),
    "trace": ("trace",),
    "capture": ("capture",),
    "host": ("drivers", "doctor"),
    "completion": ("completion",),
}


class _Root(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(name for names in _MODULES.values() for name in names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for module, names in _MODULES.items():
            if cmd_name in names:
                commands: Sequence[click.Command] = import_module(f"vswitch.cli.{module}").COMMANDS
                return next(command for command in commands if command.name == cmd_name)
        return None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader (head, a pager) has what it wanted. Python must not meet the pipe again when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return result


@click.group(
    cls=_Root,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="FFSWITCH_RUN_DIR",
    default=DEFAULT_RUN_DIR,
    show_default=True,
    help="Where ffswitchd keeps its socket; also FFSWITCH_RUN_DIR.",
)
@click.version_option(__version__, prog_name="ffswitch", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context, run_dir: Path) -> None:
    """Look at and change a running ffswitchd, the userspace switch for containers.

    \b
    ffswitch add-port web0      a port, and the lines that its container needs
    ffswitch list-ports         the ports, and why one is down
    ffswitch doctor             what this host lacks
    """
    context.obj = run_dir
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code."""
    try:
        code = cli.main(args=args, prog_name="ffswitch", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "ffswitch"
        return _fail(f"{_where(command)}{_lower(error.format_message())}; see '{command} --help'", 2)
    except click.ClickException as error:
        return _fail(_lower(error.format_message()), error.exit_code)
    except RpcError as error:
        return _fail(str(error), 2 if error.code == INVALID_PARAMS else 1)
    except ClientError as error:
        return _fail(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        return 1


def _where(command: str) -> str:
    name = command.removeprefix("ffswitch").strip()
    return f"{name}: " if name else ""


def _lower(message: str) -> str:
    """Turn click's sentence into a part of a line."""
    return message[:1].lower() + message[1:].rstrip(".")


def _fail(line: str, code: int) -> int:
    click.echo("ffswitch: " + " ".join(line.split()), err=True)
    return code
