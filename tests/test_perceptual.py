"""The VGG16 term against its formula, and the files its weights come from."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from fastunit.errors import ConfigError
from fastunit.perceptual import Perceptual, load_perceptual

# Where torchvision's VGG16 has its convolutions: index in `features` -> channels in and out.
CONVS = {
    0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256),
    14: (256, 256), 17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512),
    26: (512, 512), 28: (512, 512),
}  # fmt: skip
POOLED_AFTER = (2, 7, 14)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Return a state_dict as torchvision's, with random weights that keep the signal's size."""
    torch.manual_seed(0)
    values = {}
    for index, (c, k) in CONVS.items():
        values[f"features.{index}.weight"] = torch.randn(k, c, 3, 3) * (2 / (9 * c)) ** 0.5
        values[f"features.{index}.bias"] = torch.randn(k) * 0.1
    return values | {"classifier.0.weight": torch.ones(2, 2), "classifier.0.bias": torch.ones(2)}


@pytest.fixture(scope="module")
def path(state, tmp_path_factory):
    file = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, file)
    return file


@pytest.fixture(scope="module")
def network(path) -> Perceptual:
    return load_perceptual(path)


def formula(state, output, target):
    def features(x):
        blue, green, red = (255 * (x[:, c] + 1) / 2 for c in (2, 1, 0))
        x = torch.stack([blue - 103.939, green - 116.779, red - 123.680], 1)
        for index in CONVS:
            weight, bias = (state[f"features.{index}.{name}"] for name in ("weight", "bias"))
            x = F.conv2d(x, weight, bias, padding=1).clamp_min(0)
            if index in POOLED_AFTER:
                n, c, h, w = x.shape
                x = x.view(n, c, h // 2, 2, w // 2, 2).amax((3, 5))
        return F.instance_norm(x)

    return ((features(output) - features(target)) ** 2).mean()


def pictures(channels=3, height=16, width=24):
    return torch.rand(2, 2, channels, height, width).mul(2).sub(1)


def test_value_and_gradient_are_the_formulas(network, state):
    (output, target), scale = pictures(), {}
    for name, f in (("mine", network), ("wanted", lambda x, y: formula(state, x, y))):
        leaf = output.clone().requires_grad_()
        value = f(leaf, target)
        scale[name] = value.detach(), torch.autograd.grad(value, leaf)[0]
    assert scale["wanted"][0] > 0.01
    torch.testing.assert_close(scale["mine"][0], scale["wanted"][0], rtol=1e-4, atol=0)
    largest = scale["wanted"][1].abs().max().item()
    torch.testing.assert_close(scale["mine"][1], scale["wanted"][1], rtol=0, atol=1e-3 * largest)


def test_equal_images_are_at_no_distance(network):
    x, y = pictures()
    assert network(x, x) == 0
    assert network(x, y) > 0


def test_features_are_an_eighth_of_the_size(network):
    assert network.features(pictures(3, 16, 24)[0]).shape == (2, 512, 2, 3)


def test_one_channel_is_repeated(network):
    gray, other = pictures(1)
    color = gray.expand(-1, 3, -1, -1)
    assert torch.equal(network(gray, other), network(color, other.expand(-1, 3, -1, -1)))
    assert torch.equal(network(gray, color), torch.tensor(0.0))


@pytest.mark.parametrize("shape", [(1, 2, 16, 16), (1, 5, 16, 16), (1, 3, 7, 16), (1, 1, 16, 4)])
def test_images_it_cannot_take_are_named(network, shape):
    with pytest.raises(ValueError, match=rf"1 or 3 channels.*{re.escape(str(shape))}.*vgg_w=0"):
        network(torch.zeros(shape), torch.zeros(shape))


def test_it_is_frozen_and_saves_no_more_than_its_weights(network):
    assert not any(p.requires_grad for p in network.parameters())
    assert len(network.state_dict()) == 2 * len(CONVS)
    target = pictures()[1].requires_grad_()
    assert not network(pictures()[0], target).requires_grad  # the target gets no gradient


def test_a_file_is_loaded_whole(network, state):
    for conv, index in zip(network.convs, CONVS, strict=True):
        assert torch.equal(conv.weight, state[f"features.{index}.weight"])
        assert torch.equal(conv.bias, state[f"features.{index}.bias"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features.5.bias": None}, r"features\.5\.bias is missing, expected \(128,\)"),
        (
            {"features.28.weight": torch.ones(512, 512, 1, 1)},
            r"features\.28\.weight is of shape \(512, 512, 1, 1\), expected \(512, 512, 3, 3\)",
        ),
        ({"features.0.weight": 3}, r"features\.0\.weight is missing"),
    ],
)
def test_a_state_dict_of_another_network_is_refused(changes, message, state, tmp_path):
    other = {k: v for k, v in (state | changes).items() if v is not None}
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=rf"other\.pth' is not VGG16: {message}"):
        load_perceptual(tmp_path / "other.pth")


def test_something_else_than_a_state_dict_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ConfigError, match=r"list\.pth' is not VGG16: features\.0\.weight"):
        load_perceptual(str(tmp_path / "list.pth"))


# The last three make torch.load raise IndexError, UnicodeDecodeError and struct.error.
@pytest.mark.parametrize(
    "content", [b"", b"no weights", b"PK\x03\x04", b"a", b"\x80\x02X\x01\0\0\0\xff.", b"G\0"]
)
def test_bytes_that_torch_cannot_read_are_refused(content, tmp_path):
    file = tmp_path / "vgg.pth"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"vgg\.pth' cannot be read"):
        load_perceptual(file)


def test_a_whole_model_is_not_unpickled(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "model.pth")
    with pytest.raises(ConfigError, match=r"model\.pth' cannot be read"):
        load_perceptual(tmp_path / "model.pth")


@pytest.mark.parametrize("where", [None, "absent.pth", "."])
def test_a_missing_file_says_what_to_do(where, tmp_path):
    given = None if where is None else tmp_path / where
    found = "is not set" if where is None else f"{re.escape(str(given))}' is not a file"
    with pytest.raises(ConfigError, match=rf"vgg_model_path.*{found}.*vgg_w=0"):
        load_perceptual(given)
