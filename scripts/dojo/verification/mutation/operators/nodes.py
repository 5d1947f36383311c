"""What the operators ask of a syntax tree: texts, brackets, names and scopes."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

Node = Any  # parso's nodes and leaves, whose attributes differ from kind to kind

# Operands of these need brackets around a sum.
_TIGHT = {"term", "arith_expr", "power", "factor", "comparison", "and_expr", "atom_expr", "expr"}
_SIMPLE = {"name", "number", "atom", "atom_expr", "string"}


def code(node: Node) -> str:
    """Return the text of a node without the blanks and comments before it."""
    return str(node.get_code(include_prefix=False))


def rendered(node: Node, changes: Mapping[Node, str]) -> str:
    """Return the text of a node with other text for some nodes in it; empty text deletes one."""
    return _render(node, changes)[len(node.get_first_leaf().prefix) :]


def _render(node: Node, changes: Mapping[Node, str]) -> str:
    if node in changes:
        text = changes[node]
        return node.get_first_leaf().prefix + text if text else ""
    if not hasattr(node, "children"):
        return str(node.get_code())
    return "".join(_render(child, changes) for child in node.children)


def elements(node: Node) -> list[Node]:
    """Return what commas separate in a node; the node itself where there are none."""
    lists = {"arglist", "testlist_comp", "testlist", "testlist_star_expr", "subscriptlist"}
    if node.type not in lists or code(node.children[1]) != ",":
        return [node]
    return [child for child in node.children if code(child) != ","]


def bracketed(text: str, node: Node) -> str:
    """Return the text of a sum or product as it must stand in place of the node."""
    return f"({text})" if node.parent.type in _TIGHT else text


def compound(node: Node, *kinds: str) -> Node:
    """Return the expression of such a kind that a node is, or has in its brackets, or None.

    One in brackets is not found on its own too, so that the brackets can go if they must.
    """
    if _is_bracketed(node):
        return node.children[1] if node.children[1].type in kinds else None
    in_brackets = node.parent is not None and _is_bracketed(node.parent)
    return node if node.type in kinds and not in_brackets else None


def kept(node: Node, children: list[Node]) -> str:
    """Return what may stand for a compound node of which only these children are left."""
    text = "".join(child.get_code() for child in children).strip()
    if len(children) > 1 or children[0].type not in _SIMPLE:
        return f"({text})" if _is_bracketed(node) else text
    return bare(children[0], node)


def bare(part: Node, node: Node) -> str:
    """Return the text of a part as it stands in place of the node, without needless brackets."""
    text = code(part)
    needless = _is_bracketed(part) and node.parent.type not in _TIGHT and "\n" not in text
    return text[1:-1] if needless else text


def _is_bracketed(node: Node) -> bool:
    return bool(node.type == "atom" and node.children[0] == "(" and len(node.children) == 3)


def function_of(node: Node) -> Node:
    """Return the function that a node is part of, or None."""
    return node.search_ancestor("funcdef")


def in_kernel(node: Node) -> bool:
    """Say whether a node is part of a Triton kernel."""
    function = function_of(node)
    decorated = function is not None and function.parent.type == "decorated"
    return decorated and "triton.jit" in function.parent.children[0].get_code()


@lru_cache(maxsize=32)
def bound_names(function: Node) -> dict[str, tuple[int, int]]:
    """Return the names that a function binds, parameters first, and where it does so first."""
    found: dict[str, tuple[int, int]] = {}
    for name in _names(function):
        if name.is_definition() and name is not function.name:
            found.setdefault(name.value, name.start_pos)
    return found


def _names(node: Node) -> Iterator[Node]:
    if node.type == "name":
        yield node
    for child in getattr(node, "children", ()):
        yield from _names(child)
