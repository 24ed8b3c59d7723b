"""The convolutional blocks' kernels against the ATen twin in float64, forward and backward.

The twin's own float64 numbers are checked against formulas in tests/kernels/test_ops.py.
"""

from __future__ import annotations

import pytest
import torch

from fastunit.kernels import conv_gemm, conv_norm_act, conv_transpose, upsample_conv
from fastunit.kernels.common import runtime
from fastunit.kernels.conv import block as blocks
from fastunit.kernels.conv import gemm, tiles

ACTS = ("none", "relu", "lrelu", "prelu", "selu", "tanh")
PADS = ("zero", "reflect", "replicate")


def rand(*shape):
    return torch.randn(shape)


def run(op, tensors, dtype, impl, dy=None, **options):
    """Return the result and every gradient in float64, by name; and the upstream gradient."""
    leaves = {name: t.detach().to(dtype).requires_grad_() for name, t in tensors.items()}
    y = op(**leaves, **options, impl=impl)
    dy = torch.randn(y.shape) if dy is None else dy
    gradients = torch.autograd.grad(y, list(leaves.values()), dy.to(dtype))
    found = {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}
    return {name: value.double() for name, value in found.items()}, dy


def assert_exact(op, tensors, dtype=torch.float32, factor=2, names=None, **options):
    """Require twice the twin's error at that dtype at most, and a few roundings.

    Those are of the largest value of a result or gradient, or of y: a parameter's gradient
    may be a sum that nearly cancels. Compares all gradients, or those of `names`.
    """
    exact, dy = run(op, tensors, torch.float64, "aten", **options)
    twin, _ = run(op, tensors, dtype, "aten", dy, **options)
    mine, _ = run(op, tensors, dtype, "triton", dy, **options)
    for name in names or exact:
        wanted = exact[name]
        floor = 16 * torch.finfo(dtype).eps * max(wanted.abs().max(), exact["y"].abs().max())
        limit = factor * (twin[name] - wanted).abs().max() + floor
        assert mine[name].shape == wanted.shape
        assert (mine[name] - wanted).abs().max() <= limit, (name, options)


def block(n, c, k, taps, size, groups=0, out=None, act="none"):
    """Return the tensors of a block, by name: everything it can take."""
    lead = (groups,) if groups else ()
    tensors = {
        "x": rand(n, c, *size),
        "w": rand(*lead, k, c, *taps) / (c * taps[0] * taps[1]) ** 0.5,
        "b": rand(*lead, k),
        "gamma": rand(*lead, k),
        "beta": rand(*lead, k),
    }
    if out:
        tensors["residual"] = rand(n, k, *out)
    if act == "prelu":
        tensors["slope"] = torch.rand(1)
    return tensors


@pytest.mark.parametrize("pad_mode", PADS)
@pytest.mark.parametrize("norm", ["none", "in", "ln"])
@pytest.mark.parametrize("act", ACTS)
def test_every_activation_norm_and_padding(act, norm, pad_mode):
    tensors = block(2, 5, 6, (3, 3), (6, 7), out=(6, 7), act=act)
    assert_exact(conv_norm_act, tensors, padding=1, pad_mode=pad_mode, norm=norm, act=act)


SHAPES = {
    "1x1": (3, 8, 16, (1, 1), (5, 4), 1, 0),
    "3x3 strided, odd size": (2, 20, 70, (3, 3), (7, 10), 2, 1),
    "4x4 strided": (2, 16, 24, (4, 4), (10, 8), 2, 1),
    "4x4 strided, odd size": (1, 3, 8, (4, 4), (9, 7), 2, 1),
    "5x5": (1, 9, 4, (5, 5), (6, 9), 1, 2),
    "7x7 from three channels": (1, 3, 16, (7, 7), (9, 11), 1, 3),
    "7x7 into three channels": (2, 16, 3, (7, 7), (8, 9), 1, 3),
    "one channel": (2, 1, 1, (3, 3), (5, 6), 1, 1),
    "oblong filter": (1, 4, 5, (2, 3), (6, 6), 1, 1),
    "stride 3": (1, 4, 5, (5, 5), (13, 11), 3, 2),
    "many tiles": (1, 8, 136, (3, 3), (20, 21), 1, 1),
}


@pytest.mark.parametrize("pad_mode", PADS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_filter_and_stride(shape, pad_mode):
    n, c, k, taps, size, stride, padding = SHAPES[shape]
    tensors = block(n, c, k, taps, size)
    options = {"stride": stride, "padding": padding, "pad_mode": pad_mode}
    assert_exact(conv_norm_act, tensors, norm="in", act="relu", **options)
    plain = {name: tensors[name] for name in ("x", "w", "b")}
    assert_exact(conv_norm_act, plain, act="lrelu", slope=0.2, **options)


@pytest.mark.parametrize("norm", ["none", "in", "ln"])
def test_two_domains_in_one_launch(norm):
    tensors = block(4, 6, 9, (3, 3), (5, 6), groups=2)
    assert_exact(conv_norm_act, tensors, padding=1, pad_mode="reflect", norm=norm, act="relu")
    whole = conv_norm_act(**tensors, padding=1, norm=norm, impl="triton")
    for half in (0, 1):
        own = {name: t[half] for name, t in tensors.items() if name != "x"}
        alone = conv_norm_act(
            tensors["x"][2 * half :][:2], **own, padding=1, norm=norm, impl="triton"
        )
        assert torch.equal(whole[2 * half :][:2], alone)


@pytest.mark.parametrize("halo_mode", PADS)
def test_a_result_with_the_next_halo(halo_mode):
    tensors = block(2, 4, 8, (3, 3), (6, 5), out=(6, 5))
    options = {"padding": 1, "pad_mode": "reflect", "norm": "in", "act": "relu"}
    assert_exact(conv_norm_act, tensors, halo=2, halo_mode=halo_mode, **options)


def test_a_mean_of_a_thousand_spreads():
    tensors = block(2, 4, 8, (3, 3), (9, 9))
    tensors["x"] += 1000
    # dw multiplies x by a gradient that sums to zero: its rounding is as large as itself.
    names = ("y", "x", "gamma", "beta")
    assert_exact(conv_norm_act, tensors, names=names, norm="in", act="lrelu", slope=0.2)
    assert_exact(conv_norm_act, tensors, names=names, norm="ln", act="relu")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    # The interpreter truncates where a GPU rounds, hence twice the usual factor.
    tensors = block(2, 16, 24, (3, 3), (8, 8))
    options = {"padding": 1, "pad_mode": "reflect", "norm": "in", "act": "relu"}
    assert_exact(conv_norm_act, tensors, dtype, factor=4, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_flat_image_has_no_spread_whatever_its_rounding(dtype):
    tensors = block(1, 8, 16, (3, 3), (8, 8)) | {"x": torch.full((1, 8, 8, 8), 0.7)}
    plain = {name: tensors[name].to(dtype) for name in ("x", "w")}
    options = {"padding": 1, "pad_mode": "reflect", "norm": "in", "impl": "triton"}
    assert not conv_norm_act(**plain, **options).any()


@pytest.mark.parametrize("pad_mode", PADS)
@pytest.mark.parametrize("norm", ["none", "in", "ln"])
def test_upsampling(norm, pad_mode):
    for taps, size, padding in ((5, (4, 5), 2), (5, (2, 2), 2), (3, (3, 4), 1), (4, (5, 3), 1)):
        tensors = block(2, 5, 7, (taps, taps), size)
        options = {"padding": padding, "pad_mode": pad_mode, "norm": norm, "act": "relu"}
        assert_exact(upsample_conv, tensors, **options)


def test_upsampling_of_two_domains():
    tensors = block(4, 8, 16, (5, 5), (3, 4), groups=2)
    assert_exact(upsample_conv, tensors, pad_mode="reflect", norm="ln", act="relu")


@pytest.mark.parametrize("pad_mode", PADS)
def test_upsampling_with_wide_or_no_padding(pad_mode):
    assert_exact(upsample_conv, block(1, 4, 5, (7, 7), (4, 5)), padding=3, pad_mode=pad_mode)
    assert_exact(upsample_conv, block(1, 4, 5, (3, 3), (4, 5)), padding=0, pad_mode=pad_mode)
    assert_exact(upsample_conv, block(1, 4, 5, (1, 1), (4, 5)), padding=1, pad_mode=pad_mode)


TRANSPOSES = [(3, 2, 1, 1), (4, 2, 1, 0), (4, 2, 0, 0), (1, 1, 0, 0), (5, 3, 2, 2), (2, 2, 0, 1)]


@pytest.mark.parametrize(("taps", "stride", "padding", "output_padding"), TRANSPOSES)
@pytest.mark.parametrize("norm", ["none", "in"])
def test_transposed_convolution(norm, taps, stride, padding, output_padding):
    tensors = block(2, 5, 7, (taps, taps), (4, 6))
    tensors["w"] = tensors["w"].transpose(0, 1)
    options = {"stride": stride, "padding": padding, "output_padding": output_padding}
    assert_exact(conv_transpose, tensors, norm=norm, act="relu", **options)


def test_valid_convolution():
    tensors = block(2, 8, 16, (3, 3), (6, 6))
    plain = {name: tensors[name] for name in ("x", "w", "b")}
    for act in ("none", "relu", "lrelu", "selu", "tanh"):
        assert_exact(conv_gemm, plain, act=act)
    nhwc = plain | {"x": plain["x"].to(memory_format=torch.channels_last)}
    assert torch.equal(conv_gemm(**nhwc, impl="triton"), conv_gemm(**plain, impl="triton"))


def test_a_filter_of_the_image_s_size():
    assert_exact(conv_norm_act, block(2, 4, 5, (4, 4), (4, 4)), act="relu")


def test_strided_views_and_empty_batches():
    tensors = block(2, 4, 8, (3, 3), (6, 6))
    base = rand(3, 9, 12, 8)
    for view in (base[1:, 1:8:2, ::2, 1:7], base[:2, :4].transpose(2, 3)):
        given = tensors | {"x": view}
        options = {"padding": 1, "pad_mode": "reflect", "norm": "in", "impl": "triton"}
        copied = given | {"x": view.clone()}
        assert torch.equal(conv_norm_act(**given, **options), conv_norm_act(**copied, **options))
    for op, options in ((conv_norm_act, {"padding": 1}), (upsample_conv, {"pad_mode": "reflect"})):
        leaves = {name: t.requires_grad_() for name, t in tensors.items()}
        leaves["x"] = rand(0, 4, 6, 6).requires_grad_()
        y = op(**leaves, **options, norm="in", act="relu", impl="triton")
        assert y.shape[0] == 0
        gradients = torch.autograd.grad(y.sum(), list(leaves.values()))
        for leaf, gradient in zip(leaves.values(), gradients, strict=True):
            assert gradient.shape == leaf.shape
            assert not gradient.any()


def test_biases_of_any_strides():
    tensors = block(2, 4, 8, (3, 3), (6, 6), groups=2)
    plain = {name: tensors[name] for name in ("x", "w", "b")}
    views = rand(2, 16)[:, ::2], rand(8, 2).t(), rand(2, 1).expand(2, 8)
    for b in views:
        copied = conv_gemm(**plain | {"b": b.clone(memory_format=torch.contiguous_format)})
        torch.testing.assert_close(conv_gemm(**plain | {"b": b}, impl="triton"), copied)


def test_saved_tensors_may_come_back_in_other_strides():
    # As those of torch.autograd.graph.save_on_cpu(pin_memory=True) do.
    tensors = block(2, 8, 8, (3, 3), (8, 8))
    plain = {name: tensors[name] for name in ("x", "w", "b")}
    plain["x"] = plain["x"].to(memory_format=torch.channels_last)
    wanted, dy = run(conv_gemm, plain, torch.float32, "triton", act="relu")
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.clone(memory_format=torch.contiguous_format), lambda t: t
    ):
        found, _ = run(conv_gemm, plain, torch.float32, "triton", dy, act="relu")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_same_bits_every_time():
    tensors = block(2, 16, 24, (3, 3), (12, 12))
    options = {"padding": 1, "pad_mode": "reflect", "norm": "in", "act": "relu"}
    first, dy = run(conv_norm_act, tensors, torch.float32, "triton", **options)
    again, _ = run(conv_norm_act, tensors, torch.float32, "triton", dy, **options)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_only_wanted_gradients_are_computed(monkeypatch):
    tensors = block(1, 4, 8, (3, 3), (6, 6))
    expected = run(conv_norm_act, tensors, torch.float32, "triton", padding=1)[0]
    monkeypatch.setattr(gemm, "wgrad", None)
    x = tensors["x"].requires_grad_()
    y = conv_norm_act(**tensors, padding=1, impl="triton")
    assert torch.equal(y.double(), expected["y"])
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.shape == x.shape


def test_small_tiles_and_splits_as_on_a_gpu(monkeypatch):
    splits = set()

    def small(product):
        def order(choice):
            return choice.tile.block_m * choice.tile.block_n, abs(choice.splits - 3)

        found = min(tiles.candidates(product), key=order)
        splits.add(found.splits)
        return found

    monkeypatch.setattr(tiles, "best", small)
    tensors = block(2, 12, 80, (3, 3), (15, 14))
    options = {"padding": 1, "pad_mode": "reflect", "norm": "in", "act": "relu"}
    assert_exact(conv_norm_act, tensors, **options)
    assert_exact(conv_norm_act, tensors, stride=2, **options)
    assert 1 in splits and max(splits) > 1


def test_operators_are_registered_correctly():
    tensors = block(2, 8, 8, (3, 3), (5, 6), out=(5, 6))
    leaves = [t[None] if t.dim() == 1 else t for t in tensors.values()]
    x, w, b, gamma, beta, residual = (t.requires_grad_() for t in leaves)
    for norm, halo in (("none", 0), ("in", 1), ("ln", 0)):
        plan = ("conv", 1, 1, 0, "reflect", norm, 1e-5, "relu", 0.0, halo, "zero", "triton")
        args = (x, w[None], b, gamma, beta, None, residual, None, None, *plan)
        torch.library.opcheck(blocks._forward, args)
        with torch.no_grad():
            y, haloed, raw, mean, rstd = blocks._forward(*args)
        saved = (torch.randn_like(y), x.shape, haloed, raw, mean, rstd, w.detach()[None])
        parameters = (b.detach(), gamma.detach(), beta.detach(), None, None)
        torch.library.opcheck(
            blocks._backward, (*saved, *parameters, True, True, True, True, *plan)
        )


def test_a_compiled_block_runs_the_kernels():
    torch._dynamo.reset()
    tensors = block(1, 4, 8, (3, 3), (6, 6))
    compiled = torch.compile(conv_norm_act, fullgraph=True, backend="aot_eager")
    options = {"padding": 1, "pad_mode": "reflect", "norm": "in", "act": "relu"}
    mine, dy = run(compiled, tensors, torch.float32, "triton", **options)
    eager, _ = run(conv_norm_act, tensors, torch.float32, "triton", dy, **options)
    assert all(torch.equal(mine[name], eager[name]) for name in eager)


@pytest.mark.parametrize(
    ("op", "options"),
    [
        (conv_norm_act, {"padding": 2, "pad_mode": "reflect", "stride": 2, "norm": "in"}),
        (upsample_conv, {"padding": 1, "norm": "ln", "act": "relu"}),
        (conv_transpose, {"padding": 1, "output_padding": 1, "act": "tanh"}),
    ],
)
def test_second_derivatives_find_the_image_in_its_haloed_buffer(op, options, monkeypatch):
    """On a GPU "auto" takes these kernels; here it is made to."""
    monkeypatch.setattr(runtime, "choose_impl", lambda impl, x: "triton")
    x, w = rand(2, 3, 5, 7), rand(3, 3, 3, 3)

    def penalty(impl):
        leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
        if impl == "plain":
            monkeypatch.undo()
        y = op(*leaves, **options, impl=impl)
        (dx,) = torch.autograd.grad(y.pow(3).sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(dx.square().sum(), leaves)

    for found, wanted in zip(penalty("auto"), penalty("plain"), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())
