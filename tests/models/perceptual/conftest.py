"""VGG16 with random weights, as a state_dict, a file and the perceptual term."""

from __future__ import annotations

import pytest
import torch

from fastunit.models.perceptual import Perceptual, load_perceptual

# Where torchvision's VGG16 has its convolutions: index in `features` -> channels in and out.
CONVS = {
    0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256),
    14: (256, 256), 17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512),
    26: (512, 512), 28: (512, 512),
}  # fmt: skip


@pytest.fixture(scope="session")
def state() -> dict[str, torch.Tensor]:
    """Return a state_dict as torchvision's, with random weights that keep the signal's size."""
    torch.manual_seed(0)
    values = {}
    for index, (c, k) in CONVS.items():
        values[f"features.{index}.weight"] = torch.randn(k, c, 3, 3) * (2 / (9 * c)) ** 0.5
        values[f"features.{index}.bias"] = torch.randn(k) * 0.1
    return values | {"classifier.0.weight": torch.ones(2, 2), "classifier.0.bias": torch.ones(2)}


@pytest.fixture(scope="session")
def path(state, tmp_path_factory):
    file = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, file)
    return file


@pytest.fixture(scope="session")
def network(path) -> Perceptual:
    return load_perceptual(path)
