"""A ban holds through every public way to the same computation, and refuses nothing else."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from dojo.testing import forbid, forbid_autograd

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
ALLOWED = {
    "softmax": lambda: (X - X.logsumexp(1, keepdim=True)).exp(),
    "conv2d": lambda: F.unfold(IMAGE, 2).mT @ KERNEL.flatten(1).T,
    "exp": lambda: X.expand(2, 3, 4) + torch.expm1(X),
    "dot": lambda: QUERY @ QUERY.mT,
    "max": lambda: F.softmax(X, 1) + X.cummax(1).values,
}


@pytest.mark.parametrize("name", BANNED)
def test_every_way_to_a_banned_operator_is_seen(name):
    for call in BANNED[name]:
        with pytest.raises(pytest.fail.Exception, match="the brief bans this call"), forbid(name):
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
