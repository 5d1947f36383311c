"""Operators on Triton kernels."""

from collections.abc import Iterator
from typing import ClassVar

from dojo.verification.mutation.operators.base import Outcomes, Replacement
from dojo.verification.mutation.operators.calls import calls
from dojo.verification.mutation.operators.nodes import Node, code


class DropLoadMask(Replacement):
    """Reads or writes without a mask, or leaves undefined what a mask hides."""

    outcomes: ClassVar[Outcomes] = {
        "x = tl.load(p, mask=m, other=0.0)": ["x = tl.load(p)", "x = tl.load(p, mask=m)"],
        "tl.store(p, x, mask=m)": ["tl.store(p, x)"],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain without the mask of each access."""
        for call in calls(node):
            mask, other = call.keyword("mask"), call.keyword("other")
            if call.name in ("load", "store") and mask:
                yield call.without(mask, other) if other else call.without(mask)
                if other:
                    yield call.without(other)


class ChangeProgramAxis(Replacement):
    """Asks for a program's place along another axis of the grid."""

    outcomes: ClassVar[Outcomes] = {
        "row = tl.program_id(0)": ["row = tl.program_id(1)"],
        "n = tl.num_programs(axis=1)": ["n = tl.num_programs(axis=0)"],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain with the other axis."""
        for call in calls(node):
            if call.name in ("program_id", "num_programs") and call.arguments:
                axis = call.arguments[0]
                yield call.changed(axis, "1" if code(axis.value) == "0" else "0")
