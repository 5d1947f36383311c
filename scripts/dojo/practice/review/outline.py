"""Which function of a text each line stands in."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Function:
    """A function: its dotted name, and its lines from `start` (from 0) up to `stop`."""

    name: str
    start: int
    stop: int
    is_kernel: bool = False

    @property
    def lines(self) -> int:
        """Return how many lines it has."""
        return self.stop - self.start


class Outline:
    """The functions of a text, those that stand in others too."""

    def __init__(self, tree: ast.Module) -> None:
        """Find them."""
        self.functions = list(_functions(tree, ""))

    def innermost(self, line: int) -> Function | None:
        """Return the innermost function of a line; None outside of all."""
        found = [one for one in self.functions if one.start <= line < one.stop]
        return found[-1] if found else None

    def outermost(self, line: int) -> Function | None:
        """Return the outermost function of a line: one in a class, or in none."""
        found = [one for one in self.functions if one.start <= line < one.stop]
        return found[0] if found else None

    def named(self, name: str) -> Function | None:
        """Return the function of that dotted name, if there is one alone."""
        found = [one for one in self.functions if one.name == name]
        return found[0] if len(found) == 1 else None


@lru_cache(maxsize=64)
def outline_of(source: str) -> Outline:
    """Return the functions of a text, which is parsed once."""
    return Outline(ast.parse(source))


def _functions(node: ast.AST, scope: str) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        name = f"{scope}.{child.name}" if scope else child.name
        if not isinstance(child, ast.ClassDef):
            decorators = child.decorator_list
            start = min([child.lineno, *(item.lineno for item in decorators)]) - 1
            kernel = any("jit" in ast.dump(item) for item in decorators)
            yield Function(name, start, child.end_lineno or child.lineno, kernel)
        yield from _functions(child, name)
