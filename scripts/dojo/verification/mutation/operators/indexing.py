"""Operators on slices, ranges and padding."""

from collections.abc import Iterator
from typing import ClassVar

from dojo.verification.mutation.operators.base import Outcomes, Replacement
from dojo.verification.mutation.operators.calls import calls
from dojo.verification.mutation.operators.nodes import Node, code, elements


class ChangeSlice(Replacement):
    """Cuts a slice elsewhere: without a bound, or one element off."""

    outcomes: ClassVar[Outcomes] = {
        "x[1:]": ["x[:]"],
        "x[:-1]": ["x[:]"],
        "x[a:b]": ["x[:b]", "x[a:]", "x[a + 1 : b]", "x[a : b - 1]"],
        "x[::-1]": ["x[:]"],
        "x[:]": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield other bounds for a slice."""
        if node.type != "subscript":
            return
        parts = [code(child) for child in node.children]
        if parts[:2] == [":", ":"] or node.children[-1].type == "sliceop":
            yield ":"
            return
        colon = parts.index(":")
        low, high = " ".join(parts[:colon]), " ".join(parts[colon + 1 :])
        yield from ([f":{high}"] if low else []) + ([f"{low}:"] if high else [])
        if low.isidentifier():
            yield f"{low} + 1 : {high}".strip()
        if high.isidentifier():
            yield f"{low} : {high} - 1".strip()


class ChangeRange(Replacement):
    """Starts a loop late or ends it early, by one or by a step."""

    outcomes: ClassVar[Outcomes] = {
        "range(n)": ["range(1, n)", "range(n - 1)"],
        "range(1, n)": ["range(1, n - 1)"],
        "range(0, n, B)": ["range(B, n, B)", "range(0, n - B, B)"],
        "enumerate(x)": ["enumerate(x, 1)"],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield other bounds for each range."""
        for call in calls(node):
            given = [code(argument.value) for argument in call.positional]
            if call.name == "enumerate" and len(given) == 1:
                yield call.extended("1")
            elif call.name == "range" and len(given) == 1 and len(call.arguments) == 1:
                yield call.replaced(f"range(1, {given[0]})")
                yield call.changed(call.positional[0], f"{given[0]} - 1")
            elif call.name == "range" and given:
                step = given[2] if len(given) > 2 else "1"
                if given[0] == "0":
                    yield call.changed(call.positional[0], step)
                yield call.changed(call.positional[1], f"{given[1]} - {step}")


class PadOneSide(Replacement):
    """Pads one side and forgets the other."""

    outcomes: ClassVar[Outcomes] = {
        "F.pad(x, (padding, padding))": ["F.pad(x, (0, padding))", "F.pad(x, (padding, 0))"],
        "border = (padding_w, padding_h)": ["border = (0, padding_h)", "border = (padding_w, 0)"],
        "F.pad(x, (left, right))": ["F.pad(x, (0, right))", "F.pad(x, (left, 0))"],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield no padding for a part of it."""
        if node.type != "name" or node.parent.type != "testlist_comp":
            return
        whole = node.parent.parent.parent
        in_pad = whole.type == "arglist" and code(whole.parent.get_previous_sibling()) == ".pad"
        padded = all(item.type == "name" for item in elements(node.parent))
        if padded and (in_pad or node.value.startswith("padding")):
            yield "0"


class ShiftIndex(Replacement):
    """Reads or writes the neighbour of the element that is meant."""

    outcomes: ClassVar[Outcomes] = {
        "def f(x, at):\n    x[at] = 0\n": ["def f(x, at):\n    x[at - 1] = 0\n"],
        "x[name]": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield a place one before, for an index that is known for a place."""
        places = ("at", "left", "right", "start", "end", "stop", "place", "index", "i", "n")
        if node.type == "name" and node.value in places and node.get_previous_sibling() == "[":
            yield f"{node.value} - 1"
