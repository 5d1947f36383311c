"""Operators on masks, on what stands where they are set, and on conditions."""

from collections.abc import Iterator
from typing import ClassVar

from dojo.verification.mutation.operators.base import Outcomes, Replacement
from dojo.verification.mutation.operators.calls import Call, calls
from dojo.verification.mutation.operators.nodes import Node, code, compound, in_kernel, kept

_FILLS = ("masked_fill", "masked_fill_", "where", "load", "full", "full_like")
_INFINITE = ('-float("inf")', 'float("-inf")', "-torch.inf", "-math.inf", "-np.inf")


class ChangeFillValue(Replacement):
    """Puts another value where a mask says so: 0 for -inf, and the like."""

    outcomes: ClassVar[Outcomes] = {
        "x.masked_fill(mask, -torch.inf)": ["x.masked_fill(mask, 0.0)"],
        "x.masked_fill(mask, 0)": ["x.masked_fill(mask, 1)", "x.masked_fill(mask, -1e9)"],
        "tl.load(p, mask=m, other=0.0)": [
            "tl.load(p, mask=m, other=1.0)",
            'tl.load(p, mask=m, other=-float("inf"))',
        ],
        "torch.where(x > 0, x, 0.0)": ["torch.where(x > 0, x, 1.0)"],
        "x.clamp(min=torch.finfo(x.dtype).min)": ["x.clamp(min=torch.finfo(x.dtype).max)"],
        "tl.full((R,), LOWEST, tl.float32)": ["tl.full((R,), 0.0, tl.float32)"],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain with other values filled in."""
        for call in calls(node):
            yield from self._filled(call)
        if node.type == "atom_expr" and code(node).startswith("torch.finfo("):
            text = code(node)
            if text.endswith(".min"):
                yield text.removesuffix("min") + "max"

    def _filled(self, call: Call) -> Iterator[str]:
        if call.name not in _FILLS or not call.receiver:
            return
        last = call.positional[1:2] if "full" in call.name else call.positional[-1:]
        value = call.keyword("value", "other") or (last[0] if last else None)
        if value is None:
            return
        text = code(value.value)
        if text in _INFINITE or text == "LOWEST" or text.startswith("torch.finfo"):
            yield call.changed(value, "0.0")
        elif text in ("0", "0.0"):
            yield call.changed(value, text.replace("0", "1", 1))
            if call.name == "load" and text == "0.0":
                yield call.changed(value, '-float("inf")')
            elif call.name.startswith("masked_fill"):
                yield call.changed(value, "-1e9")
        elif text in ("1", "1.0"):
            yield call.changed(value, text.replace("1", "0", 1))


class InvertMask(Replacement):
    """Takes a mask for its opposite."""

    outcomes: ClassVar[Outcomes] = {
        "x.masked_fill(later, 0)": ["x.masked_fill(~later, 0)"],
        "torch.where(c, a, b)": ["torch.where(c, b, a)"],
        "x.masked_fill(x < 0, 0)": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain with a mask inverted, or the two sides of a choice exchanged."""
        for call in calls(node):
            given = call.positional
            if call.name in ("masked_fill", "masked_fill_") and given:
                if given[0].value.type in ("name", "atom_expr"):
                    yield call.changed(given[0], "~" + code(given[0].value))
            elif call.name == "where" and len(given) == 3:
                mask, yes, no = (code(argument.node) for argument in given)
                yield call.replaced(f"{call.receiver}.where({mask}, {no}, {yes})")


class DropMask(Replacement):
    """Leaves out a mask, or one of the two values that it chooses from."""

    outcomes: ClassVar[Outcomes] = {
        "y = x.softmax(-1).masked_fill(m, 0)": ["y = x.softmax(-1)"],
        "tl.where(m, a - b, 0.0) * c": ["(a - b) * c"],
        "scores.masked_fill_(m, 0)": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain without each mask; a statement is left to `DeleteStatement`."""
        for call in calls(node):
            if call.is_statement():
                continue
            if call.name in ("masked_fill", "masked_fill_"):
                yield call.dropped()
            elif call.name == "where" and len(call.positional) == 3:
                chosen = call.positional[1 if code(call.positional[1].value) != "0.0" else 2].value
                if chosen.type == "number":
                    chosen = call.positional[2].value
                text = code(chosen)
                simple = chosen.type in ("name", "number", "atom_expr", "atom")
                yield call.replaced(text if simple else f"({text})")


class DropCondition(Replacement):
    """Leaves out one of the conditions that must hold together."""

    outcomes: ClassVar[Outcomes] = {
        "x = a and b": ["x = b", "x = a"],
        "mask = (row < rows) & (column < columns)": [
            "mask = column < columns",
            "mask = row < rows",
        ],
        "x = a or b": ["x = b", "x = a"],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield a conjunction or disjunction without each of its parts."""
        whole = compound(node, "and_test", "or_test", "and_expr")
        if whole is None:
            return
        yield kept(node, whole.children[2:])
        for place in range(2, len(whole.children), 2):
            yield kept(node, whole.children[: place - 1] + whole.children[place + 1 :])


class ShrinkBound(Replacement):
    """Stops one element short of a bound in a kernel."""

    outcomes: ClassVar[Outcomes] = {
        "@triton.jit\ndef f(n):\n    mask = cols < n\n": [
            "@triton.jit\ndef f(n):\n    mask = cols < n - 1\n"
        ],
        "mask = cols < n": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield a comparison with a bound that is one less."""
        if node.type == "comparison" and code(node.children[1]) == "<" and in_kernel(node):
            bound = node.children[-1]
            if bound.type == "name":
                yield f"{code(node)} - 1"
