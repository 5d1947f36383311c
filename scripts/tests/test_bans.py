"""A ban holds through every public way to the same computation, and refuses nothing else."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from dojo.testing import (
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
from dojo.testrun.results import Verdict

X = torch.randn(3, 4)
IMAGE, KERNEL = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 2, 2)
QUERY = torch.randn(1, 2, 3, 4)
aten = torch.ops.aten


def in_a_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def without_overrides(call):
    with torch._C.DisableTorchFunction():
        call()


BANNED = {
    "softmax": [
        lambda: F.softmax(X, 1),
        lambda: X.softmax(1),
        lambda: torch.nn.Softmax(1)(X),
        lambda: torch.special.softmax(X, 1),
        lambda: F.softmin(-X, 1),
        lambda: torch._softmax(X, 1, False),
        lambda: aten.softmax.int(X, 1),
        lambda: aten._softmax.default(X, 1, False),
        lambda: in_a_thread(lambda: F.softmax(X, 1)),
        lambda: without_overrides(lambda: F.softmax(X, 1)),
    ],
    "conv2d": [
        lambda: F.conv2d(IMAGE, KERNEL),
        lambda: aten.conv2d.default(IMAGE, KERNEL),
        lambda: torch.convolution(
            IMAGE, KERNEL, None, [1, 1], [0, 0], [1, 1], False, [0, 0], groups=1
        ),
        lambda: torch._C._nn.thnn_conv2d(IMAGE, KERNEL, [2, 2]),
        lambda: without_overrides(lambda: torch.conv2d(IMAGE, KERNEL)),
    ],
    "layer_norm": [
        lambda: F.layer_norm(X, [4]),
        lambda: torch.native_layer_norm(X, [4], None, None, 1e-5),
    ],
    "scaled_dot_product_attention": [
        lambda: F.scaled_dot_product_attention(QUERY, QUERY, QUERY),
        lambda: aten.scaled_dot_product_attention(QUERY, QUERY, QUERY),
        lambda: without_overrides(lambda: F.scaled_dot_product_attention(QUERY, QUERY, QUERY)),
    ],
    "cross_entropy": [
        lambda: F.cross_entropy(X, torch.tensor([0, 1, 2])),
        lambda: without_overrides(lambda: F.cross_entropy(X, torch.tensor([0, 1, 2]))),
    ],
    "div": [lambda: torch.div(X, 2), lambda: without_overrides(lambda: X / 2)],
}
SIGNAL, FILTER = torch.randn(2, 3, 9), torch.randn(5, 3, 3)
VOLUME, CUBE = torch.randn(1, 2, 3, 3, 3), torch.randn(3, 2, 2, 2, 2)
TARGETS = torch.tensor([0, 1, 2])
POOL = ThreadPoolExecutor(1)
POOL.submit(int).result()  # its thread is there before any ban
FAMILIES = [
    (SOFTMAX, lambda: F.scaled_dot_product_attention(QUERY, QUERY, QUERY)),
    (SOFTMAX, lambda: F.cross_entropy(X, TARGETS)),
    (SOFTMAX, lambda: torch.special.log_softmax(X, 1)),
    (SOFTMAX, lambda: torch._softmax_backward_data(X, X, 1, X.dtype)),
    (SOFTMAX, lambda: aten._softmax.out(X, 1, False, out=torch.empty(3, 4))),
    (SOFTMAX, lambda: torch.vmap(lambda row: F.softmin(-row, 0))(X)),
    (SOFTMAX, lambda: POOL.submit(F.softmax, X, 1).result()),
    (NORMALISATION, lambda: F.rms_norm(X, [4])),
    (NORMALISATION, lambda: without_overrides(lambda: F.rms_norm(X, [4]))),
    (NORMALISATION, lambda: aten._fused_rms_norm(X, [4], X[0], 1e-5)),
    (NORMALISATION, lambda: F.group_norm(IMAGE, 1)),
    (NORMALISATION, lambda: F.instance_norm(IMAGE)),
    (NORMALISATION, lambda: torch.native_batch_norm(X, None, None, None, None, True, 0.1, 1e-5)),
    (CONVOLUTION, lambda: F.conv1d(SIGNAL, FILTER)),
    (CONVOLUTION, lambda: torch._convolution_mode(SIGNAL, FILTER, None, [1], "same", [1], 1)),
    (CONVOLUTION, lambda: torch._C._nn.slow_conv3d(VOLUME, CUBE, [2, 2, 2])),
    (
        CONVOLUTION,
        lambda: torch.nn.grad.conv1d_weight(SIGNAL, FILTER.shape, SIGNAL[:, [0] * 5, 2:]),
    ),
    (CONVOLUTION, lambda: F.conv_transpose2d(IMAGE, KERNEL.transpose(0, 1))),
    (ATTENTION, lambda: torch._scaled_dot_product_attention_math(QUERY, QUERY, QUERY)),
    (ATTENTION, lambda: torch.nn.MultiheadAttention(4, 2)(X, X, X)),
    (CROSS_ENTROPY, lambda: torch._C._nn.nll_loss_nd(X, TARGETS)),
    (CROSS_ENTROPY, lambda: torch.nn.NLLLoss()(X, TARGETS)),
    (LINEAR, lambda: torch.nn.Linear(4, 2)(X)),
    (LINEAR, lambda: torch._addmm_activation(X[:, 0], X, X.T)),
    (PRODUCTS, lambda: X @ X.T),
    (PRODUCTS, lambda: X.T.__rmatmul__(X)),
    (PRODUCTS, lambda: torch.linalg.multi_dot([X, X.T, X])),
    (RELU, lambda: F.leaky_relu(X, 0.0)),
    (RELU, lambda: F.hardtanh(X, 0.0, 99.0)),
    (RELU, lambda: torch.threshold_(X.clone(), 0, 0)),
    (SILU, lambda: torch._C._nn.silu_(X.clone())),
]
ALLOWED = {
    "softmax": lambda: (X - X.logsumexp(1, keepdim=True)).exp(),
    "conv2d": lambda: F.unfold(IMAGE, 2).mT @ KERNEL.flatten(1).T,
    "exp": lambda: X.expand(2, 3, 4) + torch.expm1(X),
    "dot": lambda: QUERY @ QUERY.mT,
    "max": lambda: F.softmax(X, 1) + X.cummax(1).values,
    "relu": lambda: X.clamp(min=0) + torch.where(X > 0, X, 0) + X.maximum(torch.zeros(())),
    "linear": lambda: X @ X.T + torch.einsum("ij,kj->ik", X, X),
    "layer_norm": lambda: (X - X.mean(1, keepdim=True)) * X.var(1, keepdim=True).rsqrt(),
}


@pytest.mark.parametrize("name", BANNED)
def test_every_way_to_a_banned_operator_is_seen(name):
    for call in BANNED[name]:
        with pytest.raises(pytest.fail.Exception, match="the brief bans this call"), forbid(name):
            call()


@pytest.mark.parametrize(("family", "call"), FAMILIES)
def test_a_family_has_all_that_leads_to_the_same_computation(family, call):
    call()  # it works where nothing is banned
    with pytest.raises(pytest.fail.Exception, match="the brief bans this call"), forbid(*family):
        call()


@pytest.mark.parametrize("name", ALLOWED)
def test_other_operators_are_allowed(name):
    with forbid(name):
        ALLOWED[name]()


def test_a_ban_ends_with_its_block():
    with forbid("softmax"):
        pass
    in_a_thread(lambda: F.softmax(X, 1))
    with forbid_autograd():
        pass
    x = X.clone().requires_grad_()
    x.sum().backward()


def dual():
    with forward_ad.dual_level():
        forward_ad.make_dual(X, X)


# PyTorch's own forward mode warns of its own script.
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.sum().backward(),
        lambda x: torch.autograd.grad(x.sum(), x),
        lambda x: torch.autograd.backward(x.sum()),
        lambda x: torch.func.grad(torch.sum)(x),
        lambda x: torch.func.vjp(torch.sin, x)[1](x),
        lambda x: torch.func.jvp(torch.sin, (x,), (x,)),
        lambda x: torch.autograd.functional.jacobian(torch.sin, x),
        lambda x: in_a_thread(lambda: x.sum().backward()),
        lambda x: without_overrides(lambda: x.sum().backward()),
        lambda x: dual(),
    ],
)
def test_every_way_to_autograd_is_seen(call):
    x = X.clone().requires_grad_()
    message = "the brief bans this: autograd"
    with pytest.raises(pytest.fail.Exception, match=message), forbid_autograd():
        call(x)


def test_a_graph_may_be_made_where_autograd_is_banned():
    x = X.clone().requires_grad_()
    with forbid_autograd():
        y = (2 * x).sum()
    y.backward()
    assert x.grad is not None


class ByHand(torch.nn.Module):
    def forward(self, x):
        e = (x - x.amax(1, keepdim=True)).exp()
        return e / e.sum(1, keepdim=True)


class ByOperator(torch.nn.Module):
    def forward(self, x):
        return torch.softmax(x, 1)


WAYS = {
    "eager": lambda module: torch.compile(module, backend="eager"),
    "aot_eager": lambda module: torch.compile(module, backend="aot_eager"),
    "script": torch.jit.script,
    "trace": lambda module: torch.jit.trace(module, (X,)),
}


# PyTorch's own, of its script.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_compiled_code_is_judged_as_any_other(way):
    right, banned = WAYS[way](ByHand()), WAYS[way](ByOperator())
    with forbid(*SOFTMAX):
        out = right(X)
    assert torch.allclose(out, torch.softmax(X, 1))
    for _ in range(2):  # compiled under the ban, and before it
        with pytest.raises(pytest.fail.Exception, match="softmax"), forbid(*SOFTMAX):
            banned(X)
    banned(X)
    with pytest.raises(pytest.fail.Exception, match="softmax"), forbid(*SOFTMAX):
        banned(X)


@pytest.mark.slow
def test_a_ban_is_not_compiled_with_the_code():
    call = torch.compile(lambda x: x.exp().sin() + x * x - 1, backend="eager")
    torch._dynamo.utils.counters.clear()
    with forbid(*SOFTMAX):
        call(X)
    assert torch._dynamo.utils.counters["frames"]["total"] <= 1


def test_a_solution_that_is_scripted_is_judged(runner, kata):
    kata.botched.write_text(
        "import torch\n\n\n"
        "@torch.jit.script\ndef scale(x: float, factor: float):\n    return x * factor\n\n\n"
        "@torch.jit.script\ndef shift(x: float, offset: float):\n    return x + offset\n"
    )
    result = runner.run(kata)
    assert result.verdict is Verdict.PASSED, result.detail
