"""A pytest plugin for submissions: sees whether the code changes what judges it.

Loaded by name, `-p dojo.classroom.judge`, in the process that runs the tests.
"""

from collections.abc import Generator
from typing import Any

import pytest

from dojo.classroom.integrity import Integrity
from dojo.classroom.spoiling import spoilt
from dojo.testrun.results import Outcome


def pytest_configure(config: pytest.Config) -> None:
    """Begin to judge, once the tests are collected."""
    config.pluginmanager.register(_Judge(), "kata-judge")


class _Judge:
    def __init__(self) -> None:
        self._integrity: Integrity | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note how everything is, while only the tests are loaded."""
        tests = [item.module for item in session.items if isinstance(item, pytest.Function)]
        self._integrity = Integrity(tests, session.config.pluginmanager)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: Any, request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Hand out a spoilt implementation, if the request is for one."""
        made = yield
        if fixturedef.argname == "impl" and request.config.option.spoilt:
            made = spoilt(made)  # type: ignore[arg-type]
            fixturedef.cached_result = (made, *fixturedef.cached_result[1:])
        return made

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Take back the result of a test after which something is not as it was."""
        report = yield
        sent = getattr(report, "kata", None)
        if sent is not None and self._integrity and (broken := self._integrity.broken()):
            report.outcome = "failed"
            sent["result"].update(outcome=Outcome.TAMPERED.value, message=broken)
        return report
