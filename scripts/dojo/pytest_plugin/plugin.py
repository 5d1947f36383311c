"""Gives kata tests their `impl` fixture, a seed that is printed, and a verdict at the end.

Imports pytest, torch, numpy and the standard library alone (kernel katas also triton), so that
`pytest katas/NAME` works on a machine that has nothing else.
"""

import contextlib
import functools
import re
import secrets
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dojo.errors import DojoError
from dojo.files import revision
from dojo.kata.kata_toml import load
from dojo.pytest_plugin import reporter, sealing
from dojo.testrun import guards
from dojo.testrun.banned import Banned
from dojo.testrun.closed_book import PROOF, Reads, closed_book
from dojo.testrun.device import has_gpu
from dojo.testrun.implementation import (
    Implementation,
    Planted,
    Reference,
    Solution,
    parse,
    write_variant,
)
from dojo.testrun.limits import Limits
from dojo.testrun.loading import (
    entries,
    explain_load_error,
    is_of_implementation,
    load_module,
    place_of,
)
from dojo.testrun.printed import folded
from dojo.testrun.results import Outcome, TestResult
from dojo.testrun.seeding import seed_generators

pytest.register_assert_rewrite("dojo.testing", "dojo.kernels")

_OUTPUT_SHOWN = 4_000  # characters of captured output in a report; a flood would hide the failure


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the katas."""
    group = parser.getgroup("katas")
    group.addoption(
        "--impl",
        default="botched",
        metavar="WHICH",
        help="what to test: botched (yours; the default), reference, bug:ID, bug:ID+ID, "
        "or the path of any solution",
    )
    group.addoption(
        "--kata-seed", type=int, metavar="N", help="repeat the random data of an earlier run"
    )
    group.addoption(
        "--kata-timeout",
        type=float,
        metavar="SECONDS",
        help="the processor time that one test may take (default: KATA_TEST_SECONDS, or 10); "
        "0 for all it needs",
    )
    group.addoption("--kata-no-history", action="store_true", help="do not record this run")
    sealing.add_option(group)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, choose the seed, and start collecting verdicts."""
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped with a reason elsewhere")
    config.addinivalue_line("markers", "symptom: of a system, what a person would notice")
    # A checkout that cannot be written has no cache; the verdict's last line tells why.
    config.addinivalue_line("filterwarnings", "ignore::pytest.PytestCacheWarning")
    # xdist's own, which a run without xdist does not know.
    config.addinivalue_line("markers", "xdist_group(name): tests that one worker runs, in order")
    if config.option.kata_timeout is None:
        try:
            config.option.kata_timeout = Limits.from_environment().test_seconds
        except DojoError as error:
            raise pytest.UsageError(str(error)) from None
    if config.option.kata_seed is None:
        # Set on the options: xdist hands these to its workers, so that all use one seed.
        config.option.kata_seed = secrets.randbelow(2**31)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(reporter.VerdictReporter(config), "kata-verdict")


def pytest_report_header(config: pytest.Config) -> str:
    """Print the seed, so that a run can be repeated."""
    return f"katas: --impl {config.option.impl} --kata-seed {config.option.kata_seed}"


@functools.cache
def kata_folder(path: Path) -> Path | None:
    """Return the kata folder that a test file belongs to, or None for any other test."""
    return path.parent if (path.parent / "kata.toml").is_file() else None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Import a proof with its book closed."""
    with _closed_book(collector) as read:
        report = yield
    if said := read():
        report.outcome, report.longrepr = "failed", said
    return report


@contextlib.contextmanager
def _by_the_book(node: pytest.Item) -> Iterator[None]:
    """Fail where a proof reads what it is to test, even if it makes nothing of that."""
    with _closed_book(node) as read:
        yield
    if said := read():
        raise Reads(said, pytrace=False)


@contextlib.contextmanager
def _closed_book(node: pytest.Item | pytest.Collector) -> Iterator[Callable[[], str]]:
    """Let a proof read neither the code under test nor the kata's files; other tests may."""
    folder = kata_folder(node.path) if node.path.name == PROOF else None
    if folder is None:
        yield str
        return
    which = parse(node.config.option.impl, node.config.invocation_params.dir)
    with closed_book(folder, which.path if isinstance(which, Solution) else None) as read:
        yield read


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """Seal the checks of a system as they are collected, before any is selected by its name."""
    made = yield
    folder = kata_folder(collector.path)
    if folder is not None and isinstance(made, list) and sealing.seals(folder, collector.config):
        return sealing.seal(collector, made)
    return made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none; keep GPU tests in one xdist group.

    A warning of a solution is shown, and fails no test of a kata: the code may be right.
    """
    for item in items:
        if kata_folder(item.path) is not None:
            # Before the test's own marks, which may say otherwise.
            item.add_marker(pytest.mark.filterwarnings("default"), append=False)
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    missing = bool(gpu_items) and not has_gpu()
    for item in gpu_items:
        item.add_marker(pytest.mark.xdist_group("gpu"))
        if missing:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and none is here"))


@pytest.fixture(scope="module")
def impl(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Return the implementation under test, as a module; which one is said by `--impl`."""
    folder = kata_folder(request.path)
    if folder is None:
        pytest.fail(f"`impl` is for tests in a kata's folder, not {request.path}", pytrace=False)
    which = parse(request.config.option.impl, request.config.invocation_params.dir)
    with _file(folder, which) as path:
        yield _implementation(folder, which, path, request.config)


def _implementation(
    folder: Path, which: Implementation, path: Path, config: pytest.Config
) -> ModuleType:
    if torch := sys.modules.get("torch"):
        # Katas are small: threads cost more than they give, and a warm run has one as well.
        torch.set_num_threads(1)
    try:
        source = path.read_bytes()
        config.stash.setdefault(_revisions, {})[folder] = revision(source)
        with guards.contained(config.option.kata_timeout):
            module = load_module(path, f"kata_{folder.name}_{which}", source)
    except pytest.exit.Exception:  # q in a debugger
        raise
    except (Exception, SystemExit, pytest.fail.Exception) as error:
        _stop(config, folder, "the file does not load; the first test says why")
        pytest.fail(explain_load_error(error, path), pytrace=False)
    if isinstance(which, Reference | Planted):
        # pytest leaves such frames out of tracebacks: the answer is not printed by accident.
        module.__dict__["__tracebackhide__"] = True
    module.__dict__.setdefault("__getattr__", _missing_name(path))
    return module


@contextlib.contextmanager
def _file(folder: Path, which: Implementation) -> Iterator[Path]:
    """Yield the file that holds the implementation."""
    if isinstance(which, Planted):
        try:
            source = load(folder).planted_source(which.bugs)
        except DojoError as error:
            pytest.fail(str(error), pytrace=False)
        with tempfile.TemporaryDirectory(prefix="kata-") as scratch:
            yield write_variant(source, folder.name, Path(scratch)).path
    elif isinstance(which, Solution):
        if not which.path.is_file():
            pytest.fail(f"--impl {which}: there is no such file", pytrace=False)
        yield which.path
    else:
        yield folder / f"{which}.py"


_revisions = pytest.StashKey[dict[Path, str]]()
_seconds = pytest.StashKey[float]()  # of processor time, which a busy machine does not lengthen
_stopped = pytest.StashKey[dict[Path, str]]()


def _stop(config: pytest.Config, folder: Path, reason: str) -> None:
    """Skip what is left of a kata's tests: its first failure says it all."""
    config.stash.setdefault(_stopped, {})[folder] = reason


def _missing_name(path: Path) -> Callable[[str], Any]:
    def missing(name: str) -> Any:
        raise AttributeError(f"{path.name} has no {name!r}, which the brief asks for")

    return missing


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seed every generator for this test alone, so that order and selection change nothing."""
    folder = kata_folder(item.path)
    if folder is None:
        return
    stop = item.config.stash.get(_stopped, {}).get(folder)
    if stop is not None:
        pytest.skip(stop)
    name = sealing.real_name(item)
    seed_generators(zlib.crc32(f"{item.config.option.kata_seed}:{name}".encode()))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(request: pytest.FixtureRequest) -> Generator[None, object, object]:
    """Make a kata's fixtures inside the guards too: they run the code."""
    if kata_folder(request.node.path) is None:  # of a session, or of other tests
        return (yield)
    loads = request.fixturename == "impl"  # which reads what it loads
    book = contextlib.nullcontext() if loads else _by_the_book(request.node)
    with guards.contained(_seconds_allowed(request.config)), book:
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Run a kata's test inside the guards, and these while pytest captures what is printed."""
    if kata_folder(item.path) is None:
        yield
        return
    started = time.process_time()
    guarded = guards.contained(_seconds_allowed(item.config))
    try:
        with guarded, _by_the_book(item), _short_comparisons():
            yield
    finally:
        item.stash[_seconds] = time.process_time() - started


@contextlib.contextmanager
def _short_comparisons() -> Iterator[None]:
    """Have pytest not believe itself on CI, where it compares at length what `==` compared.

    Of a thousand numbers that takes minutes, and the test would be said not to end.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CI", "BUILD_NUMBER"):
            patch.delenv(name, raising=False)
        yield


def pytest_enter_pdb() -> None:
    """Give a test, or a file that loads, all the time that a person at pdb's prompt takes."""
    guards.refuse_debugger_without_terminal()
    guards.lift_time_limit()


@pytest.hookimpl(tryfirst=True)
def pytest_exception_interact(node: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Have `--pdb` open in the learner's code, or in the test if that had returned."""
    if not node.config.option.usepdb or call.excinfo is None or kata_folder(node.path) is None:
        return
    all_entries = list(entries(call.excinfo.tb))
    of_kata = [entry for entry in all_entries if is_of_implementation(entry.tb_frame)]
    if not of_kata:
        path = str(node.path)
        of_kata = [entry for entry in all_entries if entry.tb_frame.f_code.co_filename == path]
        writer = node.config.get_terminal_writer()
        writer.line("\nYour code had returned when the test failed: pdb opens in the test.")
        writer.line("To stop inside your code, put breakpoint() there.")
    if of_kata:
        of_kata[-1].tb_next = None


def _seconds_allowed(config: pytest.Config) -> float:
    seconds: float = config.option.kata_timeout
    kernels = sys.modules.get("dojo.kernels")
    # Compiling and tuning a kernel takes far longer than running it.
    return 10 * seconds if kernels and kernels.DEVICE == "cuda" else seconds


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the structured result to the report, and cut captured output to a readable size."""
    report = yield
    printed = "".join(text for _, text in report.sections) if report.failed else ""
    report.sections = [(title, _shorten(text)) for title, text in report.sections]
    folder = kata_folder(item.path)
    if folder is not None:
        result = _test_result(item, call, report, folded(printed))
        if result is not None:
            if result.outcome is Outcome.TIMEOUT:
                _stop(item.config, folder, "an earlier test did not end")
            # Plain data: xdist sends a report's attributes from its workers as JSON.
            vars(report)["kata"] = {
                "folder": str(folder),
                "proof": item.path.name == PROOF,
                "result": result.to_json(),
            }
        sealing.keep_sealed(item, report, folder)
    return report


def _test_result(
    item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport, printed: str
) -> TestResult | None:
    if report.passed and report.when != "call":
        return None
    if report.failed:
        reads = call.excinfo is not None and isinstance(call.excinfo.value, Reads)
        outcome = Outcome.FAILED if report.when == "call" and not reads else Outcome.ERROR
        if call.excinfo is not None and isinstance(call.excinfo.value, guards.TimedOut):
            outcome = Outcome.TIMEOUT
    else:
        outcome = Outcome.SKIPPED if report.skipped else Outcome.PASSED
    message = _message(call) if call.excinfo is not None else ""
    name = sealing.real_name(item)
    tested = item.config.stash.get(_revisions, {}).get(item.path.parent, "")
    seconds = item.stash.get(_seconds, 0.0)
    symptom = item.get_closest_marker("symptom") is not None
    banned = call.excinfo is not None and isinstance(call.excinfo.value, Banned)
    raised = _raised(call)
    return TestResult(name, outcome, message, seconds, tested, raised, printed, symptom, banned)


# What torch says of the graph where a test goes back through a result, in words about the result.
_AUTOGRAD = {
    "does not require grad and does not have a grad_fn": "autograd finds no way back through the "
    "result: is it detached, made under no_grad, or made by NumPy?",
    "appears to not have been used in the graph": "autograd finds no way back from the result to "
    "one of the inputs",
}


def _raised(call: pytest.CallInfo[None]) -> bool:
    said = (AssertionError, pytest.fail.Exception, pytest.skip.Exception, Warning)
    return call.excinfo is not None and not isinstance(call.excinfo.value, said)


def _message(call: pytest.CallInfo[None]) -> str:
    assert call.excinfo is not None
    error = call.excinfo.value
    text, place = str(error), place_of(error)
    if isinstance(error, AssertionError):
        # Behind a message of the test's own, pytest repeats the expression; the message is enough.
        text = re.split(r"(?<!^)\nassert ", text, maxsplit=1)[0]
    if isinstance(error, (pytest.fail.Exception, pytest.skip.Exception)):
        text = f"{place.removeprefix(' ')}: {text}" if place else text
    elif place or not isinstance(error, AssertionError):
        text = f"{type(error).__name__}{place}: {text}"
    if isinstance(error, pytest.FixtureLookupError):
        text = f"there is no fixture {error.argname!r}"
    if isinstance(error, RuntimeError) and not place:
        text = next((said for torchs, said in _AUTOGRAD.items() if torchs in text), text)
    return _shorten(text)


def _shorten(text: str) -> str:
    if len(text) <= _OUTPUT_SHOWN:
        return text
    half = _OUTPUT_SHOWN // 2
    return f"{text[:half]}\n... {len(text) - 2 * half:,} more characters ...\n{text[-half:]}"
