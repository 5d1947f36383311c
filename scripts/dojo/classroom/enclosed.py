"""The warm process of a sandbox: sees nothing but what it needs, and forks into less.

`python -m dojo.classroom.enclosed HIDDEN FOLDER...` is `dojo.runner.forkserver` that sees these
folders alone. Each run has processes and temporary files of its own, so it can neither reach the
processes that serve the next one nor leave anything for it.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from dojo.classroom import namespaces
from dojo.runner import forkserver, worker
from dojo.runner.collector import Collector


class EnclosedCollector(Collector):
    """Has tests collected, and has them run behind walls."""

    def enclose(self, kept: Iterable[int]) -> None:
        """Leave the fork that was made; what is written to these descriptors still arrives."""
        namespaces.enclose(kept)


def main() -> None:
    """Go behind the walls and serve requests there."""
    hidden, *folders = map(Path, sys.argv[1:])
    namespaces.enter(folders, hidden)
    forkserver.main((), EnclosedCollector)


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # the client was killed: nobody is left to answer
        worker.exit_process(0)
