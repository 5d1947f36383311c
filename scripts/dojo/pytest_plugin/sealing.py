"""Keeps the checks of a system sealed: they run and count, and tell neither name nor message."""

import functools
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from dojo.errors import DojoError, typed
from dojo.kata.kata import Kata
from dojo.kata.kata_toml import load
from dojo.testrun.implementation import Learner

_Name = pytest.StashKey[str]()
_Numbers = pytest.StashKey["count[int]"]()


def add_option(group: pytest.OptionGroup) -> None:
    """Add the option that opens all checks."""
    group.addoption(
        "--open-checks",
        action="store_true",
        help="show the names and messages of a system's checks, which are sealed otherwise",
    )


def seals(folder: Path, config: pytest.Config) -> bool:
    """Say whether a kata's checks are sealed: those of a system, for whoever hunts in it."""
    option = config.option
    return not option.open_checks and option.impl == str(Learner()) and _is_system(folder)


def _is_system(folder: Path) -> bool:
    kata = _kata(folder)
    return kata is not None and kata.is_system


@functools.cache
def _kata(folder: Path) -> Kata | None:
    try:
        return load(folder)
    except DojoError:
        return None  # the verdict says what is wrong with it


def seal(collector: pytest.Collector, cases: list[pytest.Function]) -> list[pytest.Function]:
    """Return the cases of one test function with a number for a name, unless it is a symptom.

    Whatever pytest or an editor shows of them, selects or remembers goes by that name.
    """
    if any(case.get_closest_marker("symptom") for case in cases):
        return cases
    numbers: count[int] = collector.stash.setdefault(_Numbers, count(1))
    name = f"check_{next(numbers):02}"
    return [_renamed(case, name, place) for place, case in enumerate(cases)]


def _renamed(case: pytest.Function, name: str, place: int) -> pytest.Function:
    """Return a test case under another name, its parameters being named by its place."""
    parameters = getattr(case, "callspec", None)
    if parameters is not None:
        parameters = replace(parameters, _idlist=[str(place)])
    renamed: pytest.Function = pytest.Function.from_parent(
        case.parent,
        name=name if parameters is None else f"{name}[{place}]",
        callspec=parameters,
        callobj=case.obj,
        fixtureinfo=case._fixtureinfo,
        originalname=name,
    )
    renamed.stash[_Name] = case.name
    return renamed


def real_name(item: pytest.Item) -> str:
    """Return a test's name with its parameters, sealed or not."""
    return item.stash.get(_Name, item.nodeid.partition("::")[2])


def keep_sealed(item: pytest.Item, report: pytest.TestReport, folder: Path) -> None:
    """Take what a failing test says out of its report, if it is sealed."""
    if _Name in item.stash and report.failed and report.when == "call":
        kata = _kata(folder)
        hint = f"{typed('hint', folder.name)} opens the check that says most, "
        report.longrepr = (
            f"{item.name} fails. Its name and message are sealed: "
            f"{'' if kata and kata.answerless else hint}--open-checks opens them all."
        )
