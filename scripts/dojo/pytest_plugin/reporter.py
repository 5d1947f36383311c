"""Collects what the tests say, and after pytest's own summary gives the verdicts."""

from collections import defaultdict
from pathlib import Path

import pytest

from dojo.errors import DojoError, typed
from dojo.history.history import History
from dojo.kata.kata_toml import load
from dojo.learner.player import Player
from dojo.project import Project
from dojo.testrun import guards
from dojo.testrun.closed_book import PROOF
from dojo.testrun.implementation import Learner
from dojo.testrun.originals import Originals, files_of_kata, files_of_project
from dojo.testrun.results import (
    RunResult,
    TestResult,
    broken,
    failing_functions,
    test_functions,
)
from dojo.wording.verdicts import failing_line, verdict_line


class VerdictReporter:
    """Collects results in the controlling process, then prints and records the verdicts."""

    def __init__(self, config: pytest.Config) -> None:
        """Begin with no results."""
        self._config = config
        self._results: defaultdict[Path, list[TestResult]] = defaultdict(list)
        self._proofs: set[Path] = set()  # katas for which the learner's own tests ran
        self._deselected = False
        self._lines: list[str] = []
        self._notices: list[str] = []
        self._originals = Originals(Project.here().changed)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Read what judges each kata's code, before any of it is loaded."""
        if self._config.option.kata_no_history:  # then whoever runs pytest does so
            return
        tests = {item.path for item in session.items if item.path.name != PROOF}
        of_katas = [path for path in tests if (path.parent / "kata.toml").is_file()]
        if of_katas:
            files = [file for path in of_katas for file in files_of_kata(path.parent, path)]
            self._originals.read([*files_of_project(Project.here().root), *files])

    def pytest_deselected(self) -> None:
        """Note that only a part of the tests runs."""
        self._deselected = True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the structured result that the plugin attached to the report."""
        sent = getattr(report, "kata", None)
        if sent is not None and sent["proof"]:
            self._proofs.add(Path(sent["folder"]))
        elif sent is not None:
            self._results[Path(sent["folder"])].append(TestResult.from_json(sent["result"]))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Judge each kata whose tests all ran, and record it."""
        option = self._config.option
        changed = self._originals.put_back()
        if changed:
            self._lines.append(f"not judged: {self._originals.told(changed)}")
            session.exitstatus = exitstatus = pytest.ExitCode.TESTS_FAILED
        if not option.kata_no_history:  # else whoever runs pytest knows more than its status
            guards.keep_exit_status(int(exitstatus))
        if changed or option.impl != str(Learner()) or option.kata_no_history or option.collectonly:
            return
        for folder, outcomes in self._results.items():
            self._lines.append(self._judge(folder, outcomes))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print a line for each kata, and how to repeat a failing run."""
        if any(map(failing_functions, self._results.values())):
            seed = self._config.option.kata_seed
            terminalreporter.write_line(f"the same random data again: --kata-seed {seed}")
        for line in dict.fromkeys([*self._lines, *self._notices]):  # one notice for many katas
            terminalreporter.write_line(line)
        for folder in sorted(self._proofs):
            judge = typed("prove", folder.name)
            terminalreporter.write_line(f"{folder.name}: {judge} says what your proof is worth")

    def _judge(self, folder: Path, outcomes: list[TestResult]) -> str:
        name = folder.name
        seconds = sum(test.seconds for test in outcomes)
        try:
            kata = load(folder)
            if kata.is_system:
                self._lines.append(f"{name}: {failing_line(outcomes)}")
            ran = {result.function for result in outcomes}
            part = any("::" in argument for argument in self._config.args)
            if self._deselected or part or ran != test_functions(kata.tests):
                verb = "fail" if failing_functions(outcomes) else "pass"
                return (
                    f"{name}: the tests that ran {verb}; a verdict needs all: pytest katas/{name}"
                )
            project = Project(folder.parent.parent)
            with History(project.history) as history:
                player = Player(project, kata, history)
                seed = self._config.option.kata_seed
                judgement = player.judge(RunResult.of(outcomes, seconds, seed))
                self._notices += history.notices()
        except (DojoError, OSError) as error:
            return f"{name}: not recorded: {error}"
        if broken(outcomes):
            return f"{name}: not judged, since the tests could not run"
        return verdict_line(judgement, name)
