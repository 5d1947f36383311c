"""Mutation operators for tensor code, Triton kernels and tokenizers, as a provider for cosmic-ray.

cosmic-ray's own operators know arithmetic, comparisons and loops; these know axes, masks, types
and memory. What each stands for in a person's words is in `dojo.kata.explanations`.
"""

from collections.abc import Iterator
from importlib import import_module

from dojo.verification.mutation.operators.base import Replacement

_MODULES = (
    "axes",
    "reductions",
    "masks",
    "numerics",
    "functions",
    "activations",
    "operands",
    "dtypes",
    "memory",
    "outputs",
    "arguments",
    "names",
    "indexing",
    "autograd",
    "ordering",
    "statements",
    "triton_ops",
)


class Provider:
    """The operators by name, as cosmic-ray asks for them."""

    def __init__(self) -> None:
        """Collect the operators of all modules."""
        self._operators: dict[str, type[Replacement]] = {}
        for module in _MODULES:
            for item in vars(
                import_module(f"dojo.verification.mutation.operators.{module}")
            ).values():
                if isinstance(item, type) and issubclass(item, Replacement):
                    self._operators[item.__name__] = item
        del self._operators["Replacement"]

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self._operators)

    def __getitem__(self, name: str) -> type[Replacement]:
        """Return the operator of that name."""
        return self._operators[name]
