"""Finds what an editor greys out in a text: names that nothing reads, and code that never runs.

Ruff's rules leave some of it alone: parameters, names that a tuple is unpacked into, helpers.
"""

import ast
from collections.abc import Iterator

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_ENDS = (ast.Return, ast.Raise, ast.Break, ast.Continue)


def greyed_out(source: str) -> set[str]:
    """Return, in words, what an editor would grey out."""
    tree = ast.parse(source)
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found = {f"{name} is not used" for name in _hidden(tree) - _read(tree) - attributes}
    for node in ast.walk(tree):
        if isinstance(node, _Function):
            bound = {name for inner in _own(node) for name in _defined(inner)}
            unused = {name for name in bound - _read(node) if not name.startswith("_")}
            found |= {f"{name} is not used in {node.name}" for name in unused}
        found |= {f"what follows `{end}` never runs" for end in _early_ends(node)}
    return found


def _hidden(tree: ast.Module) -> set[str]:
    """Return the imports, and the private names of the module and its classes."""
    scopes = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
    return {
        name
        for scope in scopes
        for node in _own(scope)
        for name in _defined(node)
        if isinstance(node, ast.alias) or (name.startswith("_") and not name.endswith("__"))
    }


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a scope, but not what lies inside the scopes within it."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, _SCOPES):
            yield from _own(child)


def _defined(node: ast.AST) -> Iterator[str]:
    """Yield the names that this node, and none below it, gives a meaning to."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.ExceptHandler(name=str(name)):
            yield name
        case ast.alias(name=name, asname=short):
            yield short or name.partition(".")[0]


def _read(scope: ast.AST) -> set[str]:
    """Return the names that are read anywhere in a scope."""
    names = set()
    for node in ast.walk(scope):
        match node:
            case ast.Name(id=name, ctx=ast.Load() | ast.Del()):
                names.add(name)
            case ast.AugAssign(target=ast.Name(id=name)):  # it stands there as a store alone
                names.add(name)
    return names


def _early_ends(node: ast.AST) -> Iterator[str]:
    """Yield the statements that end a block of this node before its last statement."""
    for block in ("body", "orelse", "finalbody"):
        statements = getattr(node, block, [])
        if isinstance(statements, list):
            yield from (
                ast.unparse(statement)
                for statement in statements[:-1]
                if isinstance(statement, _ENDS)
            )
