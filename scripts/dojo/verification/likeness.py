"""Sees that two bugs together do not behave like one: a learner would hunt what is not there."""

import re
from collections.abc import Collection, Mapping

from dojo.kata.bug import Bug
from dojo.testrun.results import RunResult

Behaviour = frozenset[tuple[str, str]]

_ADDRESS = re.compile(r"0x[0-9a-f]+")  # another one at each run


def behaviour(result: RunResult, functions: Collection[str] | None = None) -> Behaviour:
    """Return what tests said, in words: of all, or of these test functions."""
    return frozenset(
        (test.name, f"{test.outcome}: {_ADDRESS.sub('', test.message)}")
        for test in result.tests
        if functions is None or test.function in functions
    )


def alike(
    together: RunResult, alone: Mapping[str, RunResult], functions: Collection[str] | None = None
) -> list[str]:
    """Return the ids of the bugs that behave alone as others do together, in those functions.

    A run that did not come to its end tells nothing.
    """
    if not together.whole:
        return []
    seen = behaviour(together)
    return [
        bug_id for bug_id, one in alone.items() if one.whole and behaviour(one, functions) == seen
    ]


def problem(pair: tuple[Bug, ...], like: Collection[str]) -> str:
    """Return what is wrong with a pair that behaves like these bugs alone."""
    one, other = pair
    return (
        f"{one.id} + {other.id} behave like {' and '.join(like)} alone: "
        f'write apart = ["{other.id}"] under {one.id}, and they are not drawn together'
    )
