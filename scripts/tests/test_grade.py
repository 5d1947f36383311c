"""A class is graded: whatever is handed in has one clear line, and the rest goes on."""

import csv
import json
import os
import signal
import stat
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import PurePosixPath

import pytest
from click.testing import CliRunner

from dojo.classroom import gradebook
from dojo.classroom.files import as_csv
from dojo.classroom.grading import Grade, Standing, grade
from dojo.classroom.journal import Journal
from dojo.classroom.layouts import Layout
from dojo.classroom.likeness import tree_revision
from dojo.classroom.submissions import Submission, find_submissions
from dojo.cli import main
from dojo.errors import DojoError
from dojo.testrun.results import RunResult, Verdict

BOTH = ("adds-factor", "subtracts-offset")


@pytest.fixture
def texts(kata):
    """Submissions of the kata with two bugs planted."""
    planted = kata.planted_source(BOTH)
    return {
        "solved": kata.correct_source,
        "other": kata.correct_source.replace("x * factor", "factor * x"),
        "half": planted.replace("x + factor", "x * factor"),
        "planted": planted,
        "wrong": planted.replace("x + factor", "x - factor"),
        "syntax": "def scale(:\n",
        "exits": "import os\nos._exit(0)\n",
        "loops": planted.replace("return x + factor", "while True: pass"),
    }


@pytest.fixture
def homework(tmp_path, texts):
    """A folder with a folder a learner, for three of them."""
    for learner in ("half", "solved", "wrong"):
        hand_in(tmp_path / "homework" / learner / "01_scale" / "botched.py", texts[learner])
    return tmp_path / "homework"


def hand_in(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def grades(project, monkeypatch):
    """Grade by the command; return its result, and what it wrote by learner."""
    monkeypatch.setenv("KATA_TEST_SECONDS", "1")

    def call(source, *arguments, bugs=BOTH):
        folder = project.root / "graded"
        given = ["grade", source, *arguments, "--bugs", ",".join(bugs), "-o", folder]
        result = CliRunner().invoke(main, list(map(str, given)), obj=project)
        written = folder / "results.json"
        rows = json.loads(written.read_text()) if written.is_file() else []
        return result, {row["learner"]: row for row in rows}

    return call


def test_each_submission_is_judged_and_its_bugs_are_counted(grades, homework, texts):
    for learner, text in texts.items():
        hand_in(homework / learner / "01_scale" / "botched.py", text)
    result, by = grades(homework)
    assert result.exit_code == 0, result.output
    assert {learner: row["standing"] for learner, row in by.items()} == {
        "solved": "solved",
        "other": "solved",
        "half": "not solved",
        "planted": "not solved",
        "wrong": "not solved",
        "syntax": "does not run",
        "exits": "does not run",
        "loops": "time-out",
    }
    assert by["half"]["gone"] == ["adds-factor"]
    assert by["half"]["failed"] == ["test_shift"]
    assert by["planted"]["gone"] == []
    assert by["planted"]["as_planted"]
    assert by["solved"]["as_reference"]
    assert by["wrong"]["at_least"]
    assert by["loops"]["gone"] is None
    assert "8 submissions: 2 solved, 3 not solved, 1 time-out, 2 does not run" in result.output
    assert "formula (5 of 10)" in result.output


def test_what_it_writes_can_be_read(grades, homework, project):
    grades(homework)
    folder = project.root / "graded"
    with (folder / "results.csv").open(newline="") as file:
        rows = {row["learner"]: row for row in csv.DictReader(file)}
    assert rows["half"]["gone"] == "adds-factor"
    assert rows["half"]["bugs gone"] == "1"
    page = (folder / "index.html").read_text()
    assert "1 of 3 submissions solved" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page


def test_the_same_program_is_said_as_a_fact(grades, tmp_path, texts):
    commented = texts["other"].replace('"""Two small functions."""', "# My own comment.")
    for learner, text in {"ada": texts["other"], "bob": commented, "eve": texts["wrong"]}.items():
        hand_in(tmp_path / "in" / learner / "01_scale.py", text)
    result, by = grades(tmp_path / "in")
    assert by["ada"]["same_as"] == ["bob"]
    assert by["bob"]["same_as"] == ["ada"]
    assert by["eve"]["same_as"] == []
    assert "same program as bob" in result.output


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("def f(x):\n    '''Doc.'''\n    return x  # so\n", "def f(x): return x", True),
        ("def f(x): return x", "def f(y): return y", False),
        ("x = 1 + 2", "x = (1 +\n 2)", True),
    ],
)
def test_names_count_and_comments_do_not(one, other, same):
    assert (tree_revision(one) == tree_revision(other)) is same


@pytest.mark.parametrize("text", ["def f(:", "(" * 5000, "1" + "+1" * 50_000, "\\"])
def test_what_has_no_tree_is_like_nothing(text):
    tree_revision(text)  # it may have one; it never raises


LAYOUTS = [
    ("ada/01_scale/botched.py", "ada", "01_scale"),
    ("ada/katas/01_scale/botched.py", "ada", "01_scale"),
    ("ada/homework/katas/01_scale/botched.py", "ada", "01_scale"),
    ("ada/01_scale.py", "ada", "01_scale"),
    ("ada/scale.py", "ada", "01_scale"),
    ("ada_b_01_scale.py", "ada_b", "01_scale"),
    ("Ada Lovelace_12345_assignsubmission_file/01_scale.py", "Ada Lovelace", "01_scale"),
    ("Ada L_123_assignsubmission_file_/x.zip/katas/01_scale/botched.py", "Ada L", "01_scale"),
    ("lovelaceada_LATE_123_456_01_scale.py", "lovelaceada", "01_scale"),
    ("ada.zip/01_scale/botched.py", "ada", "01_scale"),
    ("katas/01_scale/botched.py", "homework", "01_scale"),
]


@pytest.mark.parametrize(("path", "learner", "name"), LAYOUTS)
def test_common_layouts_name_learner_and_kata(kata, system, path, learner, name):
    layout = Layout([kata, system], one=False)
    ((found, of),) = layout.places([PurePosixPath(path)], "homework").values()
    assert (found, of.name) == (learner, name)


@pytest.mark.parametrize(
    ("path", "learner"),
    [
        ("ada/botched.py", "ada"),
        ("ada/solution.py", "ada"),
        ("ada.py", "ada"),
        ("lovelaceada_123_456_botched-1.py", "lovelaceada"),
        ("ada/01_scale/botched.py", "ada"),
    ],
)
def test_where_one_kata_is_asked_for_paths_need_not_name_it(kata, path, learner):
    ((found, of),) = Layout([kata], one=True).places([PurePosixPath(path)], "homework").values()
    assert (found, of) == (learner, kata)


@pytest.mark.parametrize(
    "path", ["ada/test_scale.py", "ada/conftest.py", "ada/katas/02_descent/botched.py"]
)
def test_what_is_no_solution_of_it_is_left_alone(kata, path):
    assert Layout([kata], one=True).places([PurePosixPath(path)], "homework") == {}


def test_one_folder_may_hold_all_of_an_archive(kata, system):
    layout = Layout([kata, system], one=False)
    paths = [PurePosixPath(f"all/{name}/01_scale/botched.py") for name in ("ada", "bob")]
    assert [learner for learner, _ in layout.places(paths, "zip").values()] == ["ada", "bob"]
    paths = [PurePosixPath(f"ada/{name}/botched.py") for name in ("01_scale", "02_descent")]
    assert [learner for learner, _ in layout.places(paths, "zip").values()] == ["ada", "ada"]


def test_a_pattern_says_where_solutions_lie(kata):
    layout = Layout([kata], one=False, pattern="group/*/{kata}/of-{learner}/**/done.py")
    paths = ["group/7/scale/of-ada/a/b/done.py", "group/7/scale/of-ada.py", "ada/01_scale.py"]
    places = layout.places(map(PurePosixPath, paths), "x")
    assert [(str(path), learner) for path, (learner, _) in places.items()] == [(paths[0], "ada")]


@pytest.mark.parametrize("pattern", ["{kata}.py", "{learner}.py", "{learner}/{learner}/{kata}.py"])
def test_a_pattern_that_names_too_little_or_too_much_is_refused(kata, pattern):
    with pytest.raises(DojoError, match="--pattern"):
        Layout([kata], one=False, pattern=pattern)


def test_what_cannot_be_read_has_a_line_and_the_rest_goes_on(grades, tmp_path, texts):
    folder = tmp_path / "in"
    for learner, content in {
        "binary": b"\x7fELF\0\0",
        "latin": "# naïve".encode("latin-1"),
        "large": b"#" * 200_000,
        "long": b"\n" * 9_000,
        "bom": b"\xef\xbb\xbf" + texts["solved"].encode(),
        "empty": b"",
    }.items():
        path = folder / learner / "01_scale" / "botched.py"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    for learner in ("link", "folder", "pipe"):
        (folder / learner / "01_scale").mkdir(parents=True)
    (folder / "link/01_scale/botched.py").symlink_to("/etc/passwd")
    (folder / "folder/01_scale/botched.py").mkdir()
    os.mkfifo(folder / "pipe/01_scale/botched.py")
    (folder / "nothing").mkdir()
    (folder / "nothing" / "report.pdf").write_bytes(b"%PDF")
    (folder / "zipped").mkdir()
    (folder / "zipped" / "broken.zip").write_bytes(b"no zip")
    result, by = grades(folder)
    assert result.exit_code == 0, result.output
    assert {learner: row["detail"] for learner, row in by.items() if not row["tests"]} == {
        "binary": "is binary",
        "latin": "is not UTF-8: byte 5 is 0xef",
        "large": "is larger than 128 kB",
        "long": "has 9,000 lines, more than 4,000",
        "link": "is a link",
        "pipe": "is not a file",
        "nothing": "no solution is in it",
        "zipped": "is no archive that can be read",
    }
    assert by["bom"]["standing"] == "solved"
    assert by["empty"]["standing"] == "not solved"
    assert "folder" not in by  # it has no file at all


def test_an_archive_can_do_no_harm(grades, tmp_path, texts):
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good/01_scale/botched.py", texts["solved"])
        archive.writestr("bomb/01_scale/botched.py", b"\0" * 50_000_000)
        archive.writestr("../../evil/01_scale/botched.py", texts["solved"])
        archive.writestr("/rooted/01_scale/botched.py", texts["solved"])
        link = zipfile.ZipInfo("link/01_scale/botched.py")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("packed/01_scale/botched.py", texts["solved"], zipfile.ZIP_LZMA)
        archive.writestr("\x1b[31mred\x07/01_scale/botched.py", texts["solved"])
        archive.writestr("__MACOSX/good/01_scale/botched.py", "junk")
    before = sorted(tmp_path.rglob("*"))
    result, by = grades(path)
    assert [one for one in sorted(tmp_path.rglob("*")) if "evil" in str(one)] == []
    assert set(before) <= set(tmp_path.rglob("*"))
    assert {learner: row["standing"] for learner, row in by.items()} == {
        "good": "solved",
        "red": "solved",
        "bomb": "not readable",
        "..": "not readable",
        "rooted": "not readable",
        "link": "not readable",
        "packed": "not readable",
    }
    assert by["bomb"]["detail"] == "is larger than 128 kB"
    assert by["rooted"]["detail"] == "leads out of its archive"
    assert "\x1b" not in result.output


def test_an_archive_in_a_learners_folder_is_looked_into(grades, tmp_path, texts):
    folder = tmp_path / "in" / "Ada L_77_assignsubmission_file"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "homework.zip", "w") as archive:
        archive.writestr("homework/katas/01_scale/botched.py", texts["half"])
        archive.writestr("homework/katas/01_scale/test_scale.py", "")
    _, by = grades(tmp_path / "in")
    assert by["Ada L"]["gone"] == ["adds-factor"]


def test_a_table_names_learner_kata_and_path(grades, tmp_path, texts):
    hand_in(tmp_path / "in" / "one.py", texts["solved"])
    (tmp_path / "in" / "class.csv").write_text(
        "path,learner,kata,mail\none.py,Ada,scale,a@b.c\nnone.py,Bob,01_scale,\none.py,Eve,nix,\n"
    )
    _, by = grades(tmp_path / "in" / "class.csv")
    assert by["Ada"]["standing"] == "solved"
    assert by["Bob"]["detail"] == "cannot be read: No such file or directory"
    assert by["Eve"]["detail"] == "no kata asked for is called 'nix'"


def test_what_is_handed_in_twice_is_graded_once(grades, tmp_path, texts):
    hand_in(tmp_path / "in/ada/a/01_scale/botched.py", texts["solved"])
    hand_in(tmp_path / "in/ada/b/01_scale/botched.py", texts["half"])
    hand_in(tmp_path / "in/bob/01_scale/botched.py", texts["half"])
    result, _ = grades(tmp_path / "in")
    assert "1 solved, 1 not solved, 1 not readable" in result.output
    assert "is handed in twice: ada/a/01_scale/botched.py is graded" in result.output


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "does not exist; name a folder, a zip or a csv file"),
        (lambda path: path.mkdir(), "no submission was found in"),
        (lambda path: path.write_text("no zip"), "is no archive that can be read"),
    ],
)
def test_where_nothing_can_be_graded_one_line_says_why(grades, tmp_path, make, said):
    make(tmp_path / "in")
    result, _ = grades(tmp_path / "in")
    assert result.exit_code == 1
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_table_without_a_column_is_refused(grades, tmp_path):
    (tmp_path / "class.csv").write_text("learner,file\n")
    result, _ = grades(tmp_path / "class.csv")
    assert "lacks the column kata; it needs learner,kata,path" in result.output


def test_a_draw_without_its_seed_is_refused(project, homework):
    result = CliRunner().invoke(main, ["grade", str(homework), "--count", "1"], obj=project)
    assert result.exit_code == 2
    assert "--seed of the handout" in result.output


def test_a_cell_is_no_formula():
    evil = Grade("=cmd()", "01_scale", "p", "r", Standing.UNREADABLE, "@sum")
    assert as_csv([evil]).splitlines()[1].startswith("'=cmd(),01_scale,p")
    assert as_csv([evil]).rstrip().endswith("'@sum")


def test_gradescope_gets_a_file_a_learner(grades, homework, project):
    result, _ = grades(homework, "--format", "gradescope")
    assert result.exit_code == 0, result.output
    half = json.loads((project.root / "graded/gradescope/half.json").read_text())
    (test,) = half["tests"]
    assert (test["name"], test["score"], test["max_score"]) == ("01_scale", 50.0, 100)
    assert test["status"] == "failed"
    assert "1 of 2 planted bugs are gone" in test["output"]
    assert "adds-factor" not in json.dumps(half)


def test_github_classroom_gets_one_too(grades, homework, project):
    grades(homework, "--format", "classroom")
    made = json.loads((project.root / "graded/classroom/solved.json").read_text())
    assert (made["version"], made["status"], made["max_score"]) == (1, "pass", 100)
    assert [(test["status"], test["score"]) for test in made["tests"]] == [("pass", 100)]
    failed = json.loads((project.root / "graded/classroom/half.json").read_text())
    assert (failed["status"], failed["tests"][0]["status"]) == ("fail", "fail")


def test_a_banned_call_is_told(project, kata, runner):
    tests = "from dojo.testing import forbid\n\n\ndef test_ban(impl):\n    with forbid('exp'):\n"
    kata.tests.write_text(tests + "        impl.scale(1.0, 2.0)\n")
    text = "import torch\ndef scale(x, factor):\n    return torch.tensor(x).exp()\n"
    made = grade(Submission("ada", "01_scale", "p", text), kata, (), runner, 0)
    assert made.banned.startswith("the brief bans this call: ")


def test_the_same_command_runs_only_what_is_new(grades, homework, texts, monkeypatch):
    ran = []
    real = gradebook.grade
    monkeypatch.setattr(gradebook, "grade", lambda one, *rest: ran.append(one) or real(one, *rest))
    _, first = grades(homework)
    assert len(ran) == 3
    ran.clear()
    hand_in(homework / "half/01_scale/botched.py", texts["other"])
    _, second = grades(homework)
    assert [one.learner for one in ran] == ["half"]
    assert second["half"]["standing"] == "solved"
    assert {**first, "half": 0} == {**second, "half": 0}
    grades(homework, bugs=BOTH[:1])  # by another measure all are new
    assert len(ran) == 1 + 3


def test_a_line_that_was_cut_off_counts_as_never_written(tmp_path):
    one = Grade("ada", "01_scale", "p", "r", Standing.SOLVED)
    Journal(tmp_path / "results.jsonl").add("m", 5, one)
    text = (tmp_path / "results.jsonl").read_text()
    (tmp_path / "results.jsonl").write_text(text + text[:30])
    Journal(tmp_path / "results.jsonl").add("m", 5, one)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [line[:9] for line in lines if line == text.strip()] == [text[:9]] * 2
    assert Journal(tmp_path / "results.jsonl").seed == 5


@pytest.mark.slow
@pytest.mark.own_process
def test_a_killed_run_goes_on_where_it_was(project, tmp_path, texts):
    for number in range(40):
        hand_in(tmp_path / f"in/l{number:02}/01_scale/botched.py", f"{texts['half']}\n# {number}\n")
    journal = project.root / "graded" / "results.jsonl"
    given = ["grade", tmp_path / "in", "--bugs", ",".join(BOTH), "-o", journal.parent]
    command = [sys.executable, "-m", "dojo", *map(str, given)]
    env = {**os.environ, "PYTHONPATH": str(project.root / "scripts")}
    first = subprocess.Popen(command, cwd=project.root, env=env, stdout=subprocess.DEVNULL)
    while not journal.exists() or journal.read_text().count("\n") < 5:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = journal.read_text().count("\n")
    assert kept < 40
    subprocess.run(command, cwd=project.root, env=env, check=True, stdout=subprocess.DEVNULL)
    learners = [
        json.loads(line)["grade"]["learner"] for line in journal.read_text().splitlines() if line
    ]
    assert sorted(learners) == [f"l{number:02}" for number in range(40)]


@pytest.mark.own_process
def test_one_that_kills_what_runs_it_takes_no_other_along(kata, runner, texts):
    evil = f"import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n{texts['solved']}"
    made = grade(Submission("eve", "01_scale", "p", evil), kata, BOTH, runner, 0)
    assert made.standing is Standing.TAMPERED
    assert "end processes, that are not its own" in made.detail
    assert runner.run(kata, seed=0).verdict is Verdict.FAILED


def test_who_hands_in_no_solution_is_told_inside_one_folder_too(kata, tmp_path, texts):
    for learner in ("ada", "bob"):
        hand_in(tmp_path / f"in/all/{learner}/01_scale/botched.py", texts["half"])
    hand_in(tmp_path / "in/all/eve/essay.txt", "I tried.")
    found = find_submissions(tmp_path / "in", [kata], one=False)
    assert [(one.learner, one.problem) for one in found] == [
        ("ada", ""),
        ("bob", ""),
        ("eve", "no solution is in it"),
    ]


def test_tampering_that_a_sandbox_saw_is_no_solution(kata, texts):
    @dataclass(frozen=True)
    class Judged(RunResult):
        tampering: str = "it replaced torch.allclose"

    class Sandboxed:
        def run(self, kata, implementation, seed):
            return Judged(Verdict.PASSED, (), "", 0.1)

    made = grade(Submission("eve", "01_scale", "p", texts["solved"]), kata, BOTH, Sandboxed(), 0)
    assert (made.standing, made.detail, made.gone) == (
        Standing.TAMPERED,
        "it replaced torch.allclose",
        None,
    )


def test_katas_that_were_not_asked_for_are_left_out(kata, system, tmp_path, texts):
    hand_in(tmp_path / "in/ada/katas/01_scale/botched.py", texts["half"])
    hand_in(tmp_path / "in/ada/katas/02_descent/botched.py", "")
    (found,) = find_submissions(tmp_path / "in", [kata], one=True)
    assert found.kata == "01_scale"


@pytest.mark.slow
@pytest.mark.own_process
@pytest.mark.filterwarnings("default")  # Dask's own
def test_a_cluster_grades_each_once_though_a_worker_is_killed(project, tmp_path, texts):
    distributed = pytest.importorskip("distributed")
    for number in range(40):
        hand_in(tmp_path / f"in/l{number:02}/01_scale/botched.py", f"{texts['half']}\n# {number}\n")
    journal = project.root / "graded" / "results.jsonl"
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        given = ["grade", tmp_path / "in", "--bugs", ",".join(BOTH), "-o", journal.parent]
        command = [sys.executable, "-m", "dojo", *given, "--cluster", cluster.scheduler_address]
        env = {**os.environ, "PYTHONPATH": str(project.root / "scripts")}
        grading = subprocess.Popen(
            list(map(str, command)), cwd=project.root, env=env, stdout=subprocess.PIPE, text=True
        )
        while not journal.exists() or journal.read_text().count("\n") < 5:
            time.sleep(0.02)
        os.kill(cluster.workers[0].pid, signal.SIGKILL)
        output, _ = grading.communicate(timeout=300)
    grades = [json.loads(line)["grade"] for line in journal.read_text().splitlines()]
    assert sorted(one["learner"] for one in grades) == [f"l{number:02}" for number in range(40)]
    assert {tuple(one["gone"]) for one in grades} == {("adds-factor",)}
    assert "40 submissions: 40 not solved" in output


def test_a_cluster_that_does_not_answer_is_one_line(project, homework, monkeypatch):
    pytest.importorskip("distributed")
    from dojo.runner import cluster

    monkeypatch.setattr(cluster, "_SECONDS", 0.2)
    given = ["grade", str(homework), "--cluster", "tcp://127.0.0.1:9"]
    result = CliRunner().invoke(main, given, obj=project)
    assert result.exit_code == 1
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in result.output
