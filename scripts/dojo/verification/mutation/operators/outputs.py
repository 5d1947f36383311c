"""Operators on where a result is written: into the caller's tensor, a copy or a new one."""

from collections.abc import Iterator
from typing import ClassVar

from dojo.verification.mutation.operators.base import Outcomes, Replacement
from dojo.verification.mutation.operators.calls import Call, calls
from dojo.verification.mutation.operators.memory import ELEMENTWISE
from dojo.verification.mutation.operators.nodes import Node, bound_names, code, function_of


def _changes_tensor(call: Call) -> bool:
    """Say whether a method that ends in an underscore is one of a tensor's."""
    return not call.name.endswith("__") and not call.receiver.endswith("init")


class LoseInPlace(Replacement):
    """Binds a name to a new tensor where the caller's tensor was to be written."""

    outcomes: ClassVar[Outcomes] = {
        "out.clamp_(lo, hi)": ["out = out.clamp(lo, hi)"],
        "self.mean.lerp_(m, a)": ["self.mean.lerp(m, a)"],
        "out.copy_(x)": ["out = x", "out.data = x"],
        "torch.mul(x, gate, out=out)": ["out = torch.mul(x, gate)"],
        "y = x.exp_()": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield a statement whose result goes elsewhere."""
        for call in calls(node):
            out = call.keyword("out")
            if not call.is_statement():
                continue
            if out:
                yield f"{code(out.value)} = {call.without(out)}"
            elif call.name == "copy_" and call.positional:
                yield f"{call.receiver} = {code(call.positional[0].value)}"
                yield f"{call.receiver}.data = {code(call.positional[0].value)}"
            elif call.name.endswith("_") and _changes_tensor(call):
                lost = call.renamed(call.name.removesuffix("_"))
                yield f"{call.receiver} = {lost}" if call.receiver.isidentifier() else lost


class WriteToCopy(Replacement):
    """Writes into a copy, which nobody reads."""

    outcomes: ClassVar[Outcomes] = {
        "torch.mul(x, y, out=out)": [
            "torch.mul(x, y, out=out.clone())",
            "torch.mul(x, y, out=out.contiguous())",
        ],
        "out.copy_(x)": ["out.clone().copy_(x)", "out.contiguous().copy_(x)"],
        "y = x.exp_()": [],
        "nn.init.zeros_(w)": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield a statement that writes into a copy."""
        for call in calls(node):
            if not call.is_statement():
                continue
            for copy in ("clone", "contiguous"):
                if out := call.keyword("out"):
                    yield call.changed(out, f"{code(out.value)}.{copy}()")
                elif call.name.endswith("_") and _changes_tensor(call):
                    arguments = code(node.children[call.place])
                    yield f"{call.receiver}.{copy}().{call.name}{arguments}"


class UseOutAsScratch(Replacement):
    """Keeps an intermediate result in the caller's output, which may be an input too."""

    outcomes: ClassVar[Outcomes] = {
        "def f(x, out):\n    g = torch.sigmoid(x)\n": [
            "def f(x, out):\n    g = torch.sigmoid(x, out=out)\n"
        ],
        "def f(x):\n    g = torch.sigmoid(x)\n": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield a call of torch's that also writes into `out`, if that is there by then."""
        function = function_of(node)
        bound = bound_names(function).get("out") if function else None
        if bound is None or bound[0] >= node.start_pos[0]:
            return
        for call in calls(node):
            known = call.name in ELEMENTWISE and call.receiver == "torch"
            if known and not call.keyword("out"):
                yield call.extended("out=out")


class SplitInSteps(Replacement):
    """Copies one operand into the output before the other is read."""

    outcomes: ClassVar[Outcomes] = {
        "torch.add(x, y, out=out)": ["out.copy_(x).add_(y)", "out.copy_(y).add_(x)"],
        "torch.add(x, y)": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield two steps in place of one."""
        for call in calls(node):
            out = call.keyword("out")
            if out and call.name in ("add", "mul") and len(call.positional) == 2:
                one, other = (code(argument.value) for argument in call.positional)
                for first, second in ((one, other), (other, one)):
                    yield f"{code(out.value)}.copy_({first}).{call.name}_({second})"


class AddToOut(Replacement):
    """Adds a result to what the caller's tensor holds, which it should replace."""

    in_triton_files = False
    outcomes: ClassVar[Outcomes] = {
        "torch.sum(x, dim=0, out=out)": ["out.add_(torch.sum(x, dim=0))"],
        "out.copy_(x)": ["out += x"],
        "torch.sum(x)": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield a statement that adds."""
        for call in calls(node):
            out = call.keyword("out")
            if call.is_statement() and out:
                yield f"{code(out.value)}.add_({call.without(out)})"
            elif call.is_statement() and (call.receiver, call.name) == ("out", "copy_"):
                yield f"out += {code(call.positional[0].value)}"
