"""Failed comparisons as one page of HTML: actual, expected and error as heat maps."""

from collections.abc import Sequence
from typing import Any

from dojo.instruments.comparisons import Comparison, same_cells
from dojo.testrun.results import TestResult
from dojo.wording.pages import templates
from dojo.wording.quantities import count

_DIGITS = 9  # a small error shows in the difference too


def render_comparisons(
    name: str,
    comparisons: Sequence[Comparison],
    others: Sequence[TestResult],
    before: Sequence[Comparison] = (),
) -> str:
    """Return the page on a kata of this name; the `others` failed without comparing values.

    What failed `before`, with an earlier text, stands beside what fails now.
    """
    environment = templates()
    environment.filters.update(count=count)
    return environment.get_template("comparisons.html").render(
        name=name,
        comparisons=comparisons,
        cells=[_with_before(comparison, before) for comparison in comparisons],
        mended=sorted({one.test for one in before} - {one.test for one in comparisons}),
        others=others,
    )


def _with_before(comparison: Comparison, before: Sequence[Comparison]) -> dict[str, Any]:
    cells = _cells(comparison)
    same = next((one for one in before if same_cells(one, comparison)), None)
    return {**cells, "before": _cells(same)} if same else cells


def _cells(comparison: Comparison) -> dict[str, Any]:
    """Return what the page's script draws, the numbers as short as a person reads them."""
    return {
        "places": comparison.places,
        "actual": _rounded(comparison.actual),
        "expected": _rounded(comparison.expected),
        "excess": _rounded(comparison.excess),
    }


def _rounded(matrix: list[list[float]]) -> list[list[float]]:
    return [[float(f"{value:.{_DIGITS}g}") for value in row] for row in matrix]
