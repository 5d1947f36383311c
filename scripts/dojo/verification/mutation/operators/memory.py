"""Operators on memory that two tensors share, or should not."""

from collections.abc import Iterator
from typing import ClassVar

from dojo.verification.mutation.operators.base import Outcomes, Replacement
from dojo.verification.mutation.operators.calls import MODULES, calls
from dojo.verification.mutation.operators.nodes import Node, code, function_of

ELEMENTWISE = {"add", "sub", "mul", "div", "exp", "log", "abs", "square", "sqrt", "rsqrt", "clamp"}
ELEMENTWISE |= {"masked_fill", "relu", "sigmoid", "tanh", "round", "lerp", "neg", "addcmul"}
_FLAGGED = {"relu", "silu", "dropout"}
_COPIES = ("clone", "copy", "contiguous")


def _is_name(text: str) -> bool:
    """Say whether a text is a name, or an attribute of one."""
    return all(part.isidentifier() for part in text.split("."))


class MakeInPlace(Replacement):
    """Overwrites an operand with the result."""

    outcomes: ClassVar[Outcomes] = {
        "y = x.masked_fill(m, 0)": ["y = x.masked_fill_(m, 0)"],
        "gate = torch.sigmoid(x)": ["gate = x.sigmoid_()"],
        "y = F.relu(x)": ["y = F.relu(x, inplace=True)"],
        "y = np.exp(x)": [],
        "y = (x + 1).exp()": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain with each of its functions in place."""
        for call in calls(node):
            first = call.positional[0].value if call.positional else None
            if call.receiver == "F" and call.name in _FLAGGED:
                yield call.extended("inplace=True")
            elif call.name not in ELEMENTWISE or call.keyword("out"):
                continue
            elif call.receiver == "torch" and first and first.type == "name":
                others = ", ".join(code(argument.node) for argument in call.arguments[1:])
                yield call.replaced(f"{code(first)}.{call.name}_({others})")
            elif call.receiver not in MODULES and _is_name(call.receiver):
                yield call.renamed(call.name + "_")


class DropCopy(Replacement):
    """Leaves out a copy, so that two names share one memory."""

    outcomes: ClassVar[Outcomes] = {
        "d = probs.copy()": ["d = probs"],
        "f(w.contiguous(), x)": ["f(w, x)"],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain without each copy."""
        for call in calls(node):
            if call.name in _COPIES and call.receiver and not call.is_statement():
                yield call.dropped()


class ChangeAugmented(Replacement):
    """Writes into a tensor for making a new one, or makes a new one for writing into it."""

    outcomes: ClassVar[Outcomes] = {
        "x = x + y": ["x += y"],
        "count += 1": ["count = count + 1"],
        "dx += y": [],
        "@triton.jit\ndef f(p):\n    p += 1\n": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield an assignment of the other kind."""
        if node.type != "expr_stmt" or len(node.children) != 3:
            return
        target, sign, value = node.children
        function = function_of(node)
        decorated = function is not None and function.parent.type == "decorated"
        if decorated or target.type != "name":
            return
        if code(sign) == "+=" and value.type == "number":  # others may hold a counter
            yield f"{target.value} = {target.value} + {code(value)}"
        elif code(sign) == "=" and value.type in ("arith_expr", "term"):
            first, operator = (code(child) for child in value.children[:2])
            if first == target.value and operator in "+-*/" and len(value.children) == 3:
                yield f"{target.value} {operator}= {code(value.children[2])}"
