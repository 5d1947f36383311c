"""Operators on whole statements."""

from collections.abc import Iterator
from typing import ClassVar

from dojo.verification.mutation.operators.base import Outcomes, Replacement
from dojo.verification.mutation.operators.nodes import (
    Node,
    bound_names,
    code,
    elements,
    function_of,
)

_OWNERS = {"self", "ctx", "nn"}  # a change of one attribute is none of the others
_AUGMENTED = ("+=", "-=", "*=", "/=", "|=", "&=")


class PlainAssignment(Replacement):
    """Replaces a value where something is to be added to it."""

    outcomes: ClassVar[Outcomes] = {"x += y": ["x = y"], "x -= y": ["x = y"], "x = y": []}

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield a plain assignment for an augmented one."""
        if node.type == "expr_stmt" and code(node.children[1]) in _AUGMENTED:
            yield f"{code(node.children[0])} = {code(node.children[2])}"


class DeleteStatement(Replacement):
    """Leaves out a statement that changes something, or an early exit."""

    outcomes: ClassVar[Outcomes] = {
        "def f(x):\n    x += 1\n    return x\n": ["def f(x):\n    return x\n"],
        "def f(x):\n    x.relu_()\n    return x\n": ["def f(x):\n    return x\n"],
        "def f(x):\n    if x < 0:\n        return 0\n    return x\n": [
            "def f(x):\n    return x\n",
        ],
        "def f(x):\n    y = x\n    return y\n": [],
        "def f(x):\n    x += 1\n": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield nothing in place of a statement that can be missed."""
        if node.parent is None or node.parent.type != "suite" or len(node.parent.children) < 3:
            return
        if node.type == "simple_stmt" and _changes(node.children[0]):
            yield ""
        elif node.type == "if_stmt" and len(node.children) == 4:
            body = node.children[3]
            last = body.children[-1].children[0] if body.type == "suite" else body
            if last.type in ("return_stmt", "raise_stmt") or code(last) in ("continue", "break"):
                yield ""


def _changes(statement: Node) -> bool:
    """Say whether a statement changes what is there already."""
    if statement.type == "expr_stmt" and len(statement.children) == 3:
        target, sign, value = statement.children
        again = target.type == "name" and target.value in _read(value)
        element = target.type == "atom_expr" and code(target.children[-1]).startswith("[")
        flag = target.type == "atom_expr" and code(value) in ("True", "False")
        return code(sign) in _AUGMENTED or again or element or flag
    called = statement.type == "atom_expr" and code(statement.children[-1]).startswith("(")
    return called and "super()" not in code(statement)


class SwapStatements(Replacement):
    """Does two things in the other order, though one needs the other's result."""

    outcomes: ClassVar[Outcomes] = {
        "def f(x, best):\n    total = x - best\n    best = x\n    return total, best\n": [
            "def f(x, best):\n    best = x\n    total = x - best\n    return total, best\n"
        ],
        "def f(x):\n    y = x\n    z = y\n    return z\n": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield a block with each two such neighbours swapped."""
        if node.type != "suite" or function_of(node) is None:
            return
        for place in range(1, len(node.children) - 1):
            one, other = node.children[place : place + 2]
            if one.type == other.type == "simple_stmt" and _ordered(one, other):
                texts = [child.get_code() for child in node.children]
                texts[place : place + 2] = reversed(texts[place : place + 2])
                yield "".join(texts)[len(node.get_first_leaf().prefix) :]


def _ordered(one: Node, other: Node) -> bool:
    """Say whether the order of two statements matters and neither fails in the other order."""
    written, changed = _written(one), _written(other)
    clash = (written & _read(other)) | (changed & _read(one))
    known = bound_names(function_of(one))
    if _adds(one) and _adds(other):
        return False
    needed = _read(other) & written
    bound = all(name in known and known[name] < one.start_pos for name in needed)
    return bool(clash) and bound and "return" not in code(one) + code(other)


def _adds(statement: Node) -> bool:
    """Say whether a statement adds to an element of a table, which may be done in any order."""
    first = statement.children[0]
    added = first.type == "expr_stmt" and code(first.children[1]) in ("+=", "-=")
    return added and first.children[0].type == "atom_expr"


def _written(statement: Node) -> set[str]:
    """Return the names that a statement binds, or whose object it changes."""
    first = statement.children[0]
    if first.type == "expr_stmt":
        return {item.get_first_leaf().value for item in elements(first.children[0])} - _OWNERS
    method = first.type == "atom_expr" and code(first).split("(")[0].endswith(("_", "append"))
    return {first.get_first_leaf().value} - _OWNERS if method else set()


def _read(node: Node) -> set[str]:
    """Return the names in a node, less those of attributes."""
    if node.type == "name":
        attribute = node.parent.type == "trailer" and node.parent.children[0] == "."
        return set() if attribute else {node.value}
    names: set[str] = set()
    return names.union(*(_read(child) for child in getattr(node, "children", ())))
