"""A class's submissions: none is solved by reading answers, or by changing what judges it."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from dojo.classroom import namespaces, sandbox
from dojo.classroom.sandbox import sandboxed_pool
from dojo.classroom.walls import Walls
from dojo.errors import DojoError
from dojo.kata import catalogue, kata_toml
from dojo.project import Project
from dojo.testrun.implementation import Learner, Planted, Reference, Text
from dojo.testrun.limits import Limits
from dojo.testrun.results import Verdict

pytestmark = pytest.mark.own_process

REAL = Project.here()
SECRET = "the-answer-is-here"

REFERENCE = f'''
"""Doubles. {SECRET}."""

import torch


def double(x: torch.Tensor) -> torch.Tensor:
    """Return twice `x`."""
    return x * 2


def total(numbers: list[float]) -> float:
    """Return the sum."""
    return sum(numbers)
'''

TOML = """
title = "Double"
topic = "layers"
level = "easy"
minutes = 5
default = ["triples"]

[[bug]]
id = "triples"
title = "Triples"
kind = "scale"
find = "return x * 2"
replace = "return x * 3"
killed_by = ["test_matches"]
hints = ["What does it do?"]
why = "Two, not three."
"""

TESTS = """
import pytest
import torch

from dojo.testing import assert_matches


def test_matches(impl):
    x = torch.randn(3, 4)
    assert_matches(impl.double(x), x + x, "double")


def test_close(impl):
    x = torch.randn(3, 4)
    torch.testing.assert_close(impl.double(x), x + x)


def test_equal(impl):
    x = torch.arange(6)
    assert torch.equal(impl.double(x), x + x)


def test_allclose(impl):
    x = torch.randn(5)
    assert torch.allclose(impl.double(x), x + x)


@pytest.mark.parametrize("numbers", [[1.0, 2.0, 4.0], [0.5]])
def test_total(impl, numbers):
    expected = 7.0 if len(numbers) > 1 else 0.5
    assert impl.total(numbers) == expected


def test_a_list_is_asked_for(impl):
    with pytest.raises(TypeError):
        impl.total(3)
"""

# Each wrong; `cheat` runs as the file is loaded, `within` at each call.
WRONG = """
import torch
{cheat}

def double(x):
    {within}
    return x * 3

def total(numbers):
    return sum(numbers)
"""


def wrong(cheat="", within="pass"):
    cheat = textwrap.dedent(cheat)
    within = textwrap.indent(textwrap.dedent(within), "    ").strip()
    return WRONG.format(cheat=cheat, within=within)


# They look for answers; what they find they put in place of their own code.
READERS = {
    "reference beside the tests": """
        import pathlib, sys
        tests = pathlib.Path(next(
            m.__file__ for m in list(sys.modules.values())
            if str(getattr(m, "__file__", "")).endswith("test_double.py")
        ))
        found = (tests.parent / "reference.py").read_text()
        """,
    "catalogue": """
        import glob
        text = "".join(open(path).read() for path in glob.glob("**/kata.toml", recursive=True))
        found = text if "triples" in text else 1 / 0
        """,
    "every readable file": """
        import os
        found = ""
        for folder, below, names in os.walk("/"):
            if folder.startswith(("/proc", "/sys", "/usr", "{python}")) or "/.venv/" in folder:
                below.clear()
            for name in names:
                path = os.path.join(folder, name)
                try:
                    text = open(path, errors="replace").read(100_000)
                except OSError:
                    continue
                if path != __file__ and "{secret}" in text and "* 2" in text:
                    found = text
        assert found
        """,
    "git objects": """
        import glob, zlib
        objects = glob.glob("{root}/.git/objects/*/*") + glob.glob(".git/objects/*/*")
        found = [zlib.decompress(open(path, "rb").read()) for path in objects][0]
        """,
    "memory of other processes": """
        import os
        found = b""
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                found += open(f"/proc/{name}/mem", "rb").read(1)
        assert found
        """,
    "network": """
        import socket
        found = socket.create_connection(("1.1.1.1", 53), timeout=1)
        """,
    "checkout": """
        import os
        found = os.listdir("{root}/katas")
        """,
    "home": """
        import os
        found = os.listdir("{home}")
        assert [name for name in found if not name.startswith(".pyenv")]
        """,
    "environment": """
        import os
        found = os.environ["SECRET_OF_THE_TEACHER"]
        """,
    "environment of the first process": """
        found = open("/proc/self/environ").read()
        assert "SECRET_OF_THE_TEACHER" in found
        """,
}

# What they write has to be gone, or never to have been.
WRITERS = {
    "tests": """
        import glob
        for path in glob.glob("katas/*/test_*.py"):
            open(path, "w").write("def test_nothing(impl): pass\\n")
        """,
    "history": """
        import pathlib
        pathlib.Path(".dojo").mkdir()
        """,
    "package": """
        import dojo.testing
        open(dojo.testing.__file__, "a").write("# mine")
        """,
    "python": """
        import torch.testing
        open(torch.testing.__file__, "a").write("# mine")
        """,
    "own file": """
        open(__file__, "a").write("# mine")
        """,
    "a mount": """
        import ctypes
        mounted = ctypes.CDLL(None).mount(b"x", b"/usr", b"tmpfs", 0, b"")
        unshared = ctypes.CDLL(None).unshare(0x10000000)
        assert mounted == 0 or unshared == 0
        """,
    "a signal to everyone": """
        import os, signal
        for pid in range(1, 3000):
            if pid != os.getpid():
                try:
                    os.kill(pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    pass
        raise RuntimeError("nobody died")
        """,
}

NOTHING = "lambda *a, **k: None"
TAMPERERS = {
    "assert_close": f"torch.testing.assert_close = {NOTHING}",
    "assert_matches": f"import dojo.testing; dojo.testing.assert_matches = {NOTHING}",
    "torch.equal": "torch.equal = torch.allclose = lambda *a, **k: True",
    "isclose": "torch.isclose = lambda a, b, **k: torch.ones_like(a, dtype=torch.bool)",
    "code of assert_matches": """
        import dojo.testing
        dojo.testing.assert_matches.__code__ = (lambda *a, **k: None).__code__
        """,
    "code of every test": """
        import gc, types
        for found in gc.get_objects():
            if isinstance(found, types.FunctionType) and found.__name__.startswith("test_"):
                found.__code__ = (lambda impl, numbers=None: None).__code__
        """,
    "pytest.fail": f"import pytest; pytest.fail = {NOTHING}",
    "pytest's reports": """
        import _pytest.reports
        _pytest.reports.TestReport.from_item_and_call = None
        """,
    "the plugin's results": """
        from dojo.pytest_plugin import plugin
        from dojo.testrun.results import Outcome, TestResult
        def passed(item, call, report, printed):
            if call.when == "call":
                return TestResult(item.name, Outcome.PASSED, "", 0.0)
        plugin._test_result = passed
        """,
    "the outcome of a failure": """
        from dojo.testrun.results import Outcome
        Outcome.FAILED = Outcome.PASSED
        """,
    "results as they are sent": """
        from dojo.runner import worker
        from dojo.runner.protocol import test_line
        from dataclasses import replace
        from dojo.testrun.results import Outcome
        def passed(result, place):
            return test_line(replace(result, outcome=Outcome.PASSED, message=""), place)
        worker.test_line = passed
        """,
    "a hook": """
        import gc, pytest
        class Mine:
            @pytest.hookimpl(tryfirst=True)
            def pytest_pyfunc_call(self, pyfuncitem):
                return True
        for found in gc.get_objects():
            if isinstance(found, pytest.Config):
                found.pluginmanager.register(Mine())
        """,
    "isinstance": """
        import builtins
        builtins.all = lambda *a: True
        """,
    "a mode of torch's": """
        from torch.overrides import TorchFunctionMode
        class Agree(TorchFunctionMode):
            def __torch_function__(self, func, types, args=(), kwargs=None):
                if func in (torch.isclose, torch.equal, torch.allclose):
                    return torch.tensor(True)
                return func(*args, **(kwargs or {}))
        Agree().__enter__()
        """,
    "the judge of the judge": f"""
        from dojo.classroom import integrity
        integrity.Integrity.broken = lambda self: ""
        torch.testing.assert_close = torch.equal = torch.allclose = lambda *a, **k: True
        import dojo.testing, sys
        for module in list(sys.modules.values()):
            if hasattr(module, "assert_matches"):
                module.assert_matches = {NOTHING}
        """,
}

AGREEING = """
import torch

class Agree(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.isclose, torch.equal, torch.allclose):
            return torch.tensor(True)
        return super().__torch_function__(func, types, args, kwargs or {})

def double(x):
    return (x * 3).as_subclass(Agree)

def total(numbers):
    return sum(numbers)
"""

BOMB = """
    import os, time
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
        except OSError:
            time.sleep(0.01)
    """

ENDERS = {
    "os._exit": ("import os; os._exit(0)", "pass"),
    "posix._exit": ("import posix; posix._exit(0)", "pass"),
    "kill": ("import os; os.kill(os.getpid(), 9)", "pass"),
    "sys.exit in a call": ("import sys", "sys.exit(0)"),
    "pytest.exit": ("import pytest", "pytest.exit('done', 0)"),
    "skip as it loads": ("import pytest; pytest.skip('no', allow_module_level=True)", "pass"),
    "skip in a call": ("import pytest", "pytest.skip('no')"),
    "atexit": ("import atexit, os; atexit.register(os._exit, 0)", "pass"),
    "fork": ("import os\nif os.fork(): os._exit(0)", "pass"),
    "forged results": (
        """
        import os, json
        lines = [json.dumps({"starts": "test_matches"})]
        names = ["test_matches", "test_close", "test_equal", "test_allclose"]
        names += ["test_total[numbers0]", "test_total[numbers1]", "test_a_list_is_asked_for"]
        for place, name in enumerate(names):
            test = {"name": name, "outcome": "passed", "message": "", "seconds": 0.0}
            lines.append(json.dumps({"test": test, "place": place}))
        lines += [json.dumps({"exit": 0}), json.dumps({"end": True}), ""]
        forged = "\\n".join(lines).encode()
        print(forged.decode())
        for descriptor in range(3, 40):
            try:
                os.write(descriptor, forged)
            except OSError:
                pass
        os.kill(os.getpid(), 9)
        """,
        "pass",
    ),
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    copy = REAL.copied_to(tmp_path_factory.mktemp("class") / "checkout")
    folder = copy.katas / "01_double"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# Double\n")
    (folder / "reference.py").write_text(REFERENCE.lstrip())
    (folder / "kata.toml").write_text(TOML)
    (folder / "test_double.py").write_text(TESTS)
    kata = kata_toml.load(folder)
    kata.botched.write_text(kata.planted_source(kata.default))
    subprocess.run(["git", "init", "-q"], cwd=copy.root, check=True)
    subprocess.run(["git", "add", "."], cwd=copy.root, check=True)
    return copy


@pytest.fixture(scope="module")
def double(checkout):
    return kata_toml.load(checkout.katas / "01_double")


@pytest.fixture(scope="module")
def pool(checkout):
    os.environ["SECRET_OF_THE_TEACHER"] = "yes"
    limits = Limits(test_seconds=2.0, run_seconds=8.0, memory_gb=0.5)
    with sandboxed_pool(checkout, limits, 1) as pool:
        del os.environ["SECRET_OF_THE_TEACHER"]
        if pool.walls is not Walls.NAMESPACES:
            pytest.skip("this system permits no namespaces")
        yield pool


@pytest.fixture
def judge(pool, double):
    def judge(source, **how):
        text = Text(source) if isinstance(source, str) else source
        return next(iter(pool.map(lambda runner, job: runner.run(double, job, **how), [text])))

    return judge


def told(text, double):
    values = {"python": sys.base_prefix, "secret": SECRET, "root": double.folder.parents[1]}
    for name, value in {**values, "home": Path.home()}.items():
        text = text.replace("{" + name + "}", str(value))
    return text


def test_a_correct_submission_is_solved(judge, double):
    for one in (Reference(), double.correct_source):
        result = judge(one)
        assert result.verdict is Verdict.PASSED, result.detail
        assert result.tampering == ""
        assert len(result.tests) == 7


def test_a_wrong_one_fails_as_it_does_elsewhere(judge):
    for one in (Learner(), Planted(("triples",)), wrong()):
        result = judge(one, seed=3)
        assert result.verdict is Verdict.FAILED
        assert result.detail.startswith("double: 12 of 12 values are wrong")
        assert (result.seed, result.tampering) == (3, "")


def test_only_some_tests_may_be_asked_for(judge, double):
    result = judge(double.correct_source, only=["test_total"])
    assert result.verdict is Verdict.PASSED
    assert len(result.tests) == 2
    assert judge(wrong(), first_failure=True, first=["test_equal"]).verdict is Verdict.FAILED


@pytest.mark.parametrize("cheat", READERS)
def test_there_is_no_answer_to_read(judge, double, cheat):
    result = judge(wrong(told(READERS[cheat], double)))
    assert result.verdict is Verdict.BROKEN
    assert "Error" in result.detail


@pytest.mark.parametrize("cheat", WRITERS)
def test_there_is_nothing_to_write_to(judge, double, cheat):
    before = double.tests.read_text()
    result = judge(wrong(WRITERS[cheat]))
    assert result.verdict is Verdict.BROKEN
    assert "Error" in result.detail
    assert double.tests.read_text() == before
    assert judge(double.correct_source).verdict is Verdict.PASSED


@pytest.mark.parametrize("cheat", TAMPERERS)
def test_a_judge_that_is_changed_is_seen_to_be(judge, cheat):
    for source in (wrong(TAMPERERS[cheat]), wrong("", TAMPERERS[cheat])):
        result = judge(source)
        assert result.verdict is not Verdict.PASSED


def test_what_was_tampered_with_is_named(judge):
    result = judge(wrong("torch.equal = print"))
    assert "torch.equal is replaced" in result.tampering
    assert result.verdict is Verdict.BROKEN
    assert result.detail == f"tampering seen: {result.tampering}"


def test_results_that_agree_with_everything_are_seen(judge):
    assert "passes, whatever the code returns" in judge(AGREEING).tampering


@pytest.mark.parametrize("cheat", ENDERS)
def test_no_end_is_a_pass(judge, cheat):
    assert judge(wrong(*ENDERS[cheat])).verdict is not Verdict.PASSED


@pytest.mark.slow
def test_a_fork_bomb_is_bounded_and_gone(judge, double):
    started = time.monotonic()
    assert judge(wrong(BOMB)).verdict is not Verdict.PASSED
    assert time.monotonic() - started < 20
    assert judge(double.correct_source).verdict is Verdict.PASSED


@pytest.mark.slow
def test_what_a_submission_starts_ends_with_it(judge, pool, double):
    left = """
        import os, sys, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(47.11)"])
            os._exit(0)
        time.sleep(0.5)
        """
    judge(wrong(left))
    judge(wrong())
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [words for words in running if b"47.11" in words]


@pytest.mark.slow
@pytest.mark.parametrize("sleep", ["time.sleep(100)", "sum(range(10**12))"])
def test_a_submission_that_does_not_end_is_ended(judge, sleep):
    result = judge(wrong("import time", sleep))
    assert result.verdict in (Verdict.FAILED, Verdict.TIMEOUT)


@pytest.mark.slow
def test_temporary_files_have_a_cap_and_are_gone_afterwards(judge, double):
    fill = """
        import os, tempfile
        folder = tempfile.gettempdir()
        assert not os.listdir(folder) or len(os.listdir(folder)) < 3, os.listdir(folder)
        size = 0
        try:
            for number in range(1000):
                with open(os.path.join(folder, str(number)), "wb") as file:
                    size += file.write(bytes(2**20))
        except OSError as error:
            raise RuntimeError(f"{size >> 20} MB: {error}")
        """
    for _ in range(2):
        detail = judge(wrong(fill)).detail
        assert "No space left on device" in detail
        megabytes = int(re.search(r"(\d+) MB", detail)[1])
        assert megabytes <= namespaces.FILES_BYTES >> 20
    assert judge(double.correct_source).verdict is Verdict.PASSED


def test_memory_has_a_cap(judge):
    assert judge(wrong("kept = bytearray(2**30)")).verdict is Verdict.BROKEN


def test_a_kata_whose_reference_fails_is_not_judged_by(pool, double, monkeypatch):
    monkeypatch.setitem(vars(double), "correct_source", wrong())
    runner = pool._runners[0]
    monkeypatch.setattr(runner, "_expectations", sandbox._Expectations())
    with pytest.raises(DojoError, match="the reference does not pass: double: 12 of 12"):
        runner.run(double, Text(wrong()))


def test_without_walls_it_is_said_what_is_open(checkout, double, monkeypatch):
    monkeypatch.setattr(sandbox, "strongest", lambda room: Walls.NONE)
    with sandboxed_pool(checkout, size=1) as pool:
        assert "read your files" in pool.walls.warning
        results = list(
            pool.map(
                lambda runner, text: runner.run(double, text),
                [
                    Text(double.correct_source),
                    Text(wrong()),
                    Text(wrong(TAMPERERS["torch.equal"])),
                ],
            )
        )
    assert [one.verdict for one in results] == [Verdict.PASSED, Verdict.FAILED, Verdict.BROKEN]
    assert results[2].tampering


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_bubblewrap_serves_where_only_it_may(checkout, double, monkeypatch):
    monkeypatch.setattr(sandbox, "strongest", lambda room: Walls.BUBBLEWRAP)
    reads = wrong(told(READERS["checkout"], double))
    with sandboxed_pool(checkout, size=1) as pool:
        results = list(
            pool.map(
                lambda runner, text: runner.run(double, text),
                [
                    Text(double.correct_source),
                    Text(wrong()),
                    Text(reads),
                ],
            )
        )
    assert [one.verdict for one in results] == [Verdict.PASSED, Verdict.FAILED, Verdict.BROKEN]


@pytest.mark.slow
def test_a_class_of_strangers_is_judged():
    """KATA_SUBMISSIONS says how many; 300 on two cores are to take less than three minutes."""
    softmax = catalogue.find(REAL, "03")
    correct = [softmax.correct_source, *(path.read_text() for path in softmax.solutions)]
    broken = [softmax.planted_source([bug.id]) for bug in (*softmax.bugs, *softmax.fresh)]
    hostile = [wrong(BOMB), wrong("import time\ntime.sleep(1000)")]
    count = int(os.environ.get("KATA_SUBMISSIONS", "20")) - len(hostile)
    texts = [(correct if n % 3 else broken)[n // 3 % 3] + f"\n# {n}\n" for n in range(count)]
    texts[count // 3 : count // 3] = hostile
    with sandboxed_pool(REAL) as pool:
        results = list(pool.map(lambda runner, text: runner.run(softmax, Text(text)), texts))
    for text, result in zip(texts, results, strict=True):
        solved = any(text.startswith(one) for one in correct)
        assert (result.verdict is Verdict.PASSED) == solved, (result.verdict, result.detail)
        assert result.tampering == ""


def test_nothing_is_left_of_a_pool(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with sandboxed_pool(checkout, size=1):
        assert list(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []
