"""The `kata` command: one file a sub-command, imported only when it is called."""

import importlib
import os
import sys

import click

from dojo.errors import DojoError
from dojo.project import Project

_COMMANDS = (
    "bench",
    "check",
    "export",
    "gpu",
    "hint",
    "import",
    "list",
    "new",
    "practice",
    "reset",
    "reveal",
    "stats",
    "undo",
    "verify",
    "watch",
)


class _Commands(click.Group):
    """Finds sub-commands by name, so that `kata --help` imports no torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"dojo.cli.{cmd_name}_command")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except DojoError as error:
            raise click.ClickException(str(error)) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ml-bug-katas", message="%(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Bug-hunting katas for machine-learning engineers.

    \b
    Example: kata practice softmax
    """
    if ctx.obj is None:
        ctx.obj = Project.here()
    if "NO_COLOR" in os.environ:
        ctx.color = False
    # A reader that stops early, such as head, is no error.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
