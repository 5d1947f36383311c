"""Makes of a mismatch what a page can show: few cells, in plain data."""

import os
from collections.abc import Sequence

import numpy as np

from dojo.instruments.cells import cells
from dojo.instruments.comparisons import Comparison
from dojo.instruments.mismatch import Mismatch

_CELLS = 64  # at most so many rows, and so many columns


def recorded(said: str, sentences: Sequence[str], mismatch: Mismatch) -> Comparison:
    """Return the comparison of the test under way, pooled."""
    pooled = cells(mismatch.excess, _CELLS, _CELLS)
    shape = mismatch.wrong.shape
    # As pytest has it: "katas/NAME/test_name.py::test_values[3] (call)".
    test = os.environ.get("PYTEST_CURRENT_TEST", "").partition("::")[2].rpartition(" ")[0]
    return Comparison(
        test=test,
        said=said,
        sentences=tuple(sentences),
        slice=pooled.slice,
        shape=shape,
        pooled=pooled.worst.shape != pooled.shape,
        places=np.stack(np.unravel_index(pooled.worst, shape), -1).tolist(),
        actual=mismatch.actual.ravel()[pooled.worst].tolist(),
        expected=mismatch.expected.ravel()[pooled.worst].tolist(),
        excess=mismatch.excess.ravel()[pooled.worst].tolist(),
    )
