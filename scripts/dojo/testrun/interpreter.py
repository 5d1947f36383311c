"""Lets Triton's interpreter take the kernels that a GPU takes, and give what a GPU gives."""

import ast
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

# What libdevice's functions are in NumPy; a name that is here without its last letter, which says
# the type, will do. https://docs.nvidia.com/cuda/libdevice-users-guide/function-desc.html
_LIBDEVICE: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(np, name)
        for name in (
            *("cbrt", "ceil", "copysign", "cos", "cosh", "exp", "exp2", "expm1", "fabs", "floor"),
            *("fmod", "hypot", "isfinite", "isinf", "isnan", "log", "log10", "log1p", "log2"),
            *("nextafter", "rint", "signbit", "sin", "sinh", "sqrt", "tan", "tanh", "trunc"),
        )
    },
    "acos": np.arccos,
    "asin": np.arcsin,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "fdiv_rn": np.divide,
    "fdivide": np.divide,
    "float2int_rd": np.floor,
    "float2int_rn": np.rint,
    "float2int_ru": np.ceil,
    "float2int_rz": np.trunc,
    "llrint": np.rint,
    "nearbyint": np.rint,
    "pow": np.power,
    "round": lambda x: np.copysign(np.floor(np.abs(x) + x.dtype.type(0.5)), x),
    "rsqrt": lambda x: 1 / np.sqrt(x),
}


def prepare_interpreter() -> None:
    """Change Triton's interpreter, which `TRITON_INTERPRET` has chosen, for good."""
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7):
        _let_tensors_be_bounds()
    _patch_the_language_once()
    _take_numbers_for_tensors()
    _let_numbers_be_cast()
    _launch_as_compiled()
    _run_the_first_configuration()
    _offer_libdevice()
    _look_up_dtypes_once()
    _leave_masked_lanes_undefined()


def _poison_of(dtype: "np.dtype[Any] | type[np.generic]") -> float:
    """Return what stands where nothing was written: NaN, or 77 in integers."""
    return float("nan") if np.issubdtype(dtype, np.floating) else 77


def _let_tensors_be_bounds() -> None:
    """Let a loop end at a tensor, for which triton before 3.7 relies on numpy before 1.25.

    Newer ones warn where an array of one element is taken for a number, or refuse it.
    """
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched


def _patch_the_language_once() -> None:
    """Put the interpreter's functions into `triton.language` now, and for good.

    The interpreter does so at each launch, half of a kernel's time, and undoes it at the end. A
    name that a file has bound on import, as `from triton.language import exp` does, it misses.
    """
    from triton.runtime import interpreter

    tl = interpreter.tl
    kernel = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})  # all that is asked of one
    scope = interpreter._patch_lang(kernel)
    scope._changes.clear()  # so that it has nothing to undo
    interpreter._patch_lang = lambda fn: scope
    for name, function in inspect.getmembers(tl.math, inspect.isfunction):
        if hasattr(tl.tensor, name):  # x.exp(), which the interpreter misses
            setattr(tl.tensor, name, function)


def _take_numbers_for_tensors() -> None:
    """Let each number that a kernel is given be a tensor, of the dtype that it has on a GPU.

    The interpreter does so for integers alone, refuses True, and passes over annotations.
    """
    from triton.runtime import interpreter, jit
    from triton.runtime.interpreter import GridExecutor

    prepare, tl = GridExecutor._init_args_hst, interpreter.tl
    annotated = set(jit.type_canonicalisation_dict.values())

    def tensors(self: Any, args: Any, kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
        args, kwargs = prepare(self, args, kwargs)
        given = inspect.getcallargs(self.fn, *args, **kwargs)
        values = []
        for name in self.arg_names:
            value = given[name]
            if type(value) in (bool, int, float) and name not in self.constexprs:
                kind = jit._normalize_ty(self.fn.__annotations__.get(name, ""))
                dtype = tl.str_to_ty(kind if kind in annotated else jit.mangle_type(value), None)
                data = np.array([value], dtype=interpreter._get_np_dtype(dtype))
                value = tl.tensor(interpreter.TensorHandle(data, dtype), dtype)
            values.append(value)
        named = zip(self.arg_names[len(args) :], values[len(args) :], strict=True)
        return values[: len(args)], dict(named)

    GridExecutor._init_args_hst = tensors


def _let_numbers_be_cast() -> None:
    """Let `to` be called on any number: the interpreter counts loops in plain integers."""
    from triton.runtime import interpreter

    class Transformer(interpreter.ASTTransformer):  # type: ignore[misc]
        def visit_Assign(self, node: ast.Assign) -> ast.AST:
            self.generic_visit(node)
            return super().visit_Assign(node)  # type: ignore[no-any-return]

        def visit_Call(self, node: ast.Call) -> ast.AST:
            self.generic_visit(node)
            if isinstance(node.func, ast.Attribute) and node.func.attr == "to":
                to_tensor = ast.parse("interpreter_semantic.to_tensor", mode="eval").body
                node.func.value = ast.Call(to_tensor, [node.func.value, ast.Constant(False)], [])
            return node

    interpreter.FunctionRewriter.ast_transformer = Transformer()


def _launch_as_compiled() -> None:
    """Let a grid be a list, and `constexpr` be written in any way, as where kernels are compiled.

    The interpreter knows `constexpr` and `tl.constexpr`, by the letter.
    """
    from triton.runtime.interpreter import GridExecutor

    begin = GridExecutor.__init__

    def begun(self: Any, fn: Any, names: list[str], grid: Any, *rest: Any) -> None:
        begin(self, fn, names, grid, *rest)
        self.grid = (lambda given: tuple(grid(given))) if callable(grid) else tuple(grid)
        self.constexprs = [
            name for name, kind in fn.__annotations__.items() if "constexpr" in str(kind)
        ]

    GridExecutor.__init__ = begun


def _run_the_first_configuration() -> None:
    """Let `triton.autotune` choose the first configuration that is left: none is timed."""
    from triton.runtime.autotuner import Autotuner

    Autotuner._bench = lambda self, *args, config, **meta: [0.0]


def _offer_libdevice() -> None:
    """Let `libdevice` do in NumPy what it does on an NVIDIA GPU, as far as `_LIBDEVICE` goes.

    What needs a GPU, inline assembly too, says so."""
    from triton.language.extra import libdevice
    from triton.language.extra.cuda import libdevice as functions
    from triton.runtime import interpreter

    scope = interpreter._LangPatchScope()
    interpreter._patch_builtin(functions, interpreter.interpreter_builder, scope)
    for name, function in inspect.getmembers(functions, inspect.isfunction):
        setattr(libdevice, name, function)

    def computed(
        self: Any, library: str, path: str, symbol: str, given: list[Any], dtype: Any, pure: bool
    ) -> Any:
        name = symbol.removeprefix("__nv_").removeprefix("fast_")
        function = _LIBDEVICE.get(name) or _LIBDEVICE.get(name[:-1])
        if function is None:
            raise _needs_a_gpu(f"libdevice's {name}")
        data = function(*(one.data for one in given))
        return interpreter.TensorHandle(
            np.asarray(data).astype(interpreter._get_np_dtype(dtype)), dtype.scalar
        )

    def refused(self: Any, *_: Any) -> Any:
        raise _needs_a_gpu("inline assembly")

    interpreter.InterpreterBuilder.create_extern_elementwise = computed
    interpreter.InterpreterBuilder.create_inline_asm = refused


def _needs_a_gpu(what: str) -> NotImplementedError:
    return NotImplementedError(f"{what} is not in Triton's interpreter: it needs a GPU")


def _look_up_dtypes_once() -> None:
    """Keep NumPy's dtype of each type: the interpreter builds a table of all at every operation."""
    from triton.runtime import interpreter

    look_up = interpreter._get_np_dtype
    known: dict[str, Any] = {}

    def looked_up(dtype: Any) -> Any:
        name = dtype.scalar.name  # of a pointer, what it points to as well
        if name not in known:
            known[name] = look_up(dtype)
        return known[name]

    interpreter._get_np_dtype = looked_up


def _leave_masked_lanes_undefined() -> None:
    """Let a masked load without `other` give NaN, 77 in integers, where its mask is false.

    A GPU gives whatever is there, and the interpreter gave a zero that a kernel could rely on.
    https://triton-lang.org/main/python-api/generated/triton.language.load.html
    """
    from triton.runtime import interpreter

    load = interpreter.InterpreterBuilder.create_masked_load

    def load_undefined(self: Any, ptrs: Any, mask: Any, other: Any, *rest: Any, **more: Any) -> Any:
        # Of a block pointer the mask is an array itself.
        if other is None and not np.all(mask.data):
            element = ptrs.get_element_ty()
            dtype = interpreter._get_np_dtype(element)
            # The interpreter holds bfloat16 in integers of 16 bits.
            value = 0x7FC0 if element.is_bf16() else _poison_of(dtype)
            data = np.full_like(ptrs.data, value, dtype=dtype)
            other = interpreter.TensorHandle(data, element)
        return load(self, ptrs, mask, other, *rest, **more)

    interpreter.InterpreterBuilder.create_masked_load = load_undefined
