"""Operators on gradients and on the mode of a module."""

from collections.abc import Iterator
from typing import ClassVar

from dojo.verification.mutation.operators.base import Outcomes, Replacement
from dojo.verification.mutation.operators.calls import calls
from dojo.verification.mutation.operators.nodes import Node, code, function_of

_PARAMETERS = ("self.weight", "self.bias", "self.lora_A", "self.lora_B")


class AddDetach(Replacement):
    """Cuts a parameter off from the gradient."""

    outcomes: ClassVar[Outcomes] = {
        "y = self.weight * x": ["y = self.weight.detach() * x"],
        "self.weight = w": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the value of a parameter alone."""
        if node.type == "atom_expr" and code(node) in _PARAMETERS:
            assigned = node.parent.type == "expr_stmt" and node.parent.children[0] is node
            function = function_of(node)
            without_grad = function is not None and "no_grad" in function.parent.get_code()[:60]
            in_init = function is not None and function.name.value == "__init__"
            if not assigned and not without_grad and not in_init:
                yield f"{code(node)}.detach()"


class DropDetach(Replacement):
    """Leaves a value in the graph of the gradient."""

    outcomes: ClassVar[Outcomes] = {"{'a': self.lora_A.detach()}": ["{'a': self.lora_A}"]}

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain without each detach."""
        for call in calls(node):
            if call.name == "detach":
                yield call.dropped()


class FreezeParameter(Replacement):
    """Makes a tensor that is no parameter, or one that is not trained."""

    outcomes: ClassVar[Outcomes] = {
        "w = nn.Parameter(torch.ones(3))": [
            "w = torch.ones(3)",
            "w = nn.Parameter(torch.ones(3), requires_grad=False)",
        ],
        "nn.ModuleList(layers)": ["list(layers)"],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield a tensor, or a list, that the optimiser does not see."""
        for call in calls(node):
            if call.name == "Parameter" and call.positional:
                yield call.replaced(code(call.positional[0].value))
                yield call.extended("requires_grad=False")
            elif call.name == "ModuleList":
                yield call.replaced("list" + code(node.children[call.place]))


class ChangeMode(Replacement):
    """Behaves as in training, or as in evaluation, whatever the mode."""

    outcomes: ClassVar[Outcomes] = {
        "if self.training: pass": ["if True: pass", "if False: pass"],
        "F.dropout(x, p, training)": ["F.dropout(x, p, True)", "F.dropout(x, p, False)"],
        "F.batch_norm(x, training=training)": [
            "F.batch_norm(x, training=True)",
            "F.batch_norm(x, training=False)",
        ],
        "model.eval()": ["model.train()"],
        "def f(training): pass": [],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield both modes for the one that is asked for."""
        attribute = node.type == "atom_expr" and code(node) == "self.training"
        name = node.type == "name" and node.value == "training" and not node.is_definition()
        keyword = name and node.parent.type == "argument" and node.parent.children[0] is node
        owned = name and node.parent.type in ("trailer", "param") and node.parent.children[0] != "("
        if attribute or (name and not keyword and not owned):
            yield from ("True", "False")
        turned = {"eval": "train", "train": "eval"}
        for call in calls(node):
            if call.name in turned and call.receiver and not call.arguments:
                yield call.renamed(turned[call.name])
