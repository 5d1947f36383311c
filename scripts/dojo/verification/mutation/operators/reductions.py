"""Operators on what a reduction computes."""

from collections.abc import Iterator
from typing import ClassVar

from dojo.verification.mutation.operators.base import Outcomes, Replacement
from dojo.verification.mutation.operators.calls import calls
from dojo.verification.mutation.operators.nodes import Node, code

_OTHERS = {
    "sum": ("mean", "amax"),
    "mean": ("sum", "amax"),
    "amax": ("amin", "mean"),
    "amin": ("amax",),
    "max": ("min",),
    "min": ("max",),
    "maximum": ("minimum",),
    "minimum": ("maximum",),
    "argmax": ("argmin",),
    "argmin": ("argmax",),
    "any": ("all",),
    "all": ("any",),
    "triu": ("tril",),
    "tril": ("triu",),
}
_IN_TRITON = {"sum": ("max",), "max": ("min", "sum"), "min": ("max",)}


class ChangeReduction(Replacement):
    """Takes the mean for the sum, the least for the largest, and the like."""

    outcomes: ClassVar[Outcomes] = {
        "x.sum(dim=0)": ["x.mean(dim=0)", "x.amax(dim=0)"],
        "tl.max(x, axis=0)": ["tl.min(x, axis=0)", "tl.sum(x, axis=0)"],
        "tl.sum(x, axis=0)": ["tl.max(x, axis=0)"],
        "np.mean(x)": ["np.sum(x)", "np.amax(x)"],
        "min(a, b)": ["max(a, b)"],
        "sum(parts)": [],
        "self.update()": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain with another reduction in place of each."""
        for call in calls(node):
            names = _OTHERS.get(call.name, ())
            if call.receiver == "tl":
                names = _IN_TRITON.get(call.name, names)
            elif call.name == "sum" and not call.receiver:  # Python's own has no mean beside it
                names = ()
            for name in names:
                yield call.renamed(name)


class ChangeCorrection(Replacement):
    """Divides a variance by n for n - 1, or the other way round."""

    outcomes: ClassVar[Outcomes] = {
        "x.var(dim=0)": ["x.var(dim=0, correction=0)"],
        "x.std(0, correction=0)": ["x.std(0, correction=1)"],
        "x.var(0, unbiased=True)": ["x.var(0, unbiased=False)"],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain with the correction of each variance turned."""
        turned = {"0": "1", "1": "0", "True": "False", "False": "True"}
        for call in calls(node):
            if call.name not in ("var", "std"):
                continue
            given = call.keyword("correction", "unbiased")
            if given is None:
                yield call.extended("correction=0")
            elif code(given.value) in turned:
                yield call.changed(given, turned[code(given.value)])
