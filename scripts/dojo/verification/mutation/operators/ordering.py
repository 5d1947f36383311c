"""Operators on orders, defaults and collections in plain Python."""

from collections.abc import Iterator
from typing import ClassVar

from dojo.verification.mutation.operators.base import Outcomes, Replacement
from dojo.verification.mutation.operators.calls import calls
from dojo.verification.mutation.operators.nodes import Node, code


class ChangeOrder(Replacement):
    """Sorts the other way, by something else, or not at all."""

    outcomes: ClassVar[Outcomes] = {
        "sorted(x, key=len, reverse=True)": [
            "list(x)",
            "sorted(x, reverse=True)",
            "sorted(x, key=len)",
        ],
        "sorted(x)": ["list(x)", "sorted(x, reverse=True)"],
        "heapq.heappop(queue)": ["queue.pop()", "queue.pop(0)"],
        "heapq.heappush(queue, item)": ["queue.append(item)"],
        "out.append(x)": ["out.insert(0, x)"],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain with another order for each that there is."""
        for call in calls(node):
            given = [code(argument.value) for argument in call.positional]
            if call.name == "sorted" and given:
                yield call.replaced(f"list({given[0]})")
                for argument in call.arguments[1:]:
                    yield call.without(argument)
                if not call.keyword("reverse"):
                    yield call.extended("reverse=True")
            elif call.name == "heappop":
                yield call.replaced(f"{given[0]}.pop()")
                yield call.replaced(f"{given[0]}.pop(0)")
            elif call.name == "heappush":
                yield call.replaced(f"{given[0]}.append({given[1]})")
            elif call.name == "append" and given and call.receiver:
                yield call.replaced(f"{call.receiver}.insert(0, {given[0]})")


class ChangeDefault(Replacement):
    """Takes another default for what is not there."""

    outcomes: ClassVar[Outcomes] = {
        "scores.get(part, unknown)": ["scores.get(part, 0)", "scores.get(part)"],
        "ranks.get(pair)": ["ranks.get(pair, 0)"],
    }

    def replacements(self, node: Node) -> Iterator[str]:
        """Yield the chain with another default."""
        for call in calls(node):
            if call.name not in ("get", "setdefault", "pop") or not call.positional:
                continue
            if len(call.positional) == 2:
                default = call.positional[1]
                yield call.changed(default, "0" if code(default.value) != "0" else "1")
                yield call.without(default)
            elif call.name == "get":
                yield call.extended("0")
