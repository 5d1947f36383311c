"""Writes a file that the user named, or says in one line why not."""

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
