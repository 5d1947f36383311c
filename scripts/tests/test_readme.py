"""README.md says what is true."""

import re

from dojo.cli.list_command import readme_table
from dojo.kata import catalogue
from dojo.project import Project
from dojo.testrun.loading import load_module

REAL = Project.here()
README = (REAL.root / "README.md").read_text(encoding="utf-8")


def test_the_table_of_katas_is_made_from_their_files():
    table = re.search(r"<!-- katas: .*?-->\n(.*?)<!-- end of katas -->", README, re.DOTALL)
    assert table is not None
    assert table[1].strip() == readme_table(catalogue.load_all(REAL)), (
        "paste the output of scripts/list.sh --markdown between README.md's two comments"
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
