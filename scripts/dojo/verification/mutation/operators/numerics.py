"""Operators on arithmetic: terms, operands and constants."""

from collections.abc import Iterator
from typing import ClassVar

from dojo.verification.mutation.operators.base import Outcomes, Replacement
from dojo.verification.mutation.operators.calls import calls
from dojo.verification.mutation.operators.nodes import Node, bracketed, code, compound, kept

_ROOTS = ("sqrt", "rsqrt")
_FRACTIONS = {"p", "momentum", "dropout", "label_smoothing", "self.momentum", "beta", "decay"}


class MoveEps(Replacement):
    """Adds eps outside of the root that it is meant to guard."""

    outcomes: ClassVar[Outcomes] = {
        "inv = (var + eps).rsqrt()": ["inv = var.rsqrt() + eps"],
        "w * tl.rsqrt(var + self.eps)": ["w * (tl.rsqrt(var) + self.eps)"],
        "(var + 1).sqrt()": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain with eps after each root."""
        for call in calls(node):
            if call.name not in _ROOTS:
                continue
            total = call.arguments[0].value if call.arguments else node.children[0]
            if total.type == "atom":
                total = total.children[1]
            if total.type != "arith_expr" or len(total.children) != 3:
                continue
            value, _, eps = total.children
            if code(eps).endswith("eps"):
                root = f"{call.receiver}.{call.name}({code(value)})"
                if not call.arguments:
                    root = f"{code(value)}.{call.name}()"
                yield call.replaced(bracketed(f"{root} + {code(eps)}", node))


class DropTerm(Replacement):
    """Leaves out a term of a sum, or a factor of a product."""

    outcomes: ClassVar[Outcomes] = {
        "x = a + b": ["x = b", "x = a"],
        "x = a - b": ["x = a"],
        "x = a * b / c": ["x = b / c", "x = a / c", "x = a * b"],
        "y = (var + eps).sqrt()": ["y = eps.sqrt()", "y = var.sqrt()"],
        "y = w * (a - b)": ["y = a - b", "y = w", "y = w * a"],
        "sizes = [n] + [m] * k": ["sizes = [n]", "sizes = [n] + [m]"],
        "x = tl.load(p + i)": ["x = tl.load(i)", "x = tl.load(p)"],
        "x = tl.load(p + i, mask=m)": ["x = tl.load(p, mask=m)"],
        "x = a @ b": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield a sum or product without each of its operands."""
        whole = compound(node, "arith_expr", "term")
        if whole is None or "@" in whole.children[1::2]:
            return
        first = code(whole.children[0])
        needed = first.startswith(("[", '"')) or first.endswith(("ptr", "ptrs"))
        if whole.children[1] in ("+", "*") and not needed and not _is_pointer(whole):
            yield kept(node, whole.children[2:])
        for place in range(2, len(whole.children), 2):
            yield kept(node, whole.children[: place - 1] + whole.children[place + 1 :])


def _is_pointer(node: Node) -> bool:
    """Say whether a sum is what a kernel reads from or writes to."""
    arguments = node.parent
    callee = arguments.parent.get_previous_sibling() if arguments.type == "arglist" else None
    accessed = callee is not None and code(callee) in (".load", ".store")
    return accessed and arguments.children[0] is node


class SwapOperands(Replacement):
    """Takes the two sides of a difference, a quotient or a copy for each other."""

    outcomes: ClassVar[Outcomes] = {
        "x = a - b": ["x = b - a"],
        "x = alpha / r": ["x = r / alpha"],
        "x = (a + b) / c": ["x = c / (a + b)"],
        "out.copy_(x)": ["x.copy_(out)"],
        "x = a - b - c": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the two operands in the other order."""
        if node.type in ("arith_expr", "term") and len(node.children) == 3:
            left, sign, right = (code(child) for child in node.children)
            tight = node.type == "term" or node.children[2].type != "arith_expr"
            if sign in ("-", "/") and tight:
                yield f"{right} {sign} {left}"
        for call in calls(node):
            if call.name in ("copy_", "sub", "sub_", "div", "div_") and len(call.positional) == 1:
                other = call.positional[0].value
                if other.type == "name":
                    yield call.replaced(f"{code(other)}.{call.name}({call.receiver})")


class ComplementFraction(Replacement):
    """Takes 1 - p for p."""

    outcomes: ClassVar[Outcomes] = {
        "x.lerp_(y, self.momentum)": ["x.lerp_(y, 1 - self.momentum)"],
        "y = F.dropout(x, p)": ["y = F.dropout(x, 1 - p)"],
        "y = 1 - label_smoothing": ["y = label_smoothing"],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the complement of a fraction."""
        if node.type == "arith_expr" and len(node.children) == 3:
            one, sign, fraction = (code(child) for child in node.children)
            if (one, sign) == ("1", "-") and fraction in _FRACTIONS:
                yield fraction
        elif code(node) in _FRACTIONS and node.parent.type == "arglist":
            yield f"1 - {code(node)}"


class ScaleConstant(Replacement):
    """Takes ten times or a tenth of a small constant, or a power with the other sign."""

    outcomes: ClassVar[Outcomes] = {
        "eps = 1e-5": ["eps = 1e-4", "eps = 1e-6"],
        "s = d**-0.5": ["s = d**0.5", "s = d**-1"],
        "s = 0.5": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield other values for a constant."""
        if node.type == "number" and "e-" in node.value:
            digits, exponent = node.value.split("e-")
            for other in (int(exponent) - 1, int(exponent) + 1):
                yield f"{digits}e-{other}"
        elif node.type == "factor" and code(node) == "-0.5" and node.parent.type == "power":
            yield "0.5"
            yield "-1"
