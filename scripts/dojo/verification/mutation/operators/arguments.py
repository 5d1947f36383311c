"""Operators on the arguments of calls and the elements of tuples."""

from collections.abc import Iterator
from typing import ClassVar

from dojo.verification.mutation.operators.base import Outcomes, Replacement
from dojo.verification.mutation.operators.calls import Call, calls
from dojo.verification.mutation.operators.names import alike
from dojo.verification.mutation.operators.nodes import Node, code, elements

# Without these a call fails or does the same, or another operator changes them.
_REQUIRED = (
    "dim axis keepdim keepdims keep_dims mask other out device dtype strict num_warps num_stages "
    "input_precision as_tuple min max loop_unroll_factor configs key prune_configs_by rank left "
    "correction unbiased do_not_specialize warps stages"
)
_SYMMETRIC = ("mul", "add", "maximum", "minimum", "min", "max")


class SwapNeighbours(Replacement):
    """Swaps two neighbours in an argument list or a tuple."""

    outcomes: ClassVar[Outcomes] = {
        "F.pad(x, (left, right))": ["F.pad(x, (right, left))"],
        "x.view(n, out_h, out_w)": ["x.view(n, out_w, out_h)"],
        "x.permute(0, 3, 1)": ["x.permute(3, 0, 1)", "x.permute(0, 1, 3)"],
        "f(step * stride, step * dilation)": ["f(step * dilation, step * stride)"],
        "return -counts[pair], pair": ["return pair, -counts[pair]"],
        "f(x, 3)": [],
        "torch.mul(x, y)": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the list with each two neighbours of one kind swapped."""
        items = elements(node)
        if len(items) < 2 or node.type == "subscriptlist":
            return
        callee = node.parent.get_previous_sibling()
        name = code(callee).lstrip(".") if callee else ""
        if name in _SYMMETRIC or node.get_next_sibling() == "=":
            return
        sorting = node.parent.type == "return_stmt" and items[0].type == "factor"
        for place in range(len(items) - 1):
            one, other = items[place], items[place + 1]
            numbers = name == "permute" and {one.type, other.type} == {"number"}
            if numbers or (sorting and place == 0) or _swappable(one, other):
                order = [code(item) for item in items]
                order[place : place + 2] = code(other), code(one)
                yield _laid_out(node, items, order)


def _swappable(one: Node, other: Node) -> bool:
    """Say whether two arguments are of one kind."""
    if one.type == other.type == "term":
        return code(one) != code(other)
    return one.type == other.type == "name" and alike(one.value, other.value)


def _laid_out(node: Node, items: list[Node], order: list[str]) -> str:
    """Return the list with other texts for its items, on the lines where it is."""
    prefix = node.get_first_leaf().prefix
    texts = {id(item): text for item, text in zip(items, order, strict=True)}
    return "".join(
        child.get_first_leaf().prefix + texts.get(id(child), code(child)) for child in node.children
    )[len(prefix) :]


class ForgetArgument(Replacement):
    """Leaves an argument out, so that its default holds."""

    outcomes: ClassVar[Outcomes] = {
        "F.linear(x, weight, bias)": ["F.linear(x, weight)"],
        "attend(q, k, v, causal=causal)": ["attend(q, k, v)"],
        "tl.dot(a, b, acc)": ["tl.dot(a, b)"],
        "x.sum(dim=1)": [],
        "kernel[grid](x, BLOCK=8)": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain without each argument that may have a default."""
        for call in calls(node):
            for argument in call.arguments:
                keyword = argument.keyword
                if keyword.islower() and call.name and keyword not in _REQUIRED.split():
                    yield call.without(argument)
            yield from self._without_last(call)

    def _without_last(self, call: Call) -> Iterator[str]:
        given = call.positional
        optional = (call.receiver == "F" and call.name != "pad") or call.name == "dot"
        all_given = len(given) == len(call.arguments) or call.name == "dot"
        if optional and all_given and len(given) > 2:
            yield call.without(given[-1])
