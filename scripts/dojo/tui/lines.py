"""Lines of text that keep their indent where they wrap."""

from collections.abc import Iterable

from rich.console import Group
from rich.padding import Padding
from rich.text import Text


def indented(lines: Iterable[str], bold: tuple[str, ...]) -> Group:
    """Return the lines, those that begin with one of `bold` in bold."""
    return Group(
        *(
            Padding(
                Text(line.lstrip(), "bold" if line.startswith(bold) else ""),
                (0, 0, 0, len(line) - len(line.lstrip())),
            )
            for line in lines
        )
    )
