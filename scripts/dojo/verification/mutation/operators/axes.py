"""Operators on the axes of tensors."""

from collections.abc import Iterator
from typing import ClassVar

from dojo.verification.mutation.operators.base import Outcomes, Replacement
from dojo.verification.mutation.operators.calls import Argument, Call, calls
from dojo.verification.mutation.operators.nodes import Node, code, elements

REDUCTIONS = {"sum", "mean", "max", "min", "amax", "amin", "var", "std", "prod", "any", "all"}
_ALONG = REDUCTIONS | {"softmax", "log_softmax", "cumsum", "argmax", "argmin", "unsqueeze", "cat"}
_KEEP = ("keepdim", "keepdims", "keep_dims")
_NUMBERS = {"-1": ("0", "-2"), "0": ("1",), "1": ("0",), "2": ("1",), "-2": ("-1",)}


def axis_of(call: Call) -> Argument | None:
    """Return the argument of a call that is an axis, or some axes."""
    if found := call.keyword("dim", "axis"):
        return found
    of_function = call.receiver in ("torch", "F", "np", "tl")
    given = call.positional[1 if of_function else 0 :]
    named = call.name in _ALONG and call.receiver
    return given[0] if named and given and given[0].keyword == "" else None


class ChangeAxis(Replacement):
    """Takes another axis, fewer axes or all of them."""

    outcomes: ClassVar[Outcomes] = {
        "x.mean(dim=-1)": ["x.mean(dim=0)", "x.mean(dim=-2)", "x.mean()"],
        "x.sum(0)": ["x.sum(1)", "x.sum()"],
        "F.softmax(x, dim=dim)": ["F.softmax(x, dim=0)", "F.softmax(x, dim=-1)"],
        "x.amax((0, 2), keepdim=True)": [
            "x.amax((2,), keepdim=True)",
            "x.amax((0,), keepdim=True)",
            "x.amax()",
        ],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain with other axes of each call."""
        for call in calls(node):
            axis = axis_of(call)
            if axis is None:
                continue
            for value in _others(axis.value):
                yield call.changed(axis, value)
            if call.name in REDUCTIONS and call.receiver not in ("tl", ""):
                keep = call.keyword(*_KEEP)
                yield call.without(axis, keep) if keep else call.without(axis)


def _others(value: Node) -> Iterator[str]:
    """Yield other values for an axis."""
    if value.type == "atom":
        axes = elements(value.children[1])
        for left_out in axes if len(axes) == 2 else ():
            (kept,) = (code(axis) for axis in axes if axis is not left_out)
            yield f"({kept},)"
    else:
        yield from _NUMBERS.get(code(value), ("0", "-1") if value.type == "name" else ())


class ChangeKeepdim(Replacement):
    """Keeps a reduced axis or drops it, unlike before."""

    outcomes: ClassVar[Outcomes] = {
        "x.sum(dim=0)": ["x.sum(dim=0, keepdim=True)"],
        "x.sum(\n    dim=0,\n)": ["x.sum(\n    dim=0, keepdim=True,\n)"],
        "x.sum(axis=0, keepdims=True)": ["x.sum(axis=0, keepdims=False)"],
        "tl.max(x, axis=1)": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain with the flag of each reduction turned or added."""
        for call in calls(node):
            axis = axis_of(call)
            if axis is None or call.name not in REDUCTIONS:
                continue
            if keep := call.keyword(*_KEEP):
                yield call.changed(keep, "False" if code(keep.value) == "True" else "True")
            elif call.receiver != "tl":
                word = "keepdims" if axis.keyword == "axis" else "keepdim"
                yield call.extended(f"{word}=True")


class DropTranspose(Replacement):
    """Leaves out a transposition."""

    outcomes: ClassVar[Outcomes] = {
        "x @ weight.T": ["x @ weight"],
        "x.mT @ y": ["x @ y"],
        "x.transpose(1, 2).flatten(2)": ["x.flatten(2)"],
        "tl.dot(q, tl.trans(k))": ["tl.dot(q, k)"],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain without each of its transpositions."""
        if node.type != "atom_expr":
            return
        for part in node.children:
            if part.type == "trailer" and code(part) in (".T", ".mT"):
                yield "".join(code(other) for other in node.children if other is not part)
        for call in calls(node):
            if call.name in ("transpose", "swapaxes", "t") and call.receiver:
                yield call.dropped()
            elif call.name == "trans" and call.arguments:
                yield call.replaced(code(call.arguments[0].value))


class MoveNewAxis(Replacement):
    """Inserts a new axis on the other side of its neighbour."""

    outcomes: ClassVar[Outcomes] = {
        "bias[:, None]": ["bias[None, :]"],
        "x[None, :] + y": ["x[:, None] + y"],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield a subscript of two with its None moved."""
        if node.type == "subscriptlist":
            parts = [code(part) for part in elements(node)]
            if len(parts) == 2 and parts.count("None") == 1:
                yield ", ".join(reversed(parts))
