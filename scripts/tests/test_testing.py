"""The ready-made properties accept a correct function, and name what is wrong with any other."""

import pytest
import torch

from dojo.testing import (
    assert_all_match,
    assert_any_layout,
    assert_any_mode,
    assert_gradients_reach,
    assert_matches,
    assert_repeatable,
    gradients,
    refuses,
)


def inputs():
    return torch.randn(5, 4), torch.randn(4)


def expected(x, w):
    return x * w, (x * w).sum(0)


def correct(x, w):
    return x * w, (x * w).sum(0)


BUFFERS, KEPT, STATE = {}, {}, []


def one_buffer_a_shape(x, w):
    buffer = BUFFERS.setdefault(x.shape, torch.empty_like(x))
    return buffer.copy_(x * w), (x * w).sum(0)


def kept_by_address(x, w):
    key = x.data_ptr(), w.data_ptr()
    if key not in KEPT:
        KEPT[key] = x.clone(), w.clone()
    return expected(*KEPT[key])


def kept_for_ever(x, w):
    STATE.append(w.clone())
    return expected(x, STATE[0])


def into_its_argument(x, w):
    total = (x * w).sum(0)
    return x.mul_(w), total


def halves_of_one(x, w):
    both = torch.cat([x * w, (x * w).sum(0, keepdim=True)])
    return both[:-1], both[-1]


LAST = []


def kept_from_the_last_call(x, w):
    if not LAST or LAST[0] is not x:
        LAST[:] = [x, expected(x, w)]
    return tuple(part.clone() for part in LAST[1])


def needs_contiguous(x, w):
    flat = torch.as_strided(x, (5, 4), (4, 1))
    return expected(flat, w)


def by_default_dtype(x, w):
    return expected(x, w.to(torch.get_default_dtype()).to(x.dtype))


def by_grad_mode(x, w):
    return expected(x, w if torch.is_grad_enabled() else 2 * w)


def test_a_correct_function_has_every_property():
    assert_repeatable(correct, inputs, expected, "product")
    arguments = inputs()
    assert_any_layout(correct, arguments, expected(*arguments), "product")
    assert_any_mode(correct, arguments, expected(*arguments), "product")
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (one_buffer_a_shape, "product, once it has been called again .part 1 of 2.: "),
        (kept_by_address, "called again with the same tensors, changed in place .part 1 of 2.: "),
        (kept_for_ever, "called again with other values .part 1 of 2.: "),
        (into_its_argument, "product: the result lies in the memory of an argument"),
        (kept_from_the_last_call, "same tensors, changed in place .part 1 of 2.: "),
    ],
)
def test_what_stays_from_an_earlier_call_is_named(function, reason):
    with pytest.raises(pytest.fail.Exception, match=f"{reason}"):
        assert_repeatable(function, inputs, expected, "product")


def test_parts_of_a_result_may_be_neighbours_and_may_not_be_one():
    assert_repeatable(halves_of_one, inputs, expected, "product")

    def twice(x, w):
        return (x * w,) * 2

    reason = "product: the result lies in the memory of another part of the result"
    with pytest.raises(pytest.fail.Exception, match=reason):
        assert_repeatable(twice, inputs, twice, "product")


def test_a_layout_that_is_not_understood_is_named():
    arguments = inputs()
    with pytest.raises(pytest.fail.Exception, match="product with argument 1 transposed"):
        assert_any_layout(needs_contiguous, arguments, expected(*arguments), "product")


@pytest.mark.parametrize(
    ("function", "mode"), [(by_grad_mode, "under no_grad"), (by_default_dtype, "torch.float16 is")]
)
def test_a_mode_that_changes_the_result_is_named(function, mode):
    arguments = inputs()
    with pytest.raises(pytest.fail.Exception, match=mode):
        assert_any_mode(function, arguments, expected(*arguments), "product")
    assert torch.get_default_dtype() == torch.float32


def test_parts_are_compared_one_by_one():
    a, b = torch.ones(2), torch.zeros(3)
    assert_all_match((a, None), (a, None), "parts")
    for wrong, reason in [
        ((a, b), "part 2 of 2.: got Tensor, not None"),
        ([a, None], "got list, not a tuple of 2"),
        ((a,), "got 1 of them, not a tuple of 2"),
    ]:
        with pytest.raises((pytest.fail.Exception, AssertionError), match=reason):
            assert_all_match(wrong, (a, None), "parts")


def detached(x, w):
    return x * w.detach()


def makes_all_ask(x, w):
    return x.requires_grad_() * w


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (detached, r"product: autograd finds no way back to w"),
        (makes_all_ask, "product has made another input require a gradient"),
    ],
)
def test_gradients_that_do_not_reach_are_named(function, reason):
    def go_back(call):
        for asking in (("x", "w"), ("w",)):
            inputs = {"x": torch.randn(5, 4), "w": torch.randn(4)}
            assert_gradients_reach(call, torch.mul, inputs, asking, "product")

    go_back(torch.mul)
    with pytest.raises((pytest.fail.Exception, AssertionError, RuntimeError), match=reason):
        go_back(function)


def test_numbers_that_print_alike_show_their_difference():
    with pytest.raises(pytest.fail.Exception, match=r"it is 6\.193141, not 6\.19314 \("):
        assert_matches(
            torch.tensor([6.193141]), torch.tensor([6.19314]), "the loss", rtol=0, atol=0
        )


def refused(error, *patterns):
    with refuses("an odd dim, 7", *patterns):
        if error:
            raise error


def test_a_refusal_that_does_not_come_is_told_with_what_was_to_be_refused():
    refused(ValueError("dim is 7"), r"\b7\b")
    for error, said in [
        (None, "expected ValueError for an odd dim, 7, and nothing was raised"),
        (ValueError("odd"), "the ValueError for an odd dim, 7 does not name it: 'odd'"),
        (IndexError("out"), "expected ValueError for an odd dim, 7, got IndexError: out"),
    ]:
        with pytest.raises(pytest.fail.Exception) as caught:
            refused(error, r"\b7\b")
        assert str(caught.value) == said


def test_an_input_that_gets_no_gradient_is_named():
    x, w = torch.randn(5, 4, requires_grad=True), torch.randn(4, requires_grad=True)
    for out, said in [
        (x.detach(), r"the result: autograd finds no way back to input 1 of 2, \(5, 4\) and"),
        (x * 2, r"the result: autograd finds no way back to input 2 of 2, \(4,\)$"),
    ]:
        with pytest.raises(pytest.fail.Exception, match=said):
            gradients(out, [x, w], torch.ones(5, 4))


def test_a_gradient_that_does_not_reach_an_argument_is_told_by_its_name():
    given = {"x": torch.randn(5, 4), "w": torch.randn(4)}
    with pytest.raises(pytest.fail.Exception, match=r"^scaled: autograd finds no way back to w$"):
        assert_gradients_reach(
            lambda x, w: x * w.detach(), lambda x, w: x * w, given, ["x", "w"], "scaled"
        )
