"""Golden files are what their libraries give today, where the library is installed."""

import pytest

from dojo.project import Project
from dojo.testrun.loading import load_module

FIXTURES = Project.here().root / "fixtures"
MAKERS = sorted(FIXTURES.glob("make_*.py"))


@pytest.mark.parametrize("maker", MAKERS, ids=lambda path: path.stem)
def test_a_golden_file_is_what_its_script_makes(maker):
    module = load_module(maker, f"fixtures_{maker.stem}", maker.read_bytes())
    pytest.importorskip(module.LIBRARY)
    files = module.make()
    assert files
    for name, content in files.items():
        made = content.encode() if isinstance(content, str) else content
        assert (FIXTURES / name).read_bytes() == made, (
            f"{name} is not what fixtures/{maker.name} makes: run it, and look at the difference"
        )


def test_every_golden_file_has_a_script():
    made_by = {path.stem.removeprefix("make_") for path in MAKERS}
    data = {path.stem for path in FIXTURES.iterdir() if path.suffix not in {".py", ""}}
    assert data <= made_by
