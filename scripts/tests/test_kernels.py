"""Kernel katas: guarded memory shows what a GPU would hide; without triton there is one line."""

import pytest
import torch

from dojo.kernels import (
    DEVICE,
    Traffic,
    guarded,
    interpreted,
    memory_traffic,
    need_gpu_memory,
    run,
)
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
        (("tl.store(out_ptr", "tl.store(x_ptr"), "argument 1 is changed"),
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


def test_a_test_that_needs_more_gpu_memory_than_there_is_is_skipped(monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 * 2**30, 8 * 2**30))
    need_gpu_memory(2)
    with pytest.raises(pytest.skip.Exception, match="needs 10 GiB of GPU memory, and 3 are free"):
        need_gpu_memory(10)


COPY = '''
import torch
import triton
import triton.language as tl


@triton.jit
def _kernel(x_ptr, out_ptr, n, step, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets * step, mask=offsets < n)
    tl.store(out_ptr + offsets, x, mask=offsets < n)


def copy(x):
    """Return a copy of `x`, which has one axis, in memory of its own."""
    out = torch.empty(len(x), dtype=x.dtype, device=x.device)
    _kernel[(triton.cdiv(len(x), 64),)](x, out, len(x), x.stride(0), BLOCK=64)
    return out


@triton.jit
def _one(x_ptr, ATOMIC: tl.constexpr, DOT: tl.constexpr, DTYPE: tl.constexpr):
    cells = tl.arange(0, 16)
    place = x_ptr + cells[:, None] * 16 + cells[None, :]
    x = tl.load(place)
    if ATOMIC == "add":
        tl.atomic_add(x_ptr + cells, 1.0, mask=cells < 3)
    if ATOMIC == "cas":
        tl.atomic_cas(x_ptr, 0.0, 1.0)
    if DOT:
        x = tl.dot(x, x, input_precision=DOT)
    tl.store(place, x.to(DTYPE).to(tl.float32))


def one(x, atomic="", dot="", dtype=tl.float32):
    """Read the square `x` of 16 and write it, doing this and that in between."""
    _one[(1,)](x, atomic, dot, dtype)
'''


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "counted.py"
    path.write_text(COPY)
    return load_module(path, "counted", COPY.encode())


interpreter = pytest.mark.skipif(DEVICE == "cuda", reason="only interpreted kernels are counted")


@interpreter
def test_traffic_of_contiguous_and_of_strided_memory(counted):
    x = torch.zeros(300)[:100]
    with memory_traffic() as traffic:
        counted.copy(x)
    # Torch's memory begins at a multiple of 64, so that 36 floats at the end lie in 5 sectors.
    assert traffic == Traffic(
        programs=2,
        loaded=100,
        stored=100,
        asked=800,
        touched=2 * (8 + 5) * 32,
        lanes=4 * 64,
        widest=64,
        allocated=100,
    )
    with memory_traffic() as strided:
        counted.copy(torch.zeros(100, 8)[:, 3])
    assert strided.loaded == 100
    assert strided.touched == 100 * 32 + (8 + 5) * 32


@interpreter
def test_traffic_counts_half_precision_by_its_bytes(counted):
    with memory_traffic() as traffic:
        counted.copy(torch.zeros(64, dtype=torch.float16))
    assert (traffic.loaded, traffic.asked, traffic.touched) == (64, 256, 256)


@interpreter
@pytest.mark.parametrize(("atomic", "more"), [("", 0), ("add", 3), ("cas", 1)])
def test_traffic_of_an_atomic_is_a_load_and_a_store(counted, atomic, more):
    with memory_traffic() as traffic:
        counted.one(torch.zeros(16, 16), atomic)
    assert (traffic.loaded, traffic.stored) == (256 + more, 256 + more)


@interpreter
def test_traffic_tells_of_dtypes(counted):
    language = counted.tl
    for dot, dtype, expected in [
        ("", language.float32, (False, False)),
        ("", language.float64, (True, False)),
        ("ieee", language.float16, (False, False)),
        ("tf32", language.float32, (False, True)),
        ("tf32x3", language.float32, (False, True)),
    ]:
        with memory_traffic() as traffic:
            counted.one(torch.zeros(16, 16), dot=dot, dtype=dtype)
        assert (traffic.float64, traffic.tf32) == expected, (dot, dtype)


@interpreter
@pytest.mark.parametrize(
    ("make", "elements"),
    [
        (lambda x: x.reshape(5, 2, 2)[1:].expand(3, 4, 2, 2), 0),
        (lambda x: x.contiguous(), 0),
        (lambda x: torch.empty(3, 7), 21),
        (lambda x: x.new_empty(30)[:2], 30),
        (lambda x: torch.cat([x, x]), 40),
        (lambda x: torch.broadcast_tensors(x, x[:1]), 0),
        (lambda x: x[:1].expand(50, 4).contiguous(), 200),
        (lambda x: torch.max(x.expand(6, 5, 4), 0), 20),
    ],
)
def test_traffic_tells_of_the_largest_tensor_that_is_made(make, elements):
    x = torch.zeros(5, 4)
    with memory_traffic() as traffic:
        make(x)
    assert traffic.allocated == elements


@interpreter
def test_nothing_is_counted_after_the_block(counted):
    with memory_traffic() as outer:
        counted.copy(torch.zeros(10))
        with memory_traffic() as inner:
            counted.copy(torch.zeros(20))
    counted.copy(torch.zeros(40))
    assert (outer.loaded, inner.loaded) == (30, 20)


def programs_of(impl):
    with memory_traffic() as traffic:
        impl.copy(torch.zeros(100))
    return [traffic.programs, DEVICE]


@pytest.mark.own_process
def test_what_a_gpu_cannot_count_is_counted_by_another_process(counted, monkeypatch):
    assert interpreted(programs_of, counted) == [2, "cpu"]
    monkeypatch.setattr("dojo.kernels.DEVICE", "cuda")
    with pytest.raises(RuntimeError, match="only interpreted ones can be counted"):
        programs_of(counted)
    assert interpreted(programs_of, counted) == [2, "cpu"]


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
