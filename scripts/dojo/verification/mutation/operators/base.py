"""What all operators have in common: they put other text in place of a node."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import ClassVar

from cosmic_ray.operators.operator import Example, Operator
from parso.python.tree import Name

from dojo.verification.mutation.operators.nodes import Node, code

Position = tuple[tuple[int, int], tuple[int, int]]
# Code, and all that it becomes, in the order of the occurrences.
Outcomes = Mapping[str, Sequence[str]]


class Replacement(Operator):  # type: ignore[misc]  # cosmic-ray is untyped
    """An operator known by the texts that it offers for a node."""

    outcomes: ClassVar[Outcomes]
    # A kernel has mutants by the thousand without the operators that say no here.
    in_triton_files: ClassVar[bool] = True

    @abstractmethod
    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the texts that may stand in place of the node; an empty one deletes it."""

    def mutation_positions(self, node: Node) -> Iterator[Position]:
        """Yield the node's position once for each text."""
        for _ in self._texts(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Node, index: int) -> Node | None:
        """Return a leaf with the text of that index, or None to delete the node."""
        text = next(islice(self._texts(node), index, None))
        # A name with all of the text in it: nothing looks into it again.
        return Name(text, node.start_pos, node.get_first_leaf().prefix) if text else None

    def _texts(self, node: Node) -> Iterator[str]:
        """Yield the replacements, but none that makes a statement `x = x`."""
        if not self.in_triton_files and _imports_triton(node.get_root_node()):
            return
        statement = node.parent
        if statement is None or statement.type != "expr_stmt" or statement.children[0] is node:
            yield from self.replacements(node)
        else:
            target = code(statement.children[0])
            yield from (text for text in self.replacements(node) if text != target)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """Return each outcome as cosmic-ray has it."""
        return tuple(
            Example(before, after, occurrence)
            for before, all_after in cls.outcomes.items()
            for occurrence, after in enumerate(all_after)
        )


@lru_cache(maxsize=4)
def _imports_triton(root: Node) -> bool:
    return "import triton" in root.get_code()
