"""What a brief may ban: families of torch's operators, and autograd; and how their use is seen."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch._C._dynamo import eval_frame
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dojo.testrun.banned import Banned
from dojo.testrun.loading import place_of_call

# A family has the names of functions that lead to the same computation; `forbid(*SOFTMAX)`. Each
# name stands for its variants, too.
SOFTMAX = ("softmax", "log_softmax", "scaled_dot_product_attention")
NORMALISATION = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")
CONVOLUTION = ("conv", "convolution", "conv1d", "conv2d", "conv3d")
ATTENTION = ("scaled_dot_product_attention", "multi_head_attention", "transformer_encoder_layer")
CROSS_ENTROPY = ("cross_entropy", "nll_loss")
LINEAR = ("linear", "bilinear", "addmm", "addmv", "baddbmm", "addbmm")
PRODUCTS = (
    *LINEAR,
    *("matmul", "rmatmul", "mm", "bmm", "mv", "dot", "vdot", "inner"),
    *("einsum", "tensordot", "multi_dot"),
)
RELU = ("relu", "relu6", "prelu", "rrelu", "threshold", "hardtanh", "hardsigmoid", "hardswish")
SILU = ("silu",)


@contextlib.contextmanager
def forbid(*names: str) -> Iterator[None]:
    """Fail if the block computes by a torch operator of one of these names, and say which.

    The names are those of public functions. `forbid("softmax")` refuses `F.softmax`,
    `x.softmax()`, `nn.Softmax()(x)` and `torch.special.softmax`, but also what PyTorch computes
    by a softmax, such as `F.softmin`, its overloads in `torch.ops.aten`, what is compiled or
    scripted, and calls from other threads. So it goes by what is called and by what is computed.
    """
    seen: list[str] = []

    def modes() -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        stack.enter_context(_Called(names, seen))
        stack.enter_context(_Computed(names, seen))
        return stack

    with _in_threads_too(modes), _functions_always_seen(), modes():
        yield
    if seen:
        raise Banned(f"the brief bans this call: {seen[0]}", pytrace=False)


class _Called(TorchFunctionMode):
    """Notes functions by the names that they are called by."""

    def __init__(self, names: tuple[str, ...], seen: list[str]) -> None:
        super().__init__()
        self._names = names
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if _is_any_of(name, self._names):
            module = getattr(func, "__module__", None) or getattr(func, "__objclass__", "torch")
            called = f"{getattr(module, '__name__', module)}.{name}"
            self._seen.append(called + place_of_call())
        return func(*args, **(kwargs or {}))


class _Computed(TorchDispatchMode):
    """Notes the operators of ATen that are computed, whatever they were called by."""

    def __init__(self, names: tuple[str, ...], seen: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = names
        self._seen = seen

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # it is skipped below: PyTorch's own way imports dynamo, more than a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operator = func.name()  # "aten::_softmax", say, or "aten::sum.dim_IntList"
        if _is_any_of(operator.partition("::")[2].partition(".")[0], self._names):
            self._seen.append(operator + place_of_call())
        return func(*args, **(kwargs or {}))


# Not to be compiled with the code under test, anew for each operator.
_SKIPPED = eval_frame._FrameExecStrategy(
    eval_frame._FrameAction.SKIP, eval_frame._FrameAction.DEFAULT
)
eval_frame.set_code_exec_strategy(_Computed.__torch_dispatch__.__code__, _SKIPPED)


# Operators of other names that compute what a function of these names does.
_COMPUTED_BY = {
    "conv1d": ("convolution", "conv"),
    "conv2d": ("convolution", "conv"),
    "conv3d": ("convolution", "conv"),
    "scaled_dot_product_attention": ("scaled_dot_product", "flash_attention"),
    "cross_entropy": ("nll_loss",),
}


@functools.cache  # asked at each call that a test makes, of the same few
def _is_any_of(operator: str, names: tuple[str, ...]) -> bool:
    """Say whether an operator is a function of one of these names, or a variant of one.

    `_log_softmax` and `native_layer_norm` are variants of `log_softmax` and `layer_norm`: whole
    words decide, and `expand` is no `exp`.
    """
    stems = {stem for name in names for stem in (name.strip("_"), *_COMPUTED_BY.get(name, ()))}
    return any(f"_{stem}_" in f"_{operator}_" for stem in stems)


@contextlib.contextmanager
def _in_threads_too(
    modes: Callable[[], contextlib.AbstractContextManager[Any]],
) -> Iterator[None]:
    """Have other threads run under the modes as well, which belong to the thread that enters them.

    These are threads that the block starts, and those of a pool that it hands work to.
    """
    run, submit = threading.Thread.run, ThreadPoolExecutor.submit

    def run_under(self: threading.Thread) -> None:
        with modes():
            run(self)

    def submit_under(
        self: ThreadPoolExecutor, call: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        def call_under() -> Any:
            with modes():
                return call(*args, **kwargs)

        return submit(self, call_under)

    threading.Thread.run = run_under  # type: ignore[method-assign]
    ThreadPoolExecutor.submit = submit_under  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        threading.Thread.run = run  # type: ignore[method-assign]
        ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]


@contextlib.contextmanager
def _functions_always_seen() -> Iterator[None]:
    """Have the block switch off the overrides of tensor classes at most, and no mode."""
    disable = torch._C.DisableTorchFunction
    torch._C.DisableTorchFunction = torch._C.DisableTorchFunctionSubclass
    try:
        yield
    finally:
        torch._C.DisableTorchFunction = disable


@contextlib.contextmanager
def forbid_autograd() -> Iterator[None]:
    """Fail if the block asks autograd for a gradient: `backward`, `grad`, `torch.func`, `jvp`."""
    seen: list[str] = []
    engine = torch.autograd.Variable._execution_engine

    class Engine:
        """PyTorch's engine, through which every backward pass goes, with a note of its use."""

        def run_backward(self, *args: Any, **kwargs: Any) -> Any:
            seen.append("autograd's backward pass" + place_of_call())
            return engine.run_backward(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            return getattr(engine, name)

    make_dual = forward_ad.make_dual

    def noted(*args: Any, **kwargs: Any) -> Any:
        seen.append("autograd's forward mode" + place_of_call())
        return make_dual(*args, **kwargs)  # type: ignore[no-untyped-call]

    torch.autograd.Variable._execution_engine = Engine()  # type: ignore[assignment]
    forward_ad.make_dual = noted
    try:
        yield
    finally:
        torch.autograd.Variable._execution_engine = engine
        forward_ad.make_dual = make_dual
    if seen:
        raise Banned(f"the brief bans this: {seen[0]}", pytrace=False)
