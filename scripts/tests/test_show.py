"""The page of failed comparisons, and what the other interfaces show of one."""

import json
import re
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner

from dojo.cli import main
from dojo.errors import DojoError
from dojo.instruments.comparisons import Comparison
from dojo.kata import kata_toml
from dojo.learner.player import Judgement, Planting
from dojo.practice import asides
from dojo.testrun.results import Outcome, RunResult, TestResult
from dojo.wording.comparisons_page import render_comparisons
from dojo.wording.runs import failure_lines, run_lines

REFERENCE = '''
"""A table."""

import torch
from torch import Tensor


def table(n: int) -> Tensor:
    """Return n rows, and a column more."""
    return torch.arange(float(n * (n + 1))).reshape(n, n + 1)
'''

TOML = """
title = "Table"
topic = "layers"
level = "easy"
minutes = 5
default = ["from-one"]

[[bug]]
id = "from-one"
title = "Counts from one"
kind = "boundary"
find = "torch.arange(float(n * (n + 1)))"
replace = "1 + torch.arange(float(n * (n + 1)))"
killed_by = ["test_table"]
hints = ["Look at the first entry."]
why = "Counting begins at zero."
"""

TESTS = """
import pytest
import torch
from dojo.testing import assert_matches


@pytest.mark.parametrize("n", [3, 100])
def test_table(impl, n):
    expected = torch.arange(n * (n + 1.0)).reshape(n, n + 1)
    assert_matches(impl.table(n), expected, f"a table of <{n}> rows")


def test_first(impl):
    first = impl.table(2)[0, 0].item()
    assert first == 0, f"the first entry is {first}"
"""


@pytest.fixture
def table(project):
    folder = project.katas / "02_table"
    folder.mkdir()
    (folder / "reference.py").write_text(REFERENCE.lstrip())
    (folder / "kata.toml").write_text(TOML)
    (folder / "test_table.py").write_text(TESTS)
    kata = kata_toml.load(project.katas / "02_table")
    kata.botched.write_text(kata.planted_source(kata.default))
    return kata


@pytest.fixture
def show(project):
    def call(*arguments):
        return CliRunner().invoke(main, ["show", *map(str, arguments)], obj=project)

    return call


class Reader(HTMLParser):
    """Notes what a page is made of, and fails where a tag is not closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.sources, self.canvases, self.text = [], [], [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        facts = dict(attributes)
        self.sources += [facts[name] for name in ("src", "href") if name in facts]
        if tag == "canvas":
            self.canvases.append((facts["data-what"], int(facts["height"]), int(facts["width"])))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data


def cells_of(page):
    return json.loads(re.search(r"^const comparisons = (.*);$", page, re.MULTILINE)[1])


@pytest.mark.own_process
def test_a_page_shows_every_failed_comparison(project, table, show, tmp_path):
    result = show("table")
    path = project.state / "show" / "02_table.html"
    assert result.output == f"wrote {path}\n"
    assert result.exit_code == 0
    page = path.read_text()
    read = Reader(page)
    assert read.sources == []
    assert "https:" not in page
    assert "http:" not in page
    whats = ("actual", "expected", "error")
    assert read.canvases == [
        *((what, 3, 4) for what in whats),
        *((what, 64, 64) for what in whats),
    ]
    assert "a table of <3> rows: 12 of 12 values are wrong" in read.text
    assert "Each wrong value is the expected one plus 1." in read.text
    assert "test_first: the first entry is 1.0" in read.text
    small, large = cells_of(page)
    assert small["actual"] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    assert small["expected"][2][3] == 11
    assert small["places"][2][3] == [2, 3]
    assert large["places"][0][0] == [0, 0]  # of the largest error in tolerances
    assert large["places"][63][63] == [99, 100]

    one = show("table", "test_first", "--html", tmp_path / "one.html")
    assert one.exit_code == 1
    assert "1 test failed, none of them by values that can be drawn" in one.output
    table.botched.write_text(table.correct_source)
    whole = show("table")
    assert (whole.exit_code, whole.output) == (
        0,
        "02_table: nothing fails, so there is nothing to show\n",
    )
    assert not list(project.state.glob("history*"))


@pytest.mark.slow
@pytest.mark.own_process
def test_a_page_sets_the_errors_of_the_text_before_beside_those_of_this_one(project, table, show):
    path = project.state / "show" / "02_table.html"
    show("table")
    show("table")  # of the same text: nothing is before it
    assert "error before" not in [what for what, *_ in Reader(path.read_text()).canvases]
    table.botched.write_text(table.correct_source.replace("n + 1)\n", "n + 1) * (n != 3)\n"))
    for _ in range(2):  # and before this one stands the other, however often it is shown
        show("table")
        page = path.read_text()
        assert [what for what, *_ in Reader(page).canvases][3:] == ["error before"]
        (small,) = cells_of(page)
        assert small["actual"][0] == [0, 0, 0, 0]
        assert small["before"]["actual"][0] == [1, 2, 3, 4]
        assert "not drawn any more test_table[100]" in " ".join(Reader(page).text.split())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["tabel"], "did you mean 02_table?"),
        (["table", "test_tabel"], "02_table has no test 'test_tabel'; did you mean"),
    ],
)
def test_an_unknown_name_gets_one_line(table, show, arguments, reason):
    result = show(*arguments)
    assert result.exit_code == 1
    assert reason in result.output
    assert result.output.count("\n") == 1


def test_a_page_holds_what_is_not_finite():
    matrix = [[float("nan"), float("inf")], [0.0, -1.23456789012]]
    places = [[[0, 0], [0, 1]], [[1, 0], [1, 1]]]
    comparison = Comparison(
        "test_it", "</script> is wrong", (), "", (2, 2), False, places, matrix, matrix, matrix
    )
    page = render_comparisons("table", [comparison], [])
    (cells,) = cells_of(page)
    assert cells["actual"][0][1] == float("inf")
    assert cells["actual"][1] == [0.0, -1.23456789]
    assert "</script> is wrong" in Reader(page).text


def failed(name, message):
    return TestResult(name, Outcome.FAILED, message, 0.1)


def test_the_first_failure_alone_comes_with_its_map():
    message = "sums: 3 of 8 values are wrong\nOnly row 1 is wrong.\n\nErrors (2 by 4):\n....\n.###"
    tests = [failed("test_one", message), failed("test_two", message)]
    run = RunResult.of(tests, 0.1)
    lines = run_lines("02_table", run, Judgement(Planting(()), solved=False))
    assert lines[:7] == [
        "  fails: test_one",
        "      sums: 3 of 8 values are wrong",
        "      Only row 1 is wrong.",
        "      Errors (2 by 4):",
        "      ....",
        "      .###",
        "  fails: test_two",
    ]
    assert lines[7:9] == ["      sums: 3 of 8 values are wrong", "      Only row 1 is wrong."]
    assert lines[9] == "  2 of 2 tests fail, 0.10 s"
    assert failure_lines(tests[0]) == lines[:3]


@pytest.mark.slow
@pytest.mark.own_process
def test_a_hunt_has_the_page_written(project, table, kata):
    said = asides.show(project, "table")
    assert said == f"wrote {project.state / 'show' / '02_table.html'}"
    with pytest.raises(DojoError, match=r"^01_scale: .*none of them by values that can be drawn"):
        asides.show(project, kata.name)
