"""The `kata` command: one file a sub-command, imported only when it is called."""

import importlib
import os
import re
import sqlite3
import sys

import click

from dojo.cli.streams import open_missing
from dojo.errors import TYPED, DojoError, typed
from dojo.project import Project

_COMMANDS = (
    "bench",
    "check",
    "debug",
    "export",
    "gpu",
    "grade",
    "handout",
    "hint",
    "import",
    "list",
    "new",
    "practice",
    "probe",
    "prove",
    "reset",
    "reveal",
    "review",
    "run",
    "show",
    "stats",
    "undo",
    "verify",
    "watch",
)


class _Context(click.Context):
    """Calls a command in its usage line as the person typed it."""

    @property
    def command_path(self) -> str:
        return typed(self.info_name or "")


class _Commands(click.Group):
    """Finds sub-commands by name, so that `kata --help` imports no torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"dojo.cli.{cmd_name}_command")
        found: click.Command = module.command
        found.context_class = _Context
        found.help = _as_typed(found.help or "")
        return found

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.help = _as_typed(self.help or "")
        super().format_help_text(ctx, formatter)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except DojoError as error:
            raise click.ClickException(str(error)) from None
        except BrokenPipeError:  # a reader that stops early, such as head, is no error
            raise
        except OSError as error:
            if error.filename is None:
                raise click.ClickException(str(error)) from None
            raise click.ClickException(f"{error.filename}: {error.strerror}") from None
        except sqlite3.Error as error:
            history = ctx.find_object(Project) or Project.here()
            message = f"the history {history.history} cannot be used: {error}; run this again"
            raise click.ClickException(message) from None


def _as_typed(text: str) -> str:
    """Return a help text with its commands, such as `kata reset`, as the person types them."""
    names = "|".join(_COMMANDS)
    pattern = rf"\bkata ({names})\b|scripts/({names})\.sh"
    return re.sub(pattern, lambda match: typed(match[1] or match[2]), text)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ml-bug-katas", message="%(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Bug-hunting katas for machine-learning engineers.

    \b
    Example: kata practice softmax
    """
    open_missing()
    if ctx.obj is None:
        ctx.obj = Project.here()
    if "NO_COLOR" in os.environ:
        ctx.color = False
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def kata() -> None:
    """Run the installed `kata` command, whose messages name it where the scripts name theirs."""
    os.environ[TYPED] = "kata"
    main(prog_name="kata")
