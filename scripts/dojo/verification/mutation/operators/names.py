"""Names that are easily taken for each other, and the operator that does so."""

from collections.abc import Iterator
from typing import ClassVar

from dojo.verification.mutation.operators.base import Outcomes, Replacement
from dojo.verification.mutation.operators.nodes import Node, bound_names, function_of

# What is mistaken for what, beside names that differ in a letter such as stride_m and stride_n.
_PAIRS = (
    "left right,before after,previous following,start stop,start end,first last,index start,"
    "lo hi,low high,min max,mean var,alpha r,rank left,"
    "rows columns,row column,row col,rows cols,height width,rows width,n_rows n_cols,ROWS BLOCK,"
    "batch channel,channels filters,out_channels group_channels,"
    "stride padding,stride dilation,padding dilation,"
    "weight bias,gamma beta,dgamma dbeta,dweight dbias,inv_std x_hat,x_hat centred,"
    "query key,queries keys,q k,k v,dq dk,dk dv,"
    "in out,x out,x y,x gate,grad_out x,a b,A B"
)
_KNOWN = {frozenset(pair.split()) for pair in _PAIRS.split(",")}


def alike(one: str, other: str) -> bool:
    """Say whether two names are easily taken for each other: equal but for one part."""
    if one == other:
        return False
    if {one, other} in _KNOWN:
        return True
    parts, others = one.split("_"), other.split("_")
    if len(parts) != len(others) or len(parts) == 1:
        return False
    different = [pair for pair in zip(parts, others, strict=True) if pair[0] != pair[1]]
    if len(different) != 1:
        return False
    left, right = different[0]
    near = len(left) == len(right) <= 2 and sum(a != b for a, b in zip(left, right, strict=True))
    return near == 1 or {left, right} in _KNOWN


class ConfuseName(Replacement):
    """Takes a name for another that looks like it."""

    most = 2  # other names for one use
    outcomes: ClassVar[Outcomes] = {
        "def f(stride_xm, stride_xk, i):\n    return i * stride_xk\n": [
            "def f(stride_xm, stride_xk, i):\n    return i * stride_xm\n"
        ],
        "def f(left, right):\n    push(left)\n": ["def f(left, right):\n    push(right)\n"],
        "def f(mean):\n    return mean\n": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the names bound before this use that are easily taken for it."""
        if node.type != "name" or node.is_definition() or node.get_previous_sibling() == ".":
            return
        keyword = node.parent.type == "argument" and node.get_next_sibling() == "="
        function = function_of(node)
        if keyword or function is None or node.search_ancestor("param", "annassign", "raise_stmt"):
            return
        bound = bound_names(function)
        order = list(bound)
        if node.value not in order:
            return
        near = sorted(bound, key=lambda name: abs(order.index(name) - order.index(node.value)))
        known = (name for name in near if bound[name] < node.start_pos)
        yield from [name for name in known if alike(node.value, name)][: self.most]
