"""The folder that the temporary files of a runner's runs are in, so that none outlives it."""

import os
import tempfile
from pathlib import Path

from dojo.errors import DojoError

# Where there is no room on any disk, memory may have some.
_IN_MEMORY = Path("/dev/shm")


def make_scratch() -> Path:
    """Make an empty folder, or raise `DojoError` where none can be had."""
    for parent in (_usual(), _IN_MEMORY):
        try:
            if parent is not None:
                return Path(tempfile.mkdtemp(prefix="kata-runner-", dir=parent))
        except OSError:
            continue
    raise DojoError("there is no room for temporary files; set TMPDIR to a folder that has some")


def environment(scratch: Path) -> dict[str, str]:
    """Return what makes a process put its temporary files there."""
    # Not what torch.compile has compiled, which takes long, and serves the next run too.
    user = getattr(os, "getuid", str)()
    compiled = str(scratch.parent / f"torchinductor_{user}")
    return {
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", compiled),
        "TMPDIR": str(scratch),
    }


def _usual() -> Path | None:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:  # it tries to write a few bytes
        return None
