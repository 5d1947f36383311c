"""Refactorings that Python's own rules make certain, whatever the values are."""

import ast
from collections.abc import Iterator
from typing import TypeGuard

from dojo.practice.review.edits import Edit
from dojo.practice.review.refactorings import Parsed, Proposal, expressions, parent

_MIRRORED: dict[type[ast.cmpop], tuple[str, type[ast.cmpop]]] = {
    ast.Lt: (">", ast.Gt),
    ast.Gt: ("<", ast.Lt),
    ast.LtE: (">=", ast.GtE),
    ast.GtE: ("<=", ast.LtE),
    ast.Eq: ("==", ast.Eq),
    ast.NotEq: ("!=", ast.NotEq),
}
_COMPARED = {ast.Lt: "<", ast.Gt: ">", ast.LtE: "<=", ast.GtE: ">="}
_COMMUTATIVE = {ast.Add: "+", ast.Mult: "*"}
_STEPS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}


def keywords(text: Parsed) -> Iterator[Proposal]:
    """Give two keyword arguments of a call in the other order."""
    for node in expressions(text, ast.Call):
        assert isinstance(node, ast.Call)
        given = node.keywords
        if len(given) < 2 or any(item.arg is None for item in given) or _takes_any(text, node):
            continue
        one, other = given[-2:]
        if not (_is_plain(one.value) and _is_plain(other.value)):
            continue  # what they do may depend on their order
        first, second = text.segment(one.value), text.segment(other.value)
        if first is None or second is None or one.lineno != other.lineno:
            continue
        line = text.lines[one.lineno - 1].encode()
        between = line[one.end_col_offset : other.col_offset].decode()
        swapped = f"{other.arg}={second}{between}{one.arg}={first}"
        new = line[: one.col_offset] + swapped.encode() + line[other.end_col_offset :]
        edit = Edit(one.lineno - 1, one.lineno, (new.decode(),))
        reason = f"The order of keyword arguments, `{one.arg}` and `{other.arg}`, has no say."
        yield Proposal(edit, reason, _KeywordsInOrder().visit)


def mirrored(text: Parsed) -> Iterator[Proposal]:
    """Write a comparison with a number from the other side, or a sum or product with one."""
    for node in expressions(text, ast.Compare):
        assert isinstance(node, ast.Compare)
        found = _MIRRORED.get(type(node.ops[0]))
        right = node.comparators[0]
        if len(node.ops) > 1 or found is None or not _is_number(right):
            continue
        if not isinstance(node.left, ast.Name | ast.Attribute | ast.Subscript | ast.Call):
            continue
        left, number = text.segment(node.left), text.segment(right)
        if left is None or number is None or text.segment(node) is None or text.in_kernel(node):
            continue
        edit = text.replaced(node, f"{number} {found[0]} {left}")
        reason = f"`{text.segment(node)}` says the same from the other side."
        yield Proposal(edit, reason, _NumberLast().visit)


def swapped(text: Parsed) -> Iterator[Proposal]:
    """Swap a number with the other operand of a sum or a product."""
    for node in expressions(text, ast.BinOp):
        assert isinstance(node, ast.BinOp)
        sign = _COMMUTATIVE.get(type(node.op))
        if sign is None or _is_number(node.left) == _is_number(node.right):
            continue
        other = node.left if _is_number(node.right) else node.right
        if not isinstance(other, ast.Name | ast.Attribute | ast.Subscript | ast.Call):
            continue
        left, right = text.segment(node.left), text.segment(node.right)
        whole = text.segment(node)
        if left is None or right is None or whole is None or text.in_kernel(node):
            continue
        within = parent(node)
        if isinstance(within, ast.BinOp | ast.UnaryOp):
            continue  # the order of what is worked out would change
        reason = f"A number may stand on either side of the {sign} in `{whole}`."
        yield Proposal(text.replaced(node, f"{right} {sign} {left}"), reason, _NumberLast().visit)


def chains(text: Parsed) -> Iterator[Proposal]:
    """Split a comparison in three parts."""
    for node in expressions(text, ast.Compare):
        assert isinstance(node, ast.Compare)
        if len(node.ops) != 2 or not isinstance(node.comparators[0], ast.Name):
            continue
        if not isinstance(parent(node), ast.If | ast.While | ast.Return | ast.GeneratorExp):
            continue
        parts = [text.segment(item) for item in (node.left, *node.comparators)]
        signs = [_COMPARED.get(type(op)) for op in node.ops]
        if None in parts or None in signs or text.in_kernel(node):
            continue
        split = f"{parts[0]} {signs[0]} {parts[1]} and {parts[1]} {signs[1]} {parts[2]}"
        reason = f"`{text.segment(node)}` is short for both comparisons."
        yield Proposal(text.replaced(node, split), reason, _Split().visit)


def slices(text: Parsed) -> Iterator[Proposal]:
    """Say that a slice begins at 0."""
    for node in expressions(text, ast.Slice):
        assert isinstance(node, ast.Slice)
        if node.lower is None and node.upper is not None and node.step is None:
            segment = text.segment(node)
            if segment is not None and not text.in_kernel(node):
                reason = f"A slice `{segment}` begins at 0."
                yield Proposal(text.replaced(node, f"0{segment}"), reason, _Defaults().visit)


def ranges(text: Parsed) -> Iterator[Proposal]:
    """Say that a range or an enumeration begins at 0."""
    for node in expressions(text, ast.Call):
        assert isinstance(node, ast.Call)
        if not isinstance(node.func, ast.Name) or len(node.args) != 1 or node.keywords:
            continue
        argument = text.segment(node.args[0])
        if argument is None or text.segment(node) is None or text.in_kernel(node):
            continue
        new = {"range": f"range(0, {argument})", "enumerate": f"enumerate({argument}, start=0)"}
        if node.func.id in new and not isinstance(node.args[0], ast.Starred | ast.GeneratorExp):
            reason = f"`{node.func.id}` begins at 0 by itself."
            yield Proposal(text.replaced(node, new[node.func.id]), reason, _Defaults().visit)


def conditionals(text: Parsed) -> Iterator[Proposal]:
    """Swap the two sides of a conditional expression, and negate its condition."""
    for node in expressions(text, ast.IfExp):
        assert isinstance(node, ast.IfExp)
        sides = [text.segment(item) for item in (node.body, node.test, node.orelse)]
        whole = text.segment(node)
        if None in sides or whole is None or text.in_kernel(node):
            continue
        if isinstance(node.orelse, ast.IfExp | ast.Lambda):
            continue
        body, test, other = sides
        negated = f"not ({test})" if isinstance(node.test, ast.BoolOp) else f"not {test}"
        reason = "The sides are swapped and the condition is negated."
        edit = text.replaced(node, f"{other} if {negated} else {body}")
        yield Proposal(edit, reason, _Affirmed().visit)


def returns(text: Parsed) -> Iterator[Proposal]:
    """Give what is returned a name first."""
    names = {node.id for node in ast.walk(text.tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(text.tree) if isinstance(node, ast.arg)}
    name = next((word for word in ("result", "answer", "outcome") if word not in names), None)
    for node in ast.walk(text.tree):
        if name is None or not isinstance(node, ast.Return) or text.in_kernel(node):
            continue
        if not isinstance(node.value, ast.BinOp | ast.Call) or text.segment(node) is None:
            continue
        line = text.lines[node.lineno - 1]
        value = text.segment(node.value)
        indent = line[: len(line) - len(line.lstrip())]
        if line != f"{indent}return {value}":  # something else stands on the line
            continue
        new = (f"{indent}{name} = {value}", f"{indent}return {name}")
        edit = Edit(node.lineno - 1, node.lineno, new, frozenset({name}))
        reason = "What is returned has a name first, and is the same."
        yield Proposal(edit, reason, _Unnamed(name).visit)


def counters(text: Parsed) -> Iterator[Proposal]:
    """Write `n += 1` in full, of a name that is a whole number wherever it is set."""
    for node in ast.walk(text.tree):
        if not isinstance(node, ast.AugAssign) or not isinstance(node.target, ast.Name):
            continue
        name, sign = node.target.id, _STEPS.get(type(node.op))
        if sign is None or not _is_whole(node.value) or not _counts(text, node, name):
            continue
        value = text.segment(node.value)
        if value is not None and text.segment(node) is not None:
            edit = text.replaced(node, f"{name} = {name} {sign} {value}", name)
            reason = f"`{name}` is a whole number, of which both spellings are the same."
            yield Proposal(edit, reason, _InFull(name).visit)


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _is_whole(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "len"
    return isinstance(node, ast.Constant) and type(node.value) is int


def _is_plain(node: ast.expr) -> bool:
    """Say whether working it out does nothing else."""
    if isinstance(node, ast.UnaryOp):
        return _is_plain(node.operand)
    if isinstance(node, ast.Attribute):
        return _is_plain(node.value)
    return isinstance(node, ast.Constant | ast.Name)


def _takes_any(text: Parsed, call: ast.Call) -> bool:
    """Say whether a call may take keywords by any name, and so see their order."""
    if isinstance(call.func, ast.Attribute):
        name = call.func.attr
    elif isinstance(call.func, ast.Name):
        name = call.func.id
    else:
        return True
    if name in ("dict", "OrderedDict", "update", "format", "partial"):
        return True
    return any(
        isinstance(node, ast.FunctionDef | ast.Lambda) and node.args.kwarg is not None
        for node in ast.walk(text.tree)
    )


def _counts(text: Parsed, node: ast.AugAssign, name: str) -> bool:
    """Say whether a name of a function is set to whole numbers alone, and is no one else's."""
    scope: ast.AST = node
    while not isinstance(scope, ast.FunctionDef | ast.Module | ast.ClassDef | ast.Lambda):
        scope = parent(scope)
    if not isinstance(scope, ast.FunctionDef) or text.in_kernel(node):
        return False
    for inner in ast.walk(scope):
        if isinstance(inner, ast.Global | ast.Nonlocal) and name in inner.names:
            return False
        if isinstance(inner, ast.arg) and inner.arg == name:
            return False
        if isinstance(inner, ast.Name) and inner.id == name and not isinstance(inner.ctx, ast.Load):
            place = parent(inner)
            if isinstance(place, ast.Assign | ast.AugAssign) and _is_whole(place.value):
                continue
            return False
    return True


class _KeywordsInOrder(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        node.keywords.sort(key=lambda item: item.arg or "")
        return node


class _NumberLast(ast.NodeTransformer):
    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) == 1 and _is_number(node.left) and type(node.ops[0]) in _MIRRORED:
            mirror = _MIRRORED[type(node.ops[0])][1]
            return ast.Compare(node.comparators[0], [mirror()], [node.left])
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if type(node.op) in _COMMUTATIVE and _is_number(node.left):
            return ast.BinOp(node.right, node.op, node.left)
        return node


class _Split(ast.NodeTransformer):
    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) != 2 or not _is_name(node.comparators[0]):
            return node
        first = ast.Compare(node.left, node.ops[:1], node.comparators[:1])
        second = ast.Compare(node.comparators[0], node.ops[1:], node.comparators[1:])
        return ast.BoolOp(ast.And(), [first, second])


class _Defaults(ast.NodeTransformer):
    def visit_Slice(self, node: ast.Slice) -> ast.AST:
        self.generic_visit(node)
        if node.step is None and node.upper is not None and _is_zero(node.lower):
            node.lower = None
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "range" and len(node.args) == 2 and _is_zero(node.args[0]):
            del node.args[0]
        if name == "enumerate" and len(node.keywords) == 1 and _is_zero(node.keywords[0].value):
            node.keywords.clear()
        return node


class _Affirmed(ast.NodeTransformer):
    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        while isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not):
            node = ast.IfExp(node.test.operand, node.orelse, node.body)
        return node


class _Unnamed(ast.NodeTransformer):
    """Takes `name = value; return name` for `return value`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list) and len(block) > 1:
                self._take(block)
        return node

    def _take(self, block: list[ast.stmt]) -> None:
        last, before = block[-1], block[-2]
        if not isinstance(last, ast.Return) or not isinstance(before, ast.Assign):
            return
        names = [last.value, *before.targets]
        if len(names) == 2 and all(_is_name(item) and item.id == self._name for item in names):
            block[-2:] = [ast.Return(before.value)]


class _InFull(ast.NodeTransformer):
    def __init__(self, name: str) -> None:
        self._name = name

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        if not _is_name(node.target) or node.target.id != self._name:
            return node
        load = ast.Name(self._name, ast.Load())
        return ast.Assign([node.target], ast.BinOp(load, node.op, node.value))


def _is_name(node: ast.AST | None) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name)


def _is_zero(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value == 0
