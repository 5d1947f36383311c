"""The calls in a syntax tree, and what they become when one of their parts changes."""

from collections.abc import Iterator
from dataclasses import dataclass

from dojo.verification.mutation.operators.nodes import Node, bare, code, elements, rendered

# What functions, rather than tensors, are taken from.
MODULES = ("torch", "F", "np", "tl", "math", "triton", "nn")


@dataclass(frozen=True)
class Argument:
    """An argument of a call; `keyword` is empty for one given by position."""

    node: Node
    value: Node
    keyword: str


@dataclass(frozen=True)
class Call:
    """A call in a chain such as `x.square().mean(dim=0)`: `receiver.name(arguments)`."""

    chain: Node
    place: int
    receiver: str
    function: Node | None
    arguments: tuple[Argument, ...]

    @property
    def name(self) -> str:
        """What is called, without its owner; empty if that is not a name."""
        return self.function.value if self.function else ""

    @property
    def positional(self) -> tuple[Argument, ...]:
        """The arguments given by position, less starred ones."""
        return tuple(argument for argument in self.arguments if not argument.keyword)

    def keyword(self, *names: str) -> Argument | None:
        """Return the argument given by one of the keywords."""
        return next((found for found in self.arguments if found.keyword in names), None)

    def is_statement(self) -> bool:
        """Say whether the call is a whole statement, whose result nobody uses."""
        whole = self.place == len(self.chain.children) - 1
        return whole and self.chain.parent.type in ("simple_stmt", "file_input")

    def replaced(self, text: str) -> str:
        """Return the chain with `text` in place of the call and all before it."""
        return text + "".join(node.get_code() for node in self.chain.children[self.place + 1 :])

    def dropped(self) -> str:
        """Return the chain without the call of a method."""
        if len(self.chain.children) == 3:
            return bare(self.chain.children[0], self.chain)
        return self.replaced(self.receiver)

    def renamed(self, name: str) -> str:
        """Return the chain with another function called."""
        return rendered(self.chain, {self.function: name})

    def changed(self, argument: Argument, value: str) -> str:
        """Return the chain with another value of the argument."""
        return rendered(self.chain, {argument.value: value})

    def extended(self, text: str) -> str:
        """Return the chain with one more argument."""
        bracket = self.chain.children[self.place].children[-1]
        last = bracket.get_previous_leaf()
        if last == ",":  # as of arguments on lines of their own
            return rendered(self.chain, {last: f", {text},"})
        return rendered(self.chain, {bracket: f", {text})" if self.arguments else f"{text})"})

    def without(self, *arguments: Argument) -> str:
        """Return the chain without some of the arguments."""
        gone = [argument.node for argument in arguments]
        kept = [argument.node for argument in self.arguments if argument.node not in gone]
        changes = dict.fromkeys(gone, "")
        for node in gone:
            comma = node.get_previous_sibling()
            if comma is not None and comma == ",":
                changes[comma] = ""
        if kept and self.arguments[0].node in gone:  # the next argument moves to its place
            changes[self.arguments[0].node] = code(kept[0])
            changes |= {kept[0]: "", kept[0].get_previous_sibling(): ""}
        return rendered(self.chain, changes)


def calls(node: Node) -> Iterator[Call]:
    """Yield the calls of a chain; none if the node is no chain."""
    if node.type != "atom_expr":
        return
    for place, trailer in enumerate(node.children):
        if trailer.type != "trailer" or trailer.children[0].value != "(":
            continue
        callee = node.children[place - 1]
        attribute = callee.type == "trailer" and callee.children[0].value == "."
        owner = node.children[: place - 1] if attribute else []
        receiver = "".join(part.get_code() for part in owner).strip()
        function = callee.children[1] if attribute else callee if callee.type == "name" else None
        yield Call(node, place, receiver, function, tuple(_arguments(trailer)))


def _arguments(trailer: Node) -> Iterator[Argument]:
    for node in elements(trailer.children[1]) if len(trailer.children) == 3 else ():
        if node.type != "argument":
            yield Argument(node, node, "")
        elif code(node.children[1]) == "=":
            yield Argument(node, node.children[2], node.children[0].value)
        else:
            yield Argument(node, node, "*")
