"""Writes a proof for its author to fill in: the kata's functions, and one worked example.

The example is a test of the kata's own, the shortest that catches a catalogued bug, with all that
it needs of its file.
"""

import ast
from collections.abc import Iterable

from dojo.kata.kata import Kata

_WIDTH = 100

_HEAD = '''\
"""Your tests of {title}, to prove which versions of it are wrong.

Each takes `impl`, a version as a module. A correct one has to pass them all, and each wrong one
has to fail some. README.md says what is promised of

{functions}

Compare as you like: a plain assert, torch.testing, or what .github/TESTING.md has. Below is a
worked example.
"""

'''


def proof_template(kata: Kata) -> str:
    """Return the text of a proof with one test."""
    source = kata.tests.read_text(encoding="utf-8")
    module = ast.parse(source)
    example = min(_examples(kata, module), key=_length)
    head = _HEAD.format(title=kata.title, functions=_signatures(kata))
    imports = "\n".join(_imports(module, example))
    if kata.needs_triton and "dojo.kernels" not in imports:
        imports = f"import dojo.kernels  # before triton: it says where kernels run\n{imports}"
    lines = source.splitlines()
    parts = ["\n".join(_lines(lines, statement)) for statement in example]
    return head + imports + "\n\n\n" + "\n\n\n".join(parts) + "\n"


def _signatures(kata: Kata) -> str:
    nodes = ast.parse(kata.correct_source).body
    found = [
        f"    {node.name}({ast.unparse(node.args)})"
        if isinstance(node, ast.FunctionDef)
        else f"    class {node.name}"
        for node in nodes
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    ]
    return "\n".join(
        line if len(line) <= _WIDTH else f"{line.partition('(')[0]}(...)" for line in found
    )


def _examples(kata: Kata, module: ast.Module) -> Iterable[list[ast.stmt]]:
    """Yield each test that catches a bug without a GPU, with the definitions that it needs."""
    catching = {name for bug in kata.bugs if not bug.gpu for name in bug.killed_by}
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and node.name in catching:
            yield _needed(module, node)


def _needed(module: ast.Module, test: ast.FunctionDef) -> list[ast.stmt]:
    """Return the statements of the file that a test needs, itself among them, in their order."""
    needed: list[ast.stmt] = [test]
    for statement in needed:
        names = _names(statement)
        needed += [
            other
            for other in module.body
            if other not in needed and not _is_import(other) and _defined(other) & names
        ]
    return [statement for statement in module.body if statement in needed]


def _names(statement: ast.stmt) -> set[str]:
    """Return the names that a statement may refer to: those it reads, and its fixtures."""
    nodes = list(ast.walk(statement))
    read = {node.id for node in nodes if isinstance(node, ast.Name)}
    return read | {node.arg for node in nodes if isinstance(node, ast.arg)}


def _defined(statement: ast.stmt) -> set[str]:
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return {statement.name}
    return {
        node.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def _imports(module: ast.Module, statements: list[ast.stmt]) -> list[str]:
    """Return the file's imports, as far as the statements need them."""
    names = set().union(*map(_names, statements))
    found = []
    for node in module.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            node.names = [alias for alias in node.names if _bound(alias) in names]
            found += [_wrapped(node)] if node.names else []
    return found


def _wrapped(node: ast.Import | ast.ImportFrom) -> str:
    """Return an import as a formatter leaves it."""
    text = ast.unparse(node)
    if len(text) <= _WIDTH:
        return text
    head, _, names = text.partition(" import ")
    lines = "".join(f"    {name},\n" for name in names.split(", "))
    return f"{head} import (\n{lines})"


def _bound(alias: ast.alias) -> str:
    return (alias.asname or alias.name).partition(".")[0]


def _lines(lines: list[str], statement: ast.stmt) -> list[str]:
    """Return a statement's lines, with the comment that stands above it."""
    first = _first_line(statement) - 1
    while first and lines[first - 1].startswith("#"):
        first -= 1
    return lines[first : statement.end_lineno]


def _is_import(statement: ast.stmt) -> bool:
    return isinstance(statement, (ast.Import, ast.ImportFrom))


def _length(statements: list[ast.stmt]) -> int:
    return sum((statement.end_lineno or 0) - _first_line(statement) + 1 for statement in statements)


def _first_line(statement: ast.stmt) -> int:
    decorators = getattr(statement, "decorator_list", [])
    lines = [decorator.lineno for decorator in decorators]
    return min(lines, default=statement.lineno)
