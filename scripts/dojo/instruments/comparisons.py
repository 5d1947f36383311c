"""Failed comparisons, kept in a folder: one process runs the tests, another shows them."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

# Names the folder. A variable, for a comparison knows nothing of pytest's options.
_FOLDER = "KATA_COMPARISONS"


@dataclass(frozen=True)
class Comparison:
    """A failed comparison in a matrix of cells, each with the values of its worst element."""

    test: str  # with its parameters
    said: str
    sentences: tuple[str, ...]
    slice: str  # [2, :, :]; empty where it is the whole tensor
    shape: tuple[int, ...]  # of the whole tensor
    pooled: bool  # whether a cell stands for several elements
    places: list[list[list[int]]]  # the index of the element
    actual: list[list[float]]
    expected: list[list[float]]
    excess: list[list[float]]  # the error in tolerances


@contextmanager
def wanted() -> Iterator[Path]:
    """Have the processes that are started in the block keep their comparisons in this folder."""
    with tempfile.TemporaryDirectory(prefix="kata-comparisons-") as folder:
        os.environ[_FOLDER] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ[_FOLDER]


def are_wanted() -> bool:
    """Say whether a folder for failed comparisons is named."""
    return _FOLDER in os.environ


def keep(comparison: Comparison) -> None:
    """Put a comparison into the folder, in a file of its own: several processes may write."""
    descriptor, _ = tempfile.mkstemp(".json", dir=os.environ[_FOLDER])
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(comparison), file)


def taken(folder: Path) -> list[Comparison]:
    """Take the comparisons out of a folder, in any order."""
    paths = list(folder.glob("*.json"))
    texts = [path.read_text(encoding="utf-8") for path in paths]
    for path in paths:
        path.unlink()
    return [
        Comparison(
            **{**facts, "sentences": tuple(facts["sentences"]), "shape": tuple(facts["shape"])}
        )
        for facts in map(json.loads, texts)
    ]


def same_cells(one: Comparison, other: Comparison) -> bool:
    """Say whether two comparisons are drawn of the same part of the same result."""
    return _cells(one) == _cells(other)


def _cells(comparison: Comparison) -> tuple[object, ...]:
    cells, (what, _, _) = comparison.excess, comparison.said.partition(":")
    return comparison.test, what, comparison.shape, comparison.slice, len(cells), len(cells[0])
