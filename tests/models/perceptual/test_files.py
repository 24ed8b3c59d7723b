"""The files that the perceptual term's weights come from, good and bad."""

from __future__ import annotations

import re
from collections import OrderedDict

import pytest
import torch

from fastunit.common import files
from fastunit.common.errors import ConfigError
from fastunit.models.perceptual import load_perceptual


def assert_loaded(network, state):
    indices = sorted({int(key.split(".")[1]) for key in state if key.startswith("features")})
    for conv, index in zip(network.convs, indices, strict=True):
        assert conv.weight.dtype == conv.bias.dtype == torch.float32
        assert torch.equal(conv.weight, state[f"features.{index}.weight"].float())
        assert torch.equal(conv.bias, state[f"features.{index}.bias"].float())


def test_a_file_is_loaded_whole(network, state):
    assert_loaded(network, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_alone_load_from_any_floating_dtype(dtype, state, tmp_path):
    values = {k: v.to(dtype) for k, v in state.items() if k.startswith("features")}
    torch.save(OrderedDict(values), tmp_path / "features.pth")
    assert_loaded(load_perceptual(tmp_path / "features.pth"), values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features.5.bias": None}, r"features\.5\.bias is missing, expected \(128,\)"),
        (
            {"features.28.weight": torch.ones(512, 512, 1, 1)},
            r"features\.28\.weight is of shape \(512, 512, 1, 1\), expected \(512, 512, 3, 3\)",
        ),
        ({"features.0.weight": 3}, r"features\.0\.weight is of type int"),
        (
            {"features.2.weight": torch.ones(64, 64, 3, 3, dtype=torch.int8)},
            r"features\.2\.weight is torch\.int8, .* expected floating values",
        ),
        (
            {"features.0.bias": torch.zeros(64).to_sparse()},
            r"features\.0\.bias is torch\.float32, torch\.sparse_coo",
        ),
        (
            {"features.7.bias": torch.full((128,), float("nan"))},
            r"features\.7\.bias holds values that are not finite",
        ),
        (
            {"features.7.bias": torch.full((128,), 1e300, dtype=torch.float64)},
            r"features\.7\.bias holds values that are not finite in float32",
        ),
    ],
)
def test_a_state_dict_of_another_network_is_refused(changes, message, state, tmp_path):
    other = {k: v for k, v in (state | changes).items() if v is not None}
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=rf"other\.pth' is not VGG16: {message}.*vgg_w=0"):
        load_perceptual(tmp_path / "other.pth")


def test_something_else_than_a_state_dict_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ConfigError, match=r"list\.pth' is not VGG16: it holds list.*vgg_w=0"):
        load_perceptual(str(tmp_path / "list.pth"))


def test_a_file_larger_than_vgg16_is_refused_unread(tmp_path, monkeypatch):
    file = tmp_path / "large.pth"
    with file.open("wb") as stream:
        stream.truncate(3 * 10**9)  # takes no room on the disk
    monkeypatch.setattr(files, "read", lambda path: pytest.fail("the file was read"))
    with pytest.raises(ConfigError, match=r"large\.pth' is not VGG16: 3,000 MB.*1,107.*vgg_w=0"):
        load_perceptual(file)


def test_a_file_cut_short_is_refused(path, tmp_path):
    file = tmp_path / "short.pth"
    file.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ConfigError, match=r"short\.pth' cannot be read: .*vgg_w=0"):
        load_perceptual(file)


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
