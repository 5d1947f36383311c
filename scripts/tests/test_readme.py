"""README.md says what is true, and commands write what they say there."""

import re

import pytest
from click.testing import CliRunner

from dojo.cli import main
from dojo.cli.list_command import readme_table
from dojo.errors import DojoError
from dojo.files import read_section, write_section
from dojo.kata import catalogue
from dojo.project import Project
from dojo.testrun.loading import load_module

REAL = Project.here()
README = REAL.readme.read_text(encoding="utf-8")
PAGE = """# Title
<!-- gpu: by a script -->
not yet measured
<!-- end of gpu -->
<!-- katas: by another -->
<!-- end of katas -->
End.
"""


def test_the_table_of_katas_is_made_from_their_files():
    assert read_section(REAL.readme, "katas") == readme_table(catalogue.finished(REAL)), (
        "scripts/list.sh --readme writes the table anew"
    )


def test_every_script_it_names_is_there():
    named = set(re.findall(r"scripts/(\w+)\.sh", README))
    assert named
    for name in named:
        assert (REAL.root / "scripts" / f"{name}.sh").is_file()


def test_the_page_on_what_tests_can_use_is_made_from_the_docstrings():
    maker = REAL.root / ".github" / "make_testing.py"
    page = load_module(maker, "make_testing", maker.read_bytes()).make()
    assert (REAL.root / ".github" / "TESTING.md").read_text(encoding="utf-8") == page, (
        "run python .github/make_testing.py"
    )


def test_a_section_is_replaced_and_nothing_else(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(PAGE)
    write_section(page, "gpu", r"figures \1")
    assert page.read_text() == PAGE.replace("not yet measured", r"figures \1")
    assert read_section(page, "gpu") == r"figures \1"
    assert read_section(page, "katas") == ""
    write_section(page, "katas", "two\nlines")
    assert read_section(page, "katas") == "two\nlines"
    assert read_section(page, "gpu") == r"figures \1"


@pytest.mark.parametrize("line", ["<!-- gpu: by a script -->\n", "<!-- end of gpu -->\n"])
def test_a_page_without_the_comments_is_left_alone(tmp_path, line):
    page = tmp_path / "README.md"
    page.write_text(PAGE.replace(line, ""))
    with pytest.raises(DojoError, match=r"README.md lacks the comments '<!-- gpu: ... -->'"):
        write_section(page, "gpu", "figures")
    assert page.read_text() == PAGE.replace(line, "")


def test_a_command_writes_the_table_of_katas(project):
    project.readme.write_text(PAGE)
    result = CliRunner().invoke(main, ["list", "--readme"], obj=project)
    assert result.output == "wrote 1 row into README.md\n"
    assert read_section(project.readme, "katas") == (
        "| kata | topic | level | minutes | bugs |\n|---|---|---|---|---|\n"
        "| [01_scale](katas/01_scale/README.md) | layers | easy | 5 | 3 |"
    )
