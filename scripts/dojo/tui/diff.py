"""A unified diff in colours."""

from rich.text import Text

from dojo.wording.events import COLOURS


def diff_text(diff: str) -> Text:
    """Return the diff, each line in the colour of its kind."""
    return Text("\n").join(Text(line, COLOURS.get(line[:1], "")) for line in diff.splitlines())
