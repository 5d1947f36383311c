"""Renames a local variable of a function."""

import ast
import re
from collections.abc import Iterator

from dojo.practice.review.edits import Edit
from dojo.practice.review.refactorings import Parsed, Proposal

# Words that mean as much, whatever the function is about.
_SYNONYMS = {
    "acc": "accumulated",
    "at": "place",
    "batch": "chunk",
    "centred": "centered",
    "chosen": "picked",
    "cols": "columns",
    "columns": "cols",
    "count": "number",
    "end": "stop",
    "exp": "exponentials",
    "found": "matches",
    "grad": "gradient",
    "group": "cluster",
    "i": "index",
    "ids": "id_list",
    "inv_std": "rstd",
    "k": "keys",
    "kept": "remaining",
    "left": "lhs",
    "length": "size",
    "log_probs": "log_p",
    "logits": "raw_scores",
    "loss": "objective",
    "mean": "average",
    "n": "total_count",
    "norm": "magnitude",
    "order": "ordering",
    "out": "result",
    "p": "probs",
    "pair": "couple",
    "part": "piece",
    "parts": "pieces",
    "place": "position",
    "places": "positions",
    "probs": "p",
    "q": "queries",
    "right": "rhs",
    "scale": "multiplier",
    "scores": "points",
    "seen": "met",
    "shifted": "moved",
    "size": "extent",
    "start": "begin",
    "starts": "begins",
    "step": "iteration",
    "sums": "totals",
    "targets": "wanted",
    "tokens": "token_list",
    "total": "overall",
    "v": "values",
    "value": "item",
    "values": "items",
    "var": "variance",
    "weights": "shares",
    "wide": "upcast",
    "x_hat": "normalised",
}
_MOST_LINES = 8  # from the first to the last that changes
_LONGEST = 100  # characters of a line


def renamings(text: Parsed) -> Iterator[Proposal]:
    """Give a local variable another name, wherever it stands."""
    taken = _words(text.tree)
    for node in ast.walk(text.tree):
        if isinstance(node, ast.FunctionDef) and not _is_tangled(node):
            for old in sorted(_locals(node)):
                new = _SYNONYMS.get(old)
                if new is not None and new not in taken:
                    edit = _edit(text, node, old, new)
                    if edit is not None:
                        reason = f"`{old}` is called `{new}`, wherever it stands."
                        yield Proposal(edit, reason, _Renamed(new, old).visit)


def _words(tree: ast.AST) -> set[str]:
    """Return every name in a text, whatever it names."""
    found = set()
    for node in ast.walk(tree):
        for value in vars(node).values():
            if isinstance(value, str):
                found.add(value)
            elif isinstance(value, list):
                found.update(item for item in value if isinstance(item, str))
    return found


def _is_tangled(function: ast.FunctionDef) -> bool:
    """Say whether its names have to do with other scopes, or with texts."""
    tangled = (
        ast.Global,
        ast.Nonlocal,
        ast.ClassDef,
        ast.FunctionDef,
        ast.Lambda,
        ast.JoinedStr,
        ast.Import,
        ast.ImportFrom,
        ast.ExceptHandler,
        ast.Match,
    )
    inner = (node for child in ast.iter_child_nodes(function) for node in ast.walk(child))
    nodes = list(inner)
    calls = {node.id for node in nodes if isinstance(node, ast.Name)}
    return any(isinstance(node, tangled) for node in nodes) or bool(
        calls & {"locals", "vars", "eval", "exec", "globals"}
    )


def _locals(function: ast.FunctionDef) -> set[str]:
    stored = {
        node.id
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    parameters = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    return stored - parameters


def _edit(text: Parsed, function: ast.FunctionDef, old: str, new: str) -> Edit | None:
    places = [
        (node.lineno, node.col_offset)
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and node.id == old
    ]
    first, last = min(places)[0], max(places)[0]
    # A comment that names it would be left behind.
    whole = "\n".join(text.lines[function.lineno - 1 : function.end_lineno])
    if last - first >= _MOST_LINES or len(re.findall(rf"\b{old}\b", whole)) != len(places):
        return None
    lines = [line.encode() for line in text.lines[first - 1 : last]]
    for number, column in sorted(places, reverse=True):
        line = lines[number - first]
        lines[number - first] = line[:column] + new.encode() + line[column + len(old.encode()) :]
    changed = tuple(line.decode() for line in lines)
    if max(map(len, changed)) > _LONGEST:
        return None
    return Edit(first - 1, last, changed, frozenset({old, new}))


class _Renamed(ast.NodeTransformer):
    """Gives the old name back."""

    def __init__(self, new: str, old: str) -> None:
        self._new, self._old = new, old

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id == self._new:
            node.id = self._old
        return node
