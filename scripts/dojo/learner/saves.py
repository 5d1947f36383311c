"""Tells when a file is saved, by the platform's file events, or by looking where none arrive."""

import threading
from collections.abc import Iterator
from pathlib import Path

from watchfiles import Change, watch

from dojo.errors import DojoError
from dojo.files import read_bytes

# Two of these pass before a save is seen. An editor that saves in two writes may take longer: then
# the second starts the run anew.
_SETTLE_MILLISECONDS = 3
_LOOK_MILLISECONDS = 500


def seen_now(path: Path) -> bytes | None:
    """Return the file's content; None while it is being saved, or cannot be read."""
    try:
        return read_bytes(path)
    except DojoError:
        return None


def saves(path: Path, seen: bytes | None, stop: threading.Event) -> Iterator[None]:
    """Yield at each change of the file's content, from `seen` on, until `stop` is set.

    The folder is watched, not the file: many editors save by renaming a new file into its place.
    A link is followed to where it leads now: an editor may put a file in its place.
    """
    target = path.resolve()
    names = {path.name, target.name}

    def concerns_file(_: Change, changed: str) -> bool:
        return Path(changed).name in names

    for _ in watch(
        *{path.parent, target.parent},
        watch_filter=concerns_file,
        debounce=4 * _SETTLE_MILLISECONDS,
        step=_SETTLE_MILLISECONDS,
        stop_event=stop,
        rust_timeout=_LOOK_MILLISECONDS,
        yield_on_timeout=True,
        recursive=False,
        raise_interrupt=False,
    ):
        # Compared at every look: this also finds a save from before the watch began, and those on
        # a network mount that sends no events. A file that is gone for a moment is being saved.
        content = seen_now(path)
        if content is not None and content != seen:
            seen = content
            yield
