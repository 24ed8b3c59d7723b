"""Forms of weights are made once in a block, and again where the weights have changed."""

from __future__ import annotations

import pytest
import torch

from fastunit.kernels import conv_norm_act, upsample_conv
from fastunit.kernels.common.weight_cache import forget, keep_filters, kept


class Doubled:
    """Makes ``factor * w``, counting how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, w, factor=2):
        self.count += 1
        return factor * w


@pytest.fixture
def make():
    return Doubled()


@pytest.fixture
def w():
    return torch.randn(4, 3, 3, 3)


def test_nothing_is_kept_outside_of_a_block(make, w):
    for _ in range(3):
        torch.testing.assert_close(kept(make, w), 2 * w)
    with keep_filters([w]):
        kept(make, w)
    kept(make, w)
    assert make.count == 5


def test_a_form_is_made_once_whatever_the_view(make, w):
    with keep_filters([w]):
        forms = [kept(make, w), kept(make, w.detach()), kept(make, w.view(4, 3, 3, 3))]
        assert make.count == 1
        assert all(form is forms[0] for form in forms)


@pytest.mark.parametrize(
    "other",
    [
        lambda w: w.clone(),
        lambda w: w[1:],
        lambda w: w[:3],
        lambda w: w.transpose(2, 3),
        lambda w: w.view(torch.int32),
        lambda w: w.detach().requires_grad_(),
    ],
)
def test_another_tensor_has_a_form_of_its_own(other, make, w):
    with keep_filters([w]):
        kept(make, w)
        different = other(w)
        torch.testing.assert_close(kept(make, different), 2 * different)
    assert make.count == 2


def test_other_arguments_make_another_form(make, w):
    with keep_filters([w]):
        torch.testing.assert_close(kept(make, w, 3), 3 * w)
        torch.testing.assert_close(kept(make, w, 5), 5 * w)
        kept(make, w, 3)
    assert make.count == 2


def test_a_form_with_a_graph_is_not_taken_for_one_without(make, w):
    w.requires_grad_()
    with keep_filters([w]):
        with torch.no_grad():
            assert not kept(make, w).requires_grad
        (kept(make, w) + kept(make, w)).sum().backward()
    assert make.count == 2
    torch.testing.assert_close(w.grad, torch.full_like(w, 4.0))


def test_a_changed_weight_is_noticed(make, w):
    with keep_filters([w]):
        before = kept(make, w).clone()
        w.add_(1)
        torch.testing.assert_close(kept(make, w), before + 2)


def test_other_tensors_and_their_forms_are_not_kept(make, w):
    with keep_filters([w]):
        for value in range(3):
            other = torch.full_like(w, value)
            torch.testing.assert_close(kept(make, other), 2 * other)
            assert make.count == value + 1


def test_forms_of_forms_are_kept(make, w):
    with keep_filters([w]):
        for _ in range(3):
            form = kept(make, kept(make, w), 3)
        torch.testing.assert_close(form, 6 * w)
    assert make.count == 2


def test_what_will_change_is_forgotten(make, w):
    other = torch.randn(3)
    with keep_filters([w]), keep_filters([other]):
        kept(make, other)
        before = kept(make, w).clone()
        forget([w])
        w.data.add_(1)  # without a new version
        torch.testing.assert_close(kept(make, w), before + 2)
        kept(make, other)
    assert make.count == 3


def test_an_inner_block_sees_the_outer_and_drops_its_own(make, w):
    other = torch.randn(2)
    with keep_filters([w]):
        kept(make, w)
        for _ in range(2):
            with keep_filters([w, other]):
                kept(make, w)
                kept(make, other)
        assert make.count == 3


def test_an_exception_ends_a_block(make, w):
    with pytest.raises(KeyError), keep_filters([w]):
        raise KeyError
    kept(make, w)
    kept(make, w)
    assert make.count == 2


def test_inference_tensors_are_kept_too(make):
    with torch.inference_mode():
        w = torch.ones(2)
        with keep_filters([w]):
            assert kept(make, w) is kept(make, w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [conv_norm_act, upsample_conv])
def test_blocks_compute_the_same_inside(block, dtype):
    x = torch.randn(2, 5, 6, 7, dtype=dtype, requires_grad=True)
    w = torch.randn(4, 5, 3, 3, requires_grad=True)

    def gradients():
        x.grad = w.grad = None
        for _ in range(2):
            block(x, w, padding=1, norm="in", act="relu").square().sum().backward()
        return x.grad, w.grad

    wanted = gradients()
    with keep_filters([w]):
        found = gradients()
        with torch.no_grad():
            w.mul_(-0.5)
        changed = gradients()
    again = gradients()
    assert all(map(torch.equal, found, wanted))
    assert all(map(torch.equal, changed, again))
    assert not torch.equal(changed[0], found[0])


@pytest.mark.parametrize("block", [conv_norm_act, upsample_conv])
def test_memory_that_compiled_code_uses_again_is_no_known_weight(block, w):
    x = torch.randn(2, 3, 6, 7, dtype=torch.bfloat16)
    buffer = w.clone()
    with keep_filters([w]):
        before = block(x, buffer, padding=1)
        buffer.data.copy_(-w)  # without a new version
        torch.testing.assert_close(block(x, buffer, padding=1), -before)
