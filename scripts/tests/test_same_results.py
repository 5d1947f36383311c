"""A warm run gives, test by test, what plain pytest gives: for every kata, right and botched."""

import json
import os
import subprocess
import sys

import pytest

from dojo.kata import catalogue
from dojo.project import Project
from dojo.runner.runner import Runner
from dojo.testrun.implementation import Learner, Reference
from dojo.testrun.limits import Limits

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
