"""Kernel katas: guarded memory shows what a GPU would hide; without triton there is one line."""

import pytest
import torch

from dojo.kernels import DEVICE, guarded, run
from dojo.testrun.loading import load_module
from dojo.testrun.results import Verdict

DOUBLE = '''
import torch
import triton
import triton.language as tl


@triton.jit
def _kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(x_ptr + offsets, mask=mask)
    tl.store(out_ptr + offsets, 2 * x, mask=mask)


def double(x):
    """Return twice the contiguous tensor `x`."""
    out = torch.empty_like(x)
    _kernel[(triton.cdiv(x.numel(), 64),)](x, out, x.numel(), BLOCK=64)
    return out
'''


@pytest.fixture
def double(tmp_path, request):
    def double(*edits):
        source = DOUBLE
        for before, after in edits:
            assert before in source
            source = source.replace(before, after)
        path = tmp_path / "kernel.py"
        path.write_text(source)
        return load_module(path, f"kernel_{request.node.name}", source.encode()).double

    return double


X = torch.arange(100.0, device=DEVICE)


def test_a_correct_kernel_passes(double):
    assert torch.equal(run(double(), X), 2 * X)
    assert torch.equal(run(double(), x=X.int()), 2 * X.int())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("mask = offsets < n", "mask = offsets < n + 9"), "9 past its end"),
        (("tl.store(out_ptr + offsets", "tl.store(out_ptr - 3 + offsets"), "3 before its start"),
        (("tl.store(out_ptr", "tl.store(x_ptr"), "argument 1 is left as it was"),
    ],
)
def test_a_write_to_the_wrong_place_is_seen(double, edit, message):
    with pytest.raises(pytest.fail.Exception, match=message):
        run(double(edit), X)


def test_what_is_never_written_or_read_past_the_end_is_nan(double):
    too_few = run(double(("triton.cdiv(x.numel(), 64)", "x.numel() // 64")), X)
    assert too_few[:64].isfinite().all()
    assert too_few[64:].isnan().all()
    shifted = run(double(("x_ptr + offsets", "x_ptr + 1 + offsets")), X)
    assert shifted.isnan().nonzero().flatten().tolist() == [99]


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU gives whatever is there")
@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float16, "nan"), (torch.bfloat16, "nan"), (torch.int32, "77")]
)
def test_lanes_that_a_masked_load_leaves_out_are_undefined(double, dtype, value):
    # A mask that is false somewhere, and a store of what was loaded there.
    reaching = double(("mask = offsets < n\n", "mask = offsets != 5\n"), ("2 * x, mask=mask", "x"))
    x = torch.zeros(64, dtype=dtype)
    out = run(reaching, x)
    assert str(out[5].item()) == value
    assert not out[:5].any()
    given = double(
        ("mask = offsets < n\n", "mask = offsets != 5\n"),
        ("offsets, mask=mask)\n    tl", "offsets, mask=mask, other=0)\n    tl"),
        ("2 * x, mask=mask", "x"),
    )
    assert run(given, x)[5].item() == 0


def test_a_strided_output_is_guarded_between_its_elements():
    def overwrite(x):
        with guarded() as memory:
            out = memory.poisoned(x)
            out.as_strided((300,), (1,)).zero_()

    with pytest.raises(pytest.fail.Exception, match="198 between its elements, 2 past its end"):
        overwrite(torch.zeros(100, 3, device=DEVICE)[:, 1])


def test_expanded_and_empty_tensors_are_placed():
    with guarded() as memory:
        rows = memory.place(torch.arange(3.0).expand(4, 3))
        assert rows.stride() == (0, 1)
        assert rows.tolist() == [[0, 1, 2]] * 4
        assert memory.place(torch.empty(0, 5)).shape == (0, 5)


@pytest.mark.own_process
def test_without_triton_a_kernel_kata_is_skipped_with_one_line(project, kata, runner, run_pytest):
    (project.root / "scripts" / "triton.py").write_text(
        "raise ModuleNotFoundError('no triton here', name='triton')"
    )
    tests = "from dojo.kernels import run\n\n\ndef test_scale(impl):\n    run(impl.scale, 1, 2)\n"
    kata.tests.write_text(tests)
    said = run_pytest("katas/01_scale", "-rs").stdout
    assert "1 skipped" in said
    reason = "kernel katas need triton, which is not installed here"
    assert reason in said
    result = runner.run(kata)
    assert (result.verdict, result.detail) == (Verdict.BROKEN, reason)


def test_a_gpu_test_is_listed_as_skipped_with_the_reason(kata, run_pytest):
    tests = "import pytest\n\n\n@pytest.mark.gpu\ndef test_scale(impl):\n    assert impl\n"
    kata.tests.write_text(tests)
    reason = "needs a CUDA device, and none is here"
    said = run_pytest("katas/01_scale", "-rs").stdout
    assert (reason in said) == (DEVICE == "cpu")
