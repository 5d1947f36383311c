"""Where output goes: a file that the user named, or one line why not there; the full screen."""

import os
import sys
from pathlib import Path

from dojo.errors import DojoError
from dojo.files import write_atomically


def write(path: Path, text: str, *, overwrite: bool = True) -> None:
    """Write the text in one step; raise `DojoError` where that cannot be done."""
    if path.exists() and not path.is_file():
        raise DojoError(f"{path} is not a file; name one to write")
    if not path.resolve().parent.is_dir():
        raise DojoError(f"the folder {path.parent} does not exist; make it first")
    if path.exists() and not overwrite:
        raise DojoError(f"{path} exists; name another file, or add --force to overwrite it")
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise DojoError(f"{path} cannot be written: {error.strerror}") from None


def has_screen(plain: bool) -> bool:
    """Say whether the full screen is to be used: in a terminal that can, unless plain is asked."""
    simple = plain or os.environ.get("TERM") == "dumb"
    return not simple and sys.stdin.isatty() and sys.stdout.isatty()
