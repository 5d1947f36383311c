"""Every kernel of every reference, solution and planted bug compiles for the GPUs people have."""

from importlib.util import find_spec

import pytest

from dojo.kata.catalogue import load_all
from dojo.project import Project
from dojo.verification.compiling import CAPABILITIES, compile_kernels

PROJECT = Project.here()
KERNEL_KATAS = [kata for kata in load_all(PROJECT) if kata.needs_triton]

# Not imported here: other tests in this process interpret kernels.
needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed here")
pytestmark = [pytest.mark.slow, pytest.mark.own_process, needs_triton]


@pytest.mark.parametrize("kata", KERNEL_KATAS, ids=lambda kata: kata.name)
def test_everything_compiles(kata, tmp_path):
    correct = {"reference": kata.correct_source}
    correct |= {path.stem: path.read_text(encoding="utf-8") for path in kata.solutions}
    planted = {bug.id: kata.planted_source([bug.id]) for bug in kata.bugs}
    for versions, every in [(correct, True), (planted, False)]:
        assert not list(
            compile_kernels(PROJECT, kata, versions, tmp_path, jobs=2, every_configuration=every)
        )


def test_what_does_not_compile_is_told(tmp_path):
    (kata,) = (kata for kata in KERNEL_KATAS if kata.name == "30_triton_silu")
    versions = {"broken": kata.correct_source.replace("tl.store(", "tl.no_such_store(", 1)}
    refusals = list(
        compile_kernels(PROJECT, kata, versions, tmp_path, jobs=1, every_configuration=True)
    )
    assert {refusal.capability for refusal in refusals} == set(CAPABILITIES)
    assert "no_such_store" in refusals[0].reason
