"""Operators on tensors that enter a comparison, a sum, a product or a layer."""

import builtins
from collections.abc import Iterator
from typing import ClassVar

from dojo.verification.mutation.operators.axes import REDUCTIONS
from dojo.verification.mutation.operators.base import Outcomes, Replacement
from dojo.verification.mutation.operators.calls import calls
from dojo.verification.mutation.operators.nodes import Node, code

# By these names a reference knows its tensors; a size, a flag or an index has others.
_TENSORS = {"x", "y", "weight", "bias", "weights", "biases", "query", "key", "value"}


def _is_tensor(node: Node) -> bool:
    """Say whether a node is a tensor, or an element of a list of them."""
    name = node if node.type == "name" else node.children[0] if node.type == "atom_expr" else None
    if name is None or name.type != "name" or name.value not in _TENSORS:
        return False
    return node is name or (len(node.children) == 2 and code(node.children[1]).startswith("["))


class NegateOperand(Replacement):
    """Has the wrong sign for a tensor."""

    in_triton_files = False
    outcomes: ClassVar[Outcomes] = {
        "F.linear(x, weights[-1], bias)": [
            "F.linear(-x, weights[-1], bias)",
            "F.linear(x, weights[-1], -bias)",
        ],
        "return x @ weight.T": ["return -x @ weight.T"],
        "return x + bias": ["return -x + bias"],
        "return x == k": ["return -x == k"],
        "bias is None": [],
        "zip(weights, biases)": [],
        "torch.sum(x, out=out)": ["torch.sum(-x, out=out)"],
        "x[n + 1]": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the operation with a tensor negated: of two that are multiplied the first."""
        operation = node.type in ("arith_expr", "term") or (
            node.type == "comparison" and " is " not in code(node)
        )
        if operation and _is_tensor(node.children[0]):
            yield f"-{code(node)}"
        for call in calls(node):
            plain = not call.receiver and call.name and call.name not in vars(builtins)
            if plain or call.receiver in ("F", "torch"):
                for argument in call.positional:
                    weighs = code(argument.value).startswith("weight")
                    if _is_tensor(argument.value) and not weighs:
                        yield call.changed(argument, f"-{code(argument.value)}")


class CompareLoosely(Replacement):
    """Takes numbers for equal that are not: of either sign, rounded, or nearby."""

    in_triton_files = False
    outcomes: ClassVar[Outcomes] = {
        "return x == k": [
            "return x.abs() == k",
            "return x.round() == k",
            "return x.half() == k",
            "return x.byte() == k",
            "return x == abs(k)",
            "return (x - k).abs() < 1",
        ],
        "return x == 0": [],
        "return n == k": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield other comparisons of a tensor with a number."""
        if node.type != "comparison" or not _is_tensor(node.children[0]):
            return
        tensor, sign, number = (code(child) for child in node.children)
        if sign == "==" and node.children[2].type == "name":
            for method in ("abs", "round", "half", "byte"):
                yield f"{tensor}.{method}() == {number}"
            yield f"{tensor} == abs({number})"
            yield f"({tensor} - {number}).abs() < 1"


class DropEdge(Replacement):
    """Leaves out the first or the last entries of a tensor."""

    in_triton_files = False
    outcomes: ClassVar[Outcomes] = {
        "torch.sum(x == k, dim=1)": [
            "torch.sum(x[1:] == k, dim=1)",
            "torch.sum(x[:-1] == k, dim=1)",
            "torch.sum(x[..., 1:] == k, dim=1)",
            "torch.sum(x[..., :-1] == k, dim=1)",
        ],
        "torch.where(x > 0, x, 0)": [],
        "torch.sum(x == y)": [],
        "torch.sum(k == x)": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield a reduction of less than the whole tensor that is compared with a number."""
        for call in calls(node):
            first = call.positional[0] if call.positional and call.receiver == "torch" else None
            if call.name not in REDUCTIONS or first is None or first.value.type != "comparison":
                continue
            tensor, *rest = (code(child) for child in first.value.children)
            if tensor in _TENSORS and rest[-1] not in _TENSORS:
                for part in ("1:", ":-1", "..., 1:", "..., :-1"):
                    yield call.changed(first, " ".join([f"{tensor}[{part}]", *rest]))
