"""Operators on the activations between the layers of a network."""

from collections.abc import Iterator
from typing import ClassVar

from dojo.verification.mutation.operators.base import Outcomes, Replacement
from dojo.verification.mutation.operators.calls import MODULES, Call, calls
from dojo.verification.mutation.operators.nodes import Node, code

_OTHERS = {
    "relu": ("gelu", "silu", "leaky_relu", "elu", "relu6", "softplus", "sigmoid"),
    "silu": ("mish", "hardswish", "elu"),
    "gelu": ("silu", "elu"),
}


class ChangeActivation(Replacement):
    """Takes another activation."""

    in_triton_files = False
    outcomes: ClassVar[Outcomes] = {
        "y = F.silu(x)": ["y = F.mish(x)", "y = F.hardswish(x)", "y = F.elu(x)"],
        "from torch.nn import functional as F\ny = f(x).gelu()": [
            "from torch.nn import functional as F\ny = F.silu(f(x))",
            "from torch.nn import functional as F\ny = F.elu(f(x))",
        ],
        "y = f(x).gelu()": [],
        "y = torch.relu(x)": [],
        "y = F.softmax(x, dim=0)": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain with others in place of each: F has them all, a tensor has few."""
        for call in calls(node):
            for name in _OTHERS.get(call.name, ()):
                if call.receiver == "F":
                    yield call.renamed(name)
                elif _is_method(call) and "functional as F" in node.get_root_node().get_code():
                    yield call.replaced(f"F.{name}({call.receiver})")


class ActivateFirst(Replacement):
    """Applies an activation to what a layer gets, not to what it returns."""

    in_triton_files = False
    outcomes: ClassVar[Outcomes] = {
        "x = F.relu(norm(layer(x)))": ["x = norm(F.relu(layer(x)))"],
        "x = F.relu(F.linear(x, w, b))": ["x = F.linear(F.relu(x), w, b)"],
        "x = affine(x, w, b).relu()": ["x = affine(x.relu(), w, b)"],
        "x = affine(x, w, b).relu().sum()": [],
        "x = F.relu(x)": [],
        "x = F.relu(torch.mul(x, y))": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield a layer of an activation for each activation of a layer."""
        found = list(calls(node))
        for call in found:
            if call.name not in _OTHERS:
                continue
            if call.receiver == "F" and len(call.arguments) == 1:
                for layer in filter(_is_layer, calls(call.arguments[0].value)):
                    given = code(layer.positional[0].value)
                    yield layer.changed(layer.positional[0], f"F.{call.name}({given})")
            elif _is_method(call) and call is found[-1] and _is_layer(found[0]):
                first, last = found[0].positional[0], f".{call.name}()"
                activated = found[0].changed(first, code(first.value) + last)
                if len(found) == 2 and activated.endswith(last):
                    yield activated.removesuffix(last)


def _is_method(call: Call) -> bool:
    """Say whether an activation is a method of the value that it is applied to."""
    return call.receiver not in ("", *MODULES) and not call.arguments


def _is_layer(call: Call) -> bool:
    """Say whether a call is that of a layer: of a function of the file, or of F's."""
    return bool(call.positional) and (not call.receiver or call.name == "linear")
