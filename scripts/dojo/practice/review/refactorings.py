"""Changes of a text that change nothing: each is derived from the syntax tree, and proved by it.

A refactoring proposes edits, and names a normal form: what a tree becomes once nothing is left of
the difference that it makes. An edit counts if both texts have the same normal form.
"""

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dojo.practice.review.edits import Edit, edited
from dojo.practice.review.outline import Function, Outline, outline_of


@dataclass(frozen=True)
class Parsed:
    """A text that refactorings look at: its lines, and its syntax tree."""

    lines: Sequence[str]
    tree: ast.Module
    outline: Outline

    @classmethod
    def of(cls, source: str) -> "Parsed":
        """Parse a text."""
        tree = ast.parse(source)
        for node in ast.walk(tree):
            for child in ast.iter_child_nodes(node):
                child.parent = node  # type: ignore[attr-defined]
        return cls(source.split("\n"), tree, outline_of(source))

    def segment(self, node: ast.expr | ast.stmt) -> str | None:
        """Return a node's text if it stands on one line."""
        if node.lineno != node.end_lineno or node.end_col_offset is None:
            return None
        return self._bytes(node.lineno)[node.col_offset : node.end_col_offset].decode()

    def replaced(self, node: ast.expr | ast.stmt, text: str, *names: str) -> Edit:
        """Return the edit that puts a text in the place of a node that stands on one line."""
        line = self._bytes(node.lineno)
        new = line[: node.col_offset] + text.encode() + line[node.end_col_offset :]
        return Edit(node.lineno - 1, node.lineno, (new.decode(),), frozenset(names))

    def function(self, node: ast.AST) -> Function | None:
        """Return the innermost function that a node stands in."""
        return self.outline.innermost(getattr(node, "lineno", 1) - 1)

    def in_kernel(self, node: ast.AST) -> bool:
        """Say whether a node stands in a kernel, which is no Python once it is compiled."""
        found = self.outline.outermost(getattr(node, "lineno", 1) - 1)
        return found is not None and found.is_kernel

    def _bytes(self, number: int) -> bytes:
        """Return a line, from 1, as the tree counts its columns."""
        return self.lines[number - 1].encode()


@dataclass(frozen=True)
class Proposal:
    """An edit that is said to change nothing, and why."""

    edit: Edit
    reason: str
    normal: Callable[[ast.Module], ast.AST]

    def holds(self, text: Parsed) -> bool:
        """Say whether the normal forms before and after it are the same."""
        try:
            after = ast.parse("\n".join(edited(text.lines, [self.edit])))
        except SyntaxError:
            return False
        # The normal form changes the tree, so it takes one of its own.
        before = ast.parse("\n".join(text.lines))
        return ast.dump(self.normal(before)) == ast.dump(self.normal(after))


Refactoring = Callable[[Parsed], Iterator[Proposal]]


def as_it_is(tree: ast.Module) -> ast.AST:
    """Return the normal form of what shows in no tree."""
    return tree


def parent(node: ast.AST) -> ast.AST:
    """Return what a node stands in."""
    found: ast.AST = node.parent  # type: ignore[attr-defined]
    return found


def expressions(text: Parsed, kind: type[ast.expr]) -> Iterator[ast.expr]:
    """Yield the expressions of a kind, but those in f-strings: their places are not told there."""
    waiting: list[ast.AST] = [text.tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.JoinedStr):
            continue
        if isinstance(node, kind):
            yield node
        waiting += reversed(list(ast.iter_child_nodes(node)))
