"""Operators on the types of numbers."""

from collections.abc import Iterator
from typing import ClassVar

from dojo.verification.mutation.operators.base import Outcomes, Replacement
from dojo.verification.mutation.operators.calls import calls
from dojo.verification.mutation.operators.nodes import Node

_NARROWER = {
    "float64": ("float32",),
    "float32": ("float16", "bfloat16"),
    "int32": ("int8",),
    "int8": ("uint8",),
    "double": ("float",),
    "float": ("half",),
}


class NarrowType(Replacement):
    """Computes or stores in a narrower type."""

    outcomes: ClassVar[Outcomes] = {
        "acc = tl.zeros((M, N), tl.float32)": [
            "acc = tl.zeros((M, N), tl.float16)",
            "acc = tl.zeros((M, N), tl.bfloat16)",
        ],
        "x.to(torch.int8)": ["x.to(torch.uint8)"],
        "s = x.double()": ["s = x.float()"],
        "float(loss)": [],
        "x.element_size()": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield a narrower type's name for that of a type."""
        if node.type != "name" or node.value not in _NARROWER:
            return
        if node.parent.type != "trailer" or node.parent.children[0] != ".":
            return
        if node.value in ("double", "float") and node.parent.get_next_sibling() is None:
            return
        yield from _NARROWER[node.value]


class DropConversion(Replacement):
    """Leaves out a conversion to another type."""

    outcomes: ClassVar[Outcomes] = {
        "x = tl.load(p).to(tl.float32)": ["x = tl.load(p)"],
        "q.float() - z": ["q - z"],
        "i = rows.to(tl.int64)": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain without each conversion, but those that matter to huge tensors alone."""
        for call in calls(node):
            conversion = call.name in ("to", "float", "double", "half", "int", "long", "type_as")
            if conversion and call.receiver and "tl.int64" not in node.get_code():
                yield call.dropped()
