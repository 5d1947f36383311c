"""What the katas' tests share: comparisons that explain themselves, properties, bans.

The properties are promises that hold for almost every function of tensors, whatever it computes,
and that solutions break in ways which no test of one call shows. A kata applies each to each of
its functions in a line or two: `assert_repeatable`, `assert_any_layout`, `assert_any_mode`,
`assert_gradients_reach`.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dojo.instruments.evidence import evidence_of_shape, evidence_of_values
from dojo.project import Project
from dojo.testrun.bans import (  # noqa: F401  # part of this face
    ATTENTION,
    CONVOLUTION,
    CROSS_ENTROPY,
    LINEAR,
    NORMALISATION,
    PRODUCTS,
    RELU,
    SILU,
    SOFTMAX,
    forbid,
    forbid_autograd,
)
from dojo.testrun.loading import place_of

# rtol and atol of `torch.testing.assert_close`; every other dtype is compared exactly.
TOLERANCES = {
    torch.float64: (1e-7, 1e-7),
    torch.float32: (1.3e-6, 1e-5),
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
}


def assert_matches(
    actual: Any,
    expected: Tensor,
    behaviour: str,
    *,
    rtol: float | None = None,
    atol: float | None = None,
) -> None:
    """Compare type, shape, dtype and values; a failure opens with the behaviour that is wrong.

    A value matches if it differs by no more than `atol + rtol * |expected|`; the defaults go by
    dtype. NaN matches only NaN, and an infinity only itself. Below the first line stand sentences
    on where and how the values are wrong, if that is a known pattern, and a map of the errors.

    This is `torch.testing.assert_close` with its evidence in sight and without its first call's
    import of sympy, half a second that every run would pay.
    """
    if not isinstance(actual, Tensor):
        pytest.fail(f"{behaviour}: got {type(actual).__name__}, not a tensor", pytrace=False)
    got, wanted = tuple(actual.shape), tuple(expected.shape)
    if got != wanted:
        said = f"{behaviour}: the shape is {got}, not {wanted}"
        rtol, atol = _tolerance(expected, rtol, atol)
        pytest.fail(said + evidence_of_shape(actual, expected, rtol, atol), pytrace=False)
    if actual.dtype != expected.dtype:
        message = f"{behaviour}: the dtype is {actual.dtype}, not {expected.dtype}"
        pytest.fail(message, pytrace=False)
    rtol, atol = _tolerance(expected, rtol, atol)
    actual, expected = actual.detach(), expected.detach().to(actual.device)
    close = torch.isclose(actual, expected, rtol=rtol, atol=atol, equal_nan=True)
    if close.all():
        return
    error = torch.where(close, 0.0, (actual.double() - expected.double()).abs())
    # A NaN or infinite difference is the worst there is.
    worst = int(error.nan_to_num(nan=torch.inf).argmax())
    index = tuple(int(i) for i in np.unravel_index(worst, expected.shape))
    one, other = told_apart(actual[index].item(), expected[index].item())
    said = (
        f"{behaviour}: {int((~close).sum())} of {close.numel()} values are wrong; "
        f"at {index} it is {one}, not {other} (rtol {rtol:g}, atol {atol:g})"
    )
    evidence = evidence_of_values(said, actual, expected, close, rtol, atol)
    pytest.fail(said + evidence, pytrace=False)


def _tolerance(expected: Tensor, rtol: float | None, atol: float | None) -> tuple[float, float]:
    """Return the tolerances that are given, and for the others the dtype's."""
    default_rtol, default_atol = TOLERANCES.get(expected.dtype, (0.0, 0.0))
    return default_rtol if rtol is None else rtol, default_atol if atol is None else atol


def told_apart(one: float, other: float) -> tuple[str, str]:
    """Return two numbers as texts of six digits, or of as many as it takes to tell them apart."""
    if not isinstance(one, float):
        return str(one), str(other)
    for digits in range(6, 18):
        texts = f"{one:.{digits}g}", f"{other:.{digits}g}"
        if texts[0] != texts[1]:
            break
    return texts


def first_difference(actual: Sequence[Any], expected: Sequence[Any]) -> int:
    """Return the first place at which two sequences differ, the shorter's end if none before."""
    pairs = zip(actual, expected, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(actual), len(expected)))


def assert_text(actual: Any, expected: str, behaviour: str) -> None:
    """Compare texts; a failure shows both from a little before the first difference on."""
    if not isinstance(actual, str):
        pytest.fail(f"{behaviour}: got {type(actual).__name__}, not a string", pytrace=False)
    if actual == expected:
        return
    start = first_difference(actual, expected)
    around = slice(max(0, start - 10), start + 20)
    pytest.fail(
        f"{behaviour}: at character {start} the text is {actual[around]!a}; "
        f"expected {expected[around]!a}",
        pytrace=False,
    )


def assert_all_match(actual: Any, expected: Any, behaviour: str, **tolerance: float) -> None:
    """Compare a tensor, or a tuple of tensors of which some may be None, by `assert_matches`."""
    if isinstance(expected, Tensor):
        assert_matches(actual, expected, behaviour, **tolerance)
        return
    if not isinstance(actual, tuple) or len(actual) != len(expected):
        got = f"{len(actual)} of them" if isinstance(actual, tuple) else type(actual).__name__
        wanted = f"a tuple of {len(expected)}"
        pytest.fail(f"{behaviour}: got {got}, not {wanted}", pytrace=False)
    for number, (one, wanted) in enumerate(zip(actual, expected, strict=True), 1):
        which = f"{behaviour} (part {number} of {len(expected)})"
        if wanted is None:
            assert one is None, f"{which}: got {type(one).__name__}, not None"
        else:
            assert_matches(one, wanted, which, **tolerance)


def assert_repeatable(
    call: Callable[..., Any],
    inputs: Callable[[], Sequence[Any]],
    expected: Callable[..., Any],
    behaviour: str,
    **tolerance: float,
) -> None:
    """Call a function again and again: nothing may stay from an earlier call, or change later.

    `inputs` makes positional arguments, of the same shapes each time and of other values;
    `expected` is the oracle of the same arguments. A result is a tensor or a tuple of these. It
    must not share memory with an argument or with another result, so this is not for functions
    that return views.
    """
    one, other = list(inputs()), list(inputs())
    first = call(*one)
    kept = _copied(first)
    _assert_own_memory(first, {"an argument": one}, behaviour)
    second = call(*other)
    assert_all_match(
        second, expected(*other), f"{behaviour}, called again with other values", **tolerance
    )
    # Compared with itself, so that a wrong value is not blamed on the second call.
    assert_all_match(first, kept, f"{behaviour}, once it has been called again", rtol=0, atol=0)
    _assert_own_memory(second, {"an earlier result": _tensors(first)}, behaviour)
    # Twice, for a function may remember its last arguments alone.
    for values in (other, list(inputs())):
        for mine, new in zip(one, values, strict=True):
            if isinstance(mine, Tensor):
                mine.detach().copy_(new)
            elif mine != new:
                return  # not every argument can be changed in place
        assert_all_match(
            call(*one),
            expected(*one),
            f"{behaviour}, called again with the same tensors, changed in place",
            **tolerance,
        )


def assert_any_layout(
    call: Callable[..., Any],
    inputs: Sequence[Any],
    expected: Any,
    behaviour: str,
    **tolerance: float,
) -> None:
    """Call a function with each tensor argument in turn in each of the `layouts`."""
    for place, argument in enumerate(inputs):
        if not isinstance(argument, Tensor):
            continue
        for layout, tensor in layouts(argument.detach()):
            arguments = [*inputs[:place], tensor, *inputs[place + 1 :]]
            what = f"{behaviour} with argument {place + 1} {layout}"
            with unchanged(**{f"number {place + 1}, {layout}": tensor}):
                actual = call(*arguments)
            assert_all_match(actual, expected, what, **tolerance)


def assert_any_mode(
    call: Callable[..., Any],
    inputs: Sequence[Any],
    expected: Any,
    behaviour: str,
    **tolerance: float,
) -> None:
    """Call a function under `torch.no_grad`, `torch.inference_mode` and another default dtype."""
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            actual = call(*inputs)
        assert_all_match(actual, expected, f"{behaviour} under {mode.__name__}", **tolerance)
    default = torch.get_default_dtype()
    for dtype in (torch.float64, torch.float16):
        try:
            torch.set_default_dtype(dtype)
            actual = call(*inputs)
        finally:
            torch.set_default_dtype(default)
        what = f"{behaviour} where {dtype} is the default dtype"
        assert_all_match(actual, expected, what, **tolerance)


def assert_gradients_reach(
    call: Callable[..., Tensor],
    expected: Callable[..., Tensor],
    inputs: dict[str, Tensor],
    asking: Sequence[str],
    behaviour: str,
) -> None:
    """Go back through a function where only the inputs of these names ask for a gradient.

    The upstream gradient comes in each of the `layouts`, and no other input is made to ask.
    `expected` is the oracle of the same inputs, through which autograd goes back too.
    """
    for name in asking:
        inputs[name].requires_grad_()
    leaves = [inputs[name] for name in asking]
    theirs, ours = expected(*inputs.values()), call(*inputs.values())
    flags = [name for name in inputs if inputs[name].requires_grad]
    assert flags == list(asking), f"{behaviour} has made another input require a gradient"
    who = " and ".join(asking)
    for layout, grad_out in layouts(torch.randn_like(theirs)):
        assert_all_match(
            _gradients(ours, dict(zip(asking, leaves, strict=True)), grad_out, behaviour),
            gradients(theirs, leaves, grad_out),
            f"{behaviour}: gradients for {who} alone, upstream gradient {layout}",
        )


def _tensors(result: Any) -> list[Tensor]:
    parts = result if isinstance(result, tuple) else (result,)
    return [part for part in parts if isinstance(part, Tensor)]


def _copied(result: Any) -> Any:
    if isinstance(result, tuple):
        return tuple(map(_copied, result))
    return result.detach().clone() if isinstance(result, Tensor) else result


def _assert_own_memory(result: Any, others: dict[str, Sequence[Any]], behaviour: str) -> None:
    """Fail if a part of the result lies in the memory of one of the others, or of another part."""
    owned = [
        (_memory(tensor), name)
        for name, tensors in others.items()
        for tensor in tensors
        if isinstance(tensor, Tensor)
    ]
    for part in _tensors(result):
        mine = _memory(part)
        for theirs, owner in owned:
            if mine and theirs and mine[0] <= theirs[-1] and theirs[0] <= mine[-1]:
                message = f"{behaviour}: the result lies in the memory of {owner}"
                pytest.fail(message, pytrace=False)
        owned.append((mine, "another part of the result"))


def _memory(x: Tensor) -> range:
    """Return the addresses of a tensor's bytes, from the first to the last."""
    if not x.numel():
        return range(0)
    elements = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
    return range(x.data_ptr(), x.data_ptr() + elements * x.element_size())


def layouts(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the same values in memory layouts that break code which assumes a contiguous one."""
    yield "contiguous", x.clone(memory_format=torch.contiguous_format)
    if x.ndim == 0:
        return
    if x.ndim >= 2:
        yield "transposed", x.transpose(0, -1).contiguous().transpose(0, -1)
    wide = (*x.shape[:-1], 2 * x.shape[-1] + 1)
    between = float("nan") if x.is_floating_point() else 77
    padded = torch.full(wide, between, dtype=x.dtype, device=x.device)
    sliced = padded[..., 1::2]
    sliced.copy_(x)
    yield "every other element of a wider tensor", sliced


def gradients(out: Tensor, inputs: Sequence[Tensor], grad_out: Tensor) -> tuple[Tensor, ...]:
    """Return autograd's gradients for the inputs, given the gradient for `out`.

    The product with `grad_out` stands here because `torch.autograd.grad(..., grad_outputs)`
    imports sympy at its first call, half a second that every run would pay.
    """
    count = len(inputs)
    named = {f"input {i} of {count}, {tuple(x.shape)}": x for i, x in enumerate(inputs, 1)}
    return _gradients(out, named, grad_out, "the result")


def _gradients(
    out: Tensor, inputs: dict[str, Tensor], grad_out: Tensor, behaviour: str
) -> tuple[Tensor, ...]:
    """Return autograd's gradients, or fail with the input that gets none."""
    if not isinstance(out, Tensor):
        pytest.fail(f"{behaviour}: got {type(out).__name__}, not a tensor", pytrace=False)
    if not out.requires_grad:
        who = " and ".join(inputs)
        pytest.fail(f"{behaviour}: autograd finds no way back to {who}", pytrace=False)
    total = (out * grad_out).sum()
    found = torch.autograd.grad(total, list(inputs.values()), retain_graph=True, allow_unused=True)
    for name, grad in zip(inputs, found, strict=True):
        if grad is None:
            pytest.fail(f"{behaviour}: autograd finds no way back to {name}", pytrace=False)
    return found


class HandDown(torch.autograd.Function):
    """A step of a net that hands down the very tensor `grad_out`, as a longer one may do.

    HandDown.apply(out, grad_out).backward()
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, grad_out: Tensor) -> Tensor:
        """Return any number: `backward` alone matters."""
        ctx.grad_out = grad_out
        return out.sum()

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        """Return the gradient for `out`."""
        return ctx.grad_out, None


def read_with_draws(run: Callable[[int, int], Iterable[Any]], seed: int, steps: int) -> list[Any]:
    """Return the log of `run(seed, steps)`, read by one who draws random numbers between its lines.

    Fails if that reader does not get the global generator's own numbers.
    """
    torch.default_generator.manual_seed(6)
    wanted = [torch.rand(()).item() for _ in range(steps)]
    torch.default_generator.manual_seed(6)
    log, drawn = [], []
    for line in run(seed, steps):
        log.append(line)
        drawn.append(torch.rand(()).item())
    assert drawn == wanted, "a run changes the global generator between two lines"
    return log


@contextlib.contextmanager
def unchanged(**tensors: Tensor) -> Iterator[None]:
    """Fail if the block changes one of the tensors, and name it."""
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    yield
    for name, tensor in tensors.items():
        assert_matches(tensor, before[name], f"the input {name} is changed", rtol=0, atol=0)


def golden(name: str) -> Any:
    """Return the content of `fixtures/NAME`, JSON that holds a published library's output."""
    return json.loads((Project.here().fixtures / name).read_text(encoding="utf-8"))


@contextlib.contextmanager
def refuses(what: str, *patterns: str) -> Iterator[None]:
    """Fail unless the block raises a `ValueError` for `what`, such as "an odd dim".

    Its message has to match each of the regular expressions: the values that it should name.
    """
    try:
        yield
    except ValueError as error:
        message = str(error)
    except Exception as error:
        said = f"{type(error).__name__}{place_of(error)}: {error}"
        pytest.fail(f"expected ValueError for {what}, got {said}", pytrace=False)
    else:
        pytest.fail(f"expected ValueError for {what}, and nothing was raised", pytrace=False)
    if not all(re.search(pattern, message) for pattern in patterns):
        pytest.fail(f"the ValueError for {what} does not name it: {message!r}", pytrace=False)
