"""Triton's interpreter runs the kernels that a GPU runs, and gives what they give there."""

import pytest
import torch

from dojo.kernels import DEVICE, run
from dojo.testrun.loading import load_module

SOURCE = '''
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

{above}


{decorator}
@triton.jit
def _kernel(x_ptr, out_ptr, n, {parameters}):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(x_ptr + offsets, mask=mask)
    {body}
    tl.store(out_ptr + offsets, x, mask=mask)


def apply(x, alpha):
    """Return what the kernel makes of the contiguous tensor `x`."""
    out = torch.empty_like(x)
    _kernel[{grid}](x, out, x.numel(), alpha{options})
    return out
'''

X = torch.arange(1.0, 101.0, device=DEVICE) / 8
interpreted_only = pytest.mark.skipif(DEVICE == "cuda", reason="kernels are compiled here")


@pytest.fixture
def kernel(tmp_path, request):
    def kernel(
        body="x = x * alpha",
        above="",
        decorator="",
        parameters="alpha, BLOCK: tl.constexpr",
        grid="(triton.cdiv(x.numel(), 64),)",
        options=", BLOCK=64",
    ):
        """Return a function of `X` and alpha that launches a kernel of these parts."""
        source = SOURCE.format(**locals())
        path = tmp_path / "kernel.py"
        path.write_text(source)
        impl = load_module(path, f"kernel_{request.node.name}", source.encode())
        return lambda alpha=0.5: run(impl.apply, X, alpha)

    return kernel


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 3, True, False])
@pytest.mark.parametrize("cast", ["alpha.to(tl.float32)", "tl.cast(alpha, tl.float32)"])
def test_a_number_that_a_kernel_is_given_can_be_cast(kernel, alpha, cast):
    same(kernel(f"x = x * {cast}")(alpha), X * alpha)


def test_a_float_that_a_kernel_is_given_is_of_float32(kernel):
    # Beside 1, 2**-30 is lost in float32, and is not in a Python float.
    same(kernel("x = x + ((1.0 + alpha) - 1.0) * 2e9")(2.0**-30), X)
    same(kernel("x = x + tl.zeros((BLOCK,), alpha.dtype)")(), X)


def test_a_float_is_of_the_dtype_that_its_annotation_names(kernel):
    parameters = "alpha: tl.float64, BLOCK: tl.constexpr"
    wide = kernel("x = (x * alpha * 1e-60).to(tl.float32)", parameters=parameters)
    same(wide(1e60), X)


def test_a_truth_value_is_one(kernel):
    negate = kernel("if alpha and n > 3:\n        x = tl.where(mask & alpha, -x, x)")
    same(negate(True), -X)
    same(negate(False), X)


@pytest.mark.parametrize("loop", ["range(0, n, BLOCK)", "tl.range(0, n, BLOCK)"])
def test_what_a_loop_counts_can_be_cast(kernel, loop):
    add = "x += start.to(tl.float32) + (start * 2).to(tl.float32)"
    same(kernel(f"for start in {loop}:\n        {add}")(), X + 3 * 64)


@pytest.mark.parametrize(
    ("above", "value", "expected"),
    [
        ("cast = tl.cast", "cast(cast(x, tl.float16), tl.float32)", lambda x: x),
        ("exp = tl.exp", "exp(-x)", lambda x: (-x).exp()),
        ("from triton.language import exp2", "exp2(-x)", lambda x: (-x).exp2()),
        ("from triton.language.math import rsqrt", "rsqrt(x)", torch.rsqrt),
        ("from triton.language import math", "math.sqrt(x)", torch.sqrt),
        ("load = tl.load", "load(x_ptr + offsets, mask=mask, other=0)", lambda x: x),
        ("total = tl.sum", "x + total(mask.to(tl.int32) * 0, 0)", lambda x: x),
        (
            "exp = tl.exp\n\n\n@triton.jit\ndef half(x):\n    return exp(-x) / 2",
            "half(x)",
            lambda x: (-x).exp() / 2,
        ),
        ("", "(-x).exp()", lambda x: (-x).exp()),
    ],
)
def test_a_function_of_the_language_may_go_by_another_name(kernel, above, value, expected):
    same(kernel(f"x = {value}", above)(), expected(X))


@pytest.mark.parametrize("name", ["range", "static_range"])
def test_a_loop_of_the_language_may_go_by_another_name(kernel, name):
    same(kernel("for i in count(3):\n        x += i", f"count = tl.{name}")(), X + 3)


TWO = 'triton.Config({"BLOCK": 64}), triton.Config({"BLOCK": 128}, num_warps=8)'
TUNED = {"grid": 'lambda meta: (triton.cdiv(x.numel(), meta["BLOCK"]),)', "options": ""}


def test_one_of_several_configurations_is_run(kernel):
    same(kernel(decorator=f'@triton.autotune([{TWO}], key=["n"])', **TUNED)(), X / 2)


@interpreted_only
@pytest.mark.parametrize(
    ("more", "block"),
    [
        ("", 64),
        (', prune_configs_by={"early_config_prune": lambda configs, args, **_: configs[1:]}', 128),
    ],
)
def test_it_is_the_first_that_pruning_leaves(kernel, more, block):
    decorator = f'@triton.autotune([{TWO}], key=["n"]{more})'
    body = "x = tl.full((BLOCK,), BLOCK, tl.float32)"
    same(kernel(body, decorator=decorator, **TUNED)(), torch.full_like(X, block))


@pytest.mark.parametrize("annotation", ['"tl.constexpr"', "triton.language.constexpr"])
def test_an_annotation_may_be_written_in_any_way(kernel, annotation):
    same(kernel(parameters=f"alpha, BLOCK: {annotation}")(), X / 2)


@pytest.mark.parametrize("grid", ["[2]", "lambda meta: [triton.cdiv(100, meta['BLOCK'])]"])
def test_a_grid_may_be_a_list(kernel, grid):
    same(kernel(grid=grid)(), X / 2)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("libdevice.rint(x * 4)", lambda x: (x * 4).round()),
        ("libdevice.nearbyint(x * 4)", lambda x: (x * 4).round()),
        ("libdevice.round(x * -4)", lambda x: (x * -4).sign() * (x * 4 + 0.5).floor()),
        ("libdevice.llrint(x * 4).to(tl.float32)", lambda x: (x * 4).round()),
        ("libdevice.tanh(x)", torch.tanh),
        ("libdevice.pow(x, 2.0)", lambda x: x * x),
        ("libdevice.fast_expf(-x)", lambda x: (-x).exp()),
        ("libdevice.isnan(x / 0 * 0).to(tl.float32)", torch.ones_like),
        ("tl.extra.cuda.libdevice.rsqrt(x)", torch.rsqrt),
    ],
)
def test_functions_of_libdevice(kernel, value, expected):
    same(kernel(f"x = {value}")(), expected(X))


@interpreted_only
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("libdevice.j0(x)", "libdevice's j0f is not in Triton's interpreter: it needs a GPU"),
        (
            'tl.inline_asm_elementwise("neg.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)',
            "inline assembly is not in Triton's interpreter: it needs a GPU",
        ),
    ],
)
def test_what_needs_a_gpu_says_so(kernel, value, message):
    with pytest.raises(Exception, match=message):
        kernel(f"x = {value}")()


@interpreted_only
@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
def test_a_block_pointer_without_padding_leaves_what_is_outside_undefined(kernel):
    place = "tl.make_block_ptr(x_ptr, (n - 1,), (1,), (offset,), (BLOCK,), (0,))"
    body = f"offset = tl.program_id(0) * BLOCK\n    x = tl.load({place}, boundary_check=(0,))"
    actual = kernel(body)()
    same(actual[:-1], X[:-1])
    assert actual[-1].isnan()
