"""Refactorings that no syntax tree shows: comments, docstrings, parentheses, looks of numbers."""

import ast
import io
import tokenize
from collections.abc import Iterator

from dojo.practice.review.edits import Edit
from dojo.practice.review.refactorings import Parsed, Proposal, as_it_is, expressions, parent

_LONGEST = 100  # characters of a line

_DOCSTRINGS = {
    "Return ": "Give back ",
    "Yield ": "Give, one after the other, ",
    "Write ": "Put down ",
    "Compute ": "Work out ",
    "Apply ": "Carry out ",
    "Say ": "Tell ",
}
_NUMBERS = {"1e-5": "0.00001", "1e-6": "0.000001", "1e-8": "0.00000001", "1e-3": "0.001"}


def docstrings(text: Parsed) -> Iterator[Proposal]:
    """Reword the first line of a docstring."""
    for node in ast.walk(text.tree):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        first = node.body[0]
        if not isinstance(first, ast.Expr) or not isinstance(first.value, ast.Constant):
            continue
        line = text.lines[first.lineno - 1]
        head, quotes, rest = line.partition('"""')
        for old, new in _DOCSTRINGS.items():
            if quotes and not head.strip() and rest.startswith(old):
                changed = head + quotes + new + rest.removeprefix(old)
                if len(changed) <= _LONGEST:
                    edit = Edit(first.lineno - 1, first.lineno, (changed,))
                    yield Proposal(edit, "A docstring is worded in another way.", _undocumented)


def comments(text: Parsed) -> Iterator[Proposal]:
    """Move a comment from the end of a line to a line of its own above it."""
    source = "\n".join(text.lines)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or "noqa" in token.string:
            continue
        line, column = token.start
        code = text.lines[line - 1][:column]
        if not code.strip():
            continue
        indent = code[: len(code) - len(code.lstrip())]
        edit = Edit(line - 1, line, (indent + token.string, code.rstrip()))
        yield Proposal(edit, "A comment stands in another place.", as_it_is)


def parentheses(text: Parsed) -> Iterator[Proposal]:
    """Put parentheses where Python sets them by itself."""
    for node in expressions(text, ast.BinOp):
        within = parent(node)
        segment = text.segment(node)
        # Of an operand in parentheses the tree has no trace, and the line would have them twice.
        if not isinstance(within, ast.BinOp) or segment is None:
            continue
        line = text.lines[node.lineno - 1].encode()
        end = node.end_col_offset or 0
        if line[: node.col_offset].endswith(b"(") and line[end:].startswith(b")"):
            continue
        reason = f"Python works out `{segment}` first there, with parentheses or without."
        yield Proposal(text.replaced(node, f"({segment})"), reason, as_it_is)


def numbers(text: Parsed) -> Iterator[Proposal]:
    """Spell a number in another way."""
    for node in expressions(text, ast.Constant):
        segment = text.segment(node)
        if segment in _NUMBERS:
            reason = f"{segment} and {_NUMBERS[segment]} are the same number."
            yield Proposal(text.replaced(node, _NUMBERS[segment]), reason, as_it_is)


def _undocumented(tree: ast.Module) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            del node.body[0]
    return tree
