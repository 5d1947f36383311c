import shutil

import pytest

from dojo.errors import CatalogueError, DojoError
from dojo.kata import catalogue, kata_toml
from dojo.kata.bug import Kind
from dojo.project import Project


@pytest.mark.parametrize("name", ["1", "01", "scale", "01_scale", "katas/01_scale/"])
def test_a_kata_goes_by_number_topic_or_folder(project, name):
    assert catalogue.find(project, name).name == "01_scale"


def test_a_wrong_name_gets_the_nearest_ones(project):
    with pytest.raises(DojoError, match=r"'scael'; did you mean 01_scale\?"):
        catalogue.find(project, "scael")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('title = "Scale"', 'titel = "Scale"', r"unknown key 'titel'; did you mean 'title'"),
        ('title = "Scale"', "", r"key 'title' is missing"),
        ("minutes = 5", 'minutes = "5"', r"minutes must be a whole number, not '5'"),
        ("minutes = 5", "minutes = 0", r"minutes must be at least 1"),
        ('level = "easy"', 'level = "trivial"', r"level 'trivial' is none of easy, medium, hard"),
        ('level = "easy"', 'level = "medium"', r"plants 2 different bugs by default, not 1"),
        (
            'default = ["adds-factor"]',
            'default = ["adds-fator"]',
            r"unknown bug 'adds-fator'; did you mean",
        ),
        ('id = "divides"', 'id = "adds-factor"', r"bug 'adds-factor': another bug has the same id"),
        ('id = "divides"', 'id = "Divides it"', r"lower-case words joined by hyphens"),
        ('find = "x * factor"', 'find = "y * factor"', r"'adds-factor': find stands 0 times"),
        ('find = "x * factor"', 'find = "x"', r"'adds-factor': find stands \d+ times"),
        ('replace = "x + factor"', 'replace = "x + ("', r"'adds-factor': leaves invalid Python"),
        ('replace = "x + factor"', 'replace = "x * factor"', r"find and replace are the same"),
        ('hints = ["Which way does it scale?"]', "hints = []", r"at least one hint"),
        ('hints = ["Which way does it scale?"]', "hints = [1]", r"hints must be a list of strings"),
        (
            'id = "divides"',
            'id = "divides"\napart = ["divides"]',
            r"'divides': apart names an unknown bug 'divides'",
        ),
        ('kind = "formula"\n', "", r"'adds-factor': key 'kind' is missing"),
        (
            'kind = "formula"',
            'kind = "sign"',
            r"'adds-factor': kind 'sign' is none of axis, mask, scale, .*, data, formula$",
        ),
        ("[[bug]]", "[bug]", r"kata.toml"),
        ("minutes = 5", "minutes = ", r"kata.toml: Invalid value"),
    ],
)
def test_a_malformed_kata_is_refused_with_file_and_reason(project, old, new, reason):
    path = project.katas / "01_scale" / "kata.toml"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(CatalogueError, match=reason) as refusal:
        kata_toml.load(path.parent)
    assert str(path) in str(refusal.value)


def test_default_bugs_must_go_together(project):
    path = project.katas / "01_scale" / "kata.toml"
    text = path.read_text().replace('"easy"', '"medium"')
    path.write_text(text.replace('["adds-factor"]', '["adds-factor", "divides"]'))
    with pytest.raises(CatalogueError, match="touch the same lines"):
        kata_toml.load(path.parent)


@pytest.mark.parametrize(
    "folder", catalogue.kata_folders(Project.here()), ids=lambda folder: folder.name
)
def test_every_kata_of_the_project_is_well_formed(folder):
    kata_toml.load(folder)


def test_the_katas_of_the_project_have_bugs_of_many_kinds():
    bugs = [bug for kata in catalogue.load_all(Project.here()) for bug in kata.bugs]
    assert all(isinstance(bug.kind, Kind) for bug in bugs)
    assert len({bug.kind for bug in bugs}) >= 8


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("01_rope", "01_rope: 01_scale has the same number or the same word"),
        ("02_scale", "01_scale: 02_scale has the same number or the same word"),
        ("rope", "rope: a kata's folder is called like 60_alibi"),
    ],
)
def test_two_katas_of_one_name_are_refused(project, name, reason):
    shutil.copytree(project.katas / "01_scale", project.katas / name)
    with pytest.raises(CatalogueError, match=reason):
        catalogue.load_all(project)


def test_a_name_of_two_katas_finds_neither(project):
    shutil.copytree(project.katas / "01_scale", project.katas / "01_rope")
    with pytest.raises(DojoError, match="'1' is the name of 01_rope and of 01_scale"):
        catalogue.find(project, "1")
    assert catalogue.find(project, "rope").name == "01_rope"


def test_a_draft_is_read_but_is_not_finished(project):
    path = project.katas / "01_scale" / "kata.toml"
    assert [kata.draft for kata in catalogue.load_all(project)] == [False]
    path.write_text(path.read_text().replace("Adding is not scaling.", "TODO"))
    assert [kata.draft for kata in catalogue.load_all(project)] == [True]
    assert catalogue.finished(project) == []
