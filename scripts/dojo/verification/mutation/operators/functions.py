"""Operators on functions that are applied element by element, on rounding and on bounds."""

from collections.abc import Iterator
from typing import ClassVar

from dojo.verification.mutation.operators.base import Outcomes, Replacement
from dojo.verification.mutation.operators.calls import MODULES, calls
from dojo.verification.mutation.operators.nodes import Node, bracketed, code

_ELEMENTWISE = {"abs", "exp", "log", "square", "relu", "sqrt", "rsqrt", "tanh", "sigmoid", "round"}
_ELEMENTWISE |= {"dropout", "clamp", "floor", "softmax", "norm"}
_RELATED = {
    "exp": ("expm1",),
    "exp_": ("expm1_",),
    "exp2": ("exp",),
    "log": ("log2",),
    "rsqrt": ("sqrt",),
    "sqrt": ("rsqrt",),
    "square": ("abs",),
    "abs": ("square",),
    "sigmoid": ("tanh",),
    "tanh": ("sin",),
    "relu": ("abs", "tanh"),
    "silu": ("gelu", "relu"),
    "softmax": ("log_softmax",),
    "log_softmax": ("softmax",),
    "add": ("sub", "mul"),
    "sub": ("add",),
    "mul": ("add", "div"),
    "div": ("mul",),
    "add_": ("sub_", "copy_"),
    "sub_": ("add_", "mul_"),
    "mul_": ("div_", "add_"),
    "copy_": ("add_",),
    "zeros": ("ones",),
    "ones": ("zeros",),
    "zeros_": ("ones_",),
    "zeros_like": ("ones_like",),
    "isneginf": ("isposinf",),
    "startswith": ("endswith",),
    "endswith": ("startswith",),
    "removeprefix": ("removesuffix",),
    "removesuffix": ("removeprefix",),
    "fullmatch": ("match",),
    "addcmul": ("addcdiv",),
}
_IN_TRITON = {"exp": "exp2", "sigmoid": "exp", "log": "log2"}


class ChangeFunction(Replacement):
    """Applies a related function: a square root for its inverse, a softmax for its logarithm."""

    outcomes: ClassVar[Outcomes] = {
        "y = x.rsqrt()": ["y = x.sqrt()"],
        "torch.mul(x, y, out=z)": ["torch.add(x, y, out=z)", "torch.div(x, y, out=z)"],
        "tl.exp(x)": ["tl.exp2(x)"],
        "F.relu(x)": ["F.tanh(x)"],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain with another function in place of each that Triton also has."""
        for call in calls(node):
            names = _RELATED.get(call.name, ())
            if call.receiver == "tl" and call.name in _IN_TRITON:
                names = (_IN_TRITON[call.name],)
            elif call.receiver in ("np", "math") and "rsqrt" in names:  # they have none
                names = ()
            elif call.receiver == "F":
                names = tuple(name for name in names if name != "abs")  # which is torch's
            for name in names:
                yield call.renamed(name)


class DropFunction(Replacement):
    """Leaves out a function that is applied to a value element by element."""

    outcomes: ClassVar[Outcomes] = {
        "x = F.relu(x)": [],  # `x = x` would give it away
        "h = np.tanh(x @ w)": ["h = x @ w"],
        "y = x.square().mean()": ["y = x.mean()"],
        "y = norm(x + 1)": ["y = x + 1"],
        "y = (a + b).exp()": ["y = a + b"],
        "y = (a + b).exp() * c": ["y = (a + b) * c"],
        "2 * tl.exp(a - b)": ["2 * (a - b)"],
        "out.clamp_(lo, hi)": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain without each such function."""
        for call in calls(node):
            if call.name.removesuffix("_") not in _ELEMENTWISE or call.is_statement():
                continue
            by_method = call.receiver and call.receiver not in (*MODULES, "self")
            if by_method:
                yield call.dropped()
            elif call.positional:
                value = call.positional[0].value
                text = code(value)
                simple = value.type in ("name", "atom_expr", "atom")
                yield call.replaced(text if simple else bracketed(text, node))


class ChangeRounding(Replacement):
    """Rounds down for to the nearest, or up for down."""

    outcomes: ClassVar[Outcomes] = {
        "x.round_()": ["x.floor_()", "x.trunc_()"],
        "n = a // b": ["n = -(-a // b)"],
        "n = tl.cdiv(n, b)": ["n = n // b"],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the expression rounded in another way."""
        for call in calls(node):
            stem, tail = call.name.removesuffix("_"), "_" * call.name.endswith("_")
            if stem in ("round", "floor", "ceil") and call.function:
                for other in {"round": ("floor", "trunc")}.get(stem, ("round",)):
                    yield call.renamed(other + tail)
            elif stem == "cdiv" and len(call.positional) == 2:
                above, below = (code(argument.value) for argument in call.positional)
                yield call.replaced(bracketed(f"{above} // {below}", node))
        if node.type == "term" and [code(sign) for sign in node.children[1::2]] == ["//"]:
            above, _, below = (code(child) for child in node.children)
            yield f"-(-{above} // {below})"


class ChangeClamp(Replacement):
    """Loses a bound of a clamp, or swaps the two."""

    outcomes: ClassVar[Outcomes] = {
        "x.clamp_(lo, hi)": ["x.clamp_(hi, lo)", "x.clamp_(min=lo)", "x.clamp_(max=hi)"],
        "x.clamp(min=0)": ["x.clamp(max=0)"],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain with other bounds for each clamp."""
        for call in calls(node):
            if call.name not in ("clamp", "clamp_", "clip"):
                continue
            if len(call.positional) == 2:
                low, high = (code(argument.value) for argument in call.positional)
                function = f"{call.receiver}.{call.name}"
                for bounds in (f"{high}, {low}", f"min={low}", f"max={high}"):
                    yield call.replaced(f"{function}({bounds})")
            elif (only := call.keyword("min")) and not call.keyword("max"):
                yield call.replaced(f"{call.receiver}.{call.name}(max={code(only.value)})")
