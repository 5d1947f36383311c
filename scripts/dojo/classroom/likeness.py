"""Sees which texts are the same program: names count, docstrings, comments and layout do not."""

import ast
import hashlib
import warnings


def tree_revision(text: str) -> str | None:
    """Return the name of a text's syntax tree without its docstrings; none if it has no tree."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the text: a strange escape, say
            tree = ast.parse(text)
        for node in ast.walk(tree):
            _drop_docstring(node)
        return hashlib.sha256(ast.dump(tree).encode(errors="surrogatepass")).hexdigest()
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _drop_docstring(node: ast.AST) -> None:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return
    match node.body:
        case [ast.Expr(value=ast.Constant(value=str())), *rest]:
            node.body = rest
