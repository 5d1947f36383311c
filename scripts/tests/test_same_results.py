"""The fast ways give what the slow ones give, for every kata.

A warm run gives, test by test, what plain pytest gives, of the reference and of the default bugs.
A bug is caught by the first failure of its `killed_by` if and only if the whole file catches it.
"""

import json
import os
import subprocess
import sys

import pytest

from dojo.kata import catalogue, kata_toml
from dojo.project import Project
from dojo.runner.runner import Runner
from dojo.testrun.device import has_gpu
from dojo.testrun.implementation import Learner, Reference
from dojo.testrun.limits import Limits
from dojo.verification.bugs import caught_by, run_alone

REAL = Project.here()
SEED = 20
RECORDER = """
import json, os

results = {}

def pytest_runtest_logreport(report):
    if hasattr(report, "kata"):
        result = report.kata["result"]
        folder = os.path.basename(report.kata["folder"])
        results.setdefault(folder, {})[result["name"]] = result["outcome"]

def pytest_sessionfinish():
    with open(os.environ["RECORD"], "w") as file:
        json.dump(results, file)
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A copy of the project in which every kata holds its default bugs, whatever is edited here."""
    copy = REAL.copied_to(tmp_path_factory.mktemp("project"), "katas", "fixtures")
    for kata in catalogue.load_all(copy):
        kata.botched.write_text(kata.planted_source(kata.default), encoding="utf-8")
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("impl", [Reference(), Learner()], ids=str)
def test_a_warm_run_gives_what_plain_pytest_gives(planted, tmp_path, impl):
    (tmp_path / "recorder.py").write_text(RECORDER)
    record = tmp_path / "record.json"
    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "katas", "-q", "-p", "recorder"),
            *(f"--impl={impl}", f"--kata-seed={SEED}", "--kata-no-history"),
        ],
        cwd=planted.root,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "RECORD": str(record)},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    plain = json.loads(record.read_text())
    with Runner(planted, Limits()) as runner:
        warm = {
            kata.name: {test.name: str(test.outcome) for test in runner.run(kata, impl, SEED).tests}
            for kata in catalogue.load_all(planted)
        }
    assert plain.keys() == warm.keys()
    for name, results in plain.items():
        assert warm[name] == results, name
        assert ("failed" in results.values()) == (impl == Learner())


@pytest.fixture(scope="module")
def warm_runner():
    with Runner(REAL, Limits()) as runner:
        yield runner


@pytest.mark.slow
@pytest.mark.parametrize("folder", catalogue.kata_folders(REAL), ids=lambda folder: folder.name)
def test_the_first_failure_says_of_a_bug_what_the_whole_file_says(warm_runner, folder):
    kata = kata_toml.load(folder)
    # A system's whole file takes seconds.
    for bug in kata.bugs[::4] if kata.is_system else kata.bugs:
        first, whole = (
            run_alone(warm_runner, kata, bug, SEED, whole=whole) for whole in (False, True)
        )
        assert bool(caught_by(first)) == bool(caught_by(whole)), bug.id
        assert bool(caught_by(first)) != bug.gpu or has_gpu(), bug.id
