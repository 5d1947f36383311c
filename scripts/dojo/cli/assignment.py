"""The options that name an assignment: the same where it is handed out and where it is graded."""

from collections.abc import Callable
from typing import Any

import click


def assignment_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--bugs`, `--count` and `--seed` to a command."""
    options = (
        click.option(
            "--bugs",
            metavar="ID,ID",
            help="The bugs planted, each in the kata that has it; the default ones unless given.",
        ),
        click.option("--count", type=int, metavar="N", help="N bugs a kata, drawn at random."),
        click.option("--seed", type=int, metavar="S", help="Which draw; the same everywhere."),
    )
    for option in reversed(options):
        command = option(command)
    return command
