"""How long a kata's tests may take, for a learner waits for them after each save."""

import time
from collections import defaultdict
from collections.abc import Iterator

from dojo.kata.kata import Kata, Topic
from dojo.testrun.results import RunResult

# Seconds on a CPU, after the imports, on a machine of ordinary speed.
SECONDS = 1.0
SECONDS_OF = {Topic.KERNELS: 5.0, Topic.SYSTEMS: 10.0}

# What an ordinary machine takes for the work of `_slowness`.
_ORDINARY_SECONDS = 0.03


def test_seconds(result: RunResult) -> float:
    """Return the processor time of a run's tests."""
    return sum(test.seconds for test in result.tests)


def problems(kata: Kata, result: RunResult) -> Iterator[str]:
    """Say in words that the tests take too long, and which of them most."""
    allowed, spent = SECONDS_OF.get(kata.topic, SECONDS), test_seconds(result)
    if spent <= allowed or spent <= allowed * _slowness():
        return
    by_function: defaultdict[str, float] = defaultdict(float)
    for test in result.tests:
        by_function[test.function] += test.seconds
    slowest = max(by_function, key=by_function.__getitem__)
    yield (
        f"the tests take {spent:.2f} s on the reference, more than {allowed:g} s; "
        f"{by_function[slowest]:.2f} s of it {slowest}"
    )


def _slowness() -> float:
    """Return how many times an ordinary machine's time this one takes for plain Python."""
    started = time.process_time()
    made: dict[int, tuple[int, str]] = {}
    for number in range(200_000):
        made[number % 97] = number, str(number)
    return (time.process_time() - started) / _ORDINARY_SECONDS
