"""Tells when a file is saved, by the platform's file events, or by looking where none arrive."""

from collections.abc import Iterator
from pathlib import Path

from watchfiles import Change, watch

from dojo.files import read_bytes

# Long enough for an editor that saves in two writes, too short to be noticed.
_SETTLE_MILLISECONDS = 30


def saves(path: Path, tick_seconds: float) -> Iterator[bool]:
    """Yield True at once and at each change of the file's content, False at a tick without one.

    The folder is watched, not the file: many editors save by renaming a new file into its place.
    """
    path = path.resolve()
    seen = read_bytes(path)
    yield True

    def concerns_file(_: Change, changed: str) -> bool:
        return Path(changed).name == path.name

    for _ in watch(
        path.parent,
        watch_filter=concerns_file,
        debounce=4 * _SETTLE_MILLISECONDS,
        step=_SETTLE_MILLISECONDS,
        rust_timeout=int(1000 * tick_seconds),
        yield_on_timeout=True,
        recursive=False,
    ):
        # Compared at every tick: this also finds a save from before the watch began, and those on
        # a network mount that sends no events.
        content = read_bytes(path)
        changed = content is not None and content != seen
        if changed:
            seen = content
        yield changed
