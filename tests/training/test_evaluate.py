"""The figures of held-out pairs, against values worked out from the files by NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fastunit import config
from fastunit.config import Config
from fastunit.data import builtin, discovery
from fastunit.data.discovery import Domains
from fastunit.training import evaluate, held_out

CPU = torch.device("cpu")
SIZE = 4
FIGURES = {
    *("paired_l1", "identity_l1", "constant_l1", "statistics_l1", "chance"),
    *("retrieval", "identity_retrieval", "statistics_retrieval"),
}


class Translate(nn.Module):
    """Translates by a function of the image and the direction."""

    def __init__(self, function: Callable[[Tensor, str], Tensor]) -> None:
        super().__init__()
        self.translate = function


negative = Translate(lambda x, way: -x)
unchanged = Translate(lambda x, way: x)
collapsed = Translate(lambda x, way: torch.full_like(x, -0.25))


@pytest.fixture
def settings() -> Config:
    return Config(crop_image_height=SIZE, crop_image_width=SIZE, num_workers=1)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Domains]:
    """Return a function that writes pictures, lists of uint8 [H, W] or [H, W, 3], by domain."""

    def save(**splits: list[np.ndarray]) -> Domains:
        found = {}
        for split, pictures in splits.items():
            folder = tmp_path / split
            folder.mkdir()
            files = [folder / f"{index:03d}.png" for index in range(len(pictures))]
            for file, picture in zip(files, pictures, strict=True):
                Image.fromarray(picture).save(file)
            found[split] = tuple(files)
        return Domains(**found)

    return save


def draw(count: int, *shape: int, low: int = 0, high: int = 256) -> list[np.ndarray]:
    return list(np.random.randint(low, high, (count, *(shape or (SIZE, SIZE, 3))), np.uint8))


def values(pictures: list[np.ndarray]) -> np.ndarray:
    return np.stack(pictures) / 127.5 - 1


def measured(translator: nn.Module, domains: Domains, settings: Config) -> dict:
    pairs = held_out.find_pairs(domains, settings)
    assert pairs
    return evaluate.measure(translator, pairs, domains, settings, CPU)


def error(predicted: np.ndarray, truth: list[np.ndarray]) -> float:
    return pytest.approx(np.abs(predicted - values(truth)).mean(), abs=1e-6)


@pytest.mark.parametrize("count", [2, 15, 16, 17, 33])
@pytest.mark.parametrize("channels", [1, 3])
def test_figures_are_those_worked_out_from_the_files(count, channels, settings, write):
    shape = (SIZE, SIZE, 3)[: 3 if channels == 3 else 2]
    train_a, train_b = draw(17, *shape, high=120), draw(3, *shape, low=100)
    a = draw(count, *shape)
    b = [255 - picture for picture in a]
    domains = write(train_a=train_a, train_b=train_b, test_a=a, test_b=b)
    settings = replace(settings, input_dim_a=channels, input_dim_b=channels)
    found = measured(negative, domains, settings)
    of = {way: values(train) for way, train in (("a", train_a), ("b", train_b))}
    for way, x, truth in (("a2b", a, b), ("b2a", b, a)):
        source, target = of[way[0]], of[way[-1]]
        scaled = (values(x) - source.mean(0)) / source.std(0) * target.std(0) + target.mean(0)
        assert found[way]["paired_l1"] == pytest.approx(0, abs=1e-6)
        assert found[way]["identity_l1"] == error(values(x), truth)
        assert found[way]["constant_l1"] == error(target.mean(0), truth)
        assert found[way]["statistics_l1"] == error(scaled.clip(-1, 1), truth)
        assert found[way]["retrieval"] == 1 and found[way]["chance"] == 1 / count
        assert found[way].keys() == FIGURES


def test_a_constant_can_be_nearer_than_a_translation(settings, write):
    b = [np.full((SIZE, SIZE, 3), level, np.uint8) for level in (90, 110)]
    a = [255 - picture for picture in b]
    found = measured(unchanged, write(train_a=a, train_b=b, test_a=a, test_b=b), settings)["a2b"]
    assert found["constant_l1"] == pytest.approx(10 / 127.5, abs=1e-6)
    assert found["paired_l1"] == pytest.approx((75 + 35) / 2 / 127.5, abs=1e-6)


@pytest.mark.parametrize("count", [2, 17])
def test_a_collapsed_translator_is_at_chance_however_small_its_error(count, settings, write):
    splits = ("train_a", "train_b", "test_a", "test_b")
    domains = write(**{split: draw(count, low=90, high=100) for split in splits})
    for found in measured(collapsed, domains, settings).values():
        assert found["retrieval"] == pytest.approx(1 / count, abs=1e-12) == found["chance"]


def test_translations_of_other_scenes_are_not_retrieved(settings, write):
    pictures = draw(18)
    domains = write(train_a=draw(2), train_b=draw(2), test_a=pictures, test_b=pictures)
    exchanged = Translate(lambda x, way: x.flip(0))
    assert measured(exchanged, domains, settings)["a2b"]["retrieval"] == 0
    assert measured(unchanged, domains, settings)["a2b"]["retrieval"] == 1


def test_training_images_are_framed_as_the_test_images_are(settings, write):
    framed = draw(3, SIZE + 4, SIZE + 2, 3)
    other = [picture.copy() for picture in framed]
    for picture in other:
        picture[2:-2, 1:-1] = 200
    domains = write(train_a=framed, train_b=other, test_a=framed, test_b=other)
    found = measured(unchanged, domains, settings)
    assert found["a2b"]["constant_l1"] == pytest.approx(0, abs=1e-6)
    whole = replace(settings, data=replace(settings.data, test_crop="full"))
    mean = values(other).mean(0)
    assert measured(unchanged, domains, whole)["a2b"]["constant_l1"] == error(mean, other)


def test_whole_images_of_different_sizes_have_errors_but_no_places(settings, write):
    a = [*draw(1, 4, 6, 3), *draw(1, 5, 4, 3)]
    b = [255 - picture for picture in a]
    domains = write(train_a=draw(2), train_b=draw(2), test_a=a, test_b=b)
    whole = replace(settings, data=replace(settings.data, test_crop="full"))
    for found in measured(negative, domains, whole).values():
        assert found.keys() == {"paired_l1", "identity_l1", "left_out"}
        assert found["paired_l1"] == pytest.approx(0, abs=1e-6)
        assert found["left_out"].keys() == {"constant_l1", "statistics_l1", "retrieval"}
        assert all("differ in size" in reason for reason in found["left_out"].values())


def test_each_figure_is_left_out_only_where_it_cannot_be(settings, write):
    train_a = [*draw(1, 4, 6, 3), *draw(1, 5, 4, 3)]
    domains = write(train_a=train_a, train_b=draw(2), test_a=draw(2), test_b=draw(2))
    whole = replace(settings, data=replace(settings.data, test_crop="full"))
    found = measured(negative, domains, whole)
    assert found["a2b"].keys() >= {"constant_l1", "identity_retrieval", "retrieval", "chance"}
    assert found["a2b"]["left_out"].keys() == {"statistics_l1"}
    assert found["b2a"]["left_out"].keys() == {"constant_l1", "statistics_l1"}


def test_among_a_single_pair_nothing_is_retrieved(settings, write):
    domains = write(train_a=draw(1), train_b=draw(1), test_a=draw(1), test_b=draw(1))
    found = measured(negative, domains, settings)["b2a"]
    assert not {"retrieval", "chance", "identity_retrieval"} & found.keys()
    assert found["left_out"] == {"retrieval": "there is only one pair"}


def test_large_sets_are_thinned_evenly(settings, write, monkeypatch):
    train_b, a = draw(5), draw(7)
    b = [255 - picture for picture in a]
    b[2], b[4] = b[4], b[2]  # not among every third pair
    domains = write(train_a=draw(5), train_b=train_b, test_a=a, test_b=b)
    monkeypatch.setattr(evaluate, "MOST_TRAINING", 3)
    monkeypatch.setattr(evaluate, "MOST_COMPARED", SIZE * SIZE * 3 * 3**2)
    found = measured(negative, domains, settings)["a2b"]
    assert found["constant_l1"] == error(values(train_b[::2]).mean(0), b)
    assert found["paired_l1"] == error(-values(a), b)
    assert found["retrieval"] == 1 and found["chance"] == 1 / 3


@pytest.mark.slow
def test_the_demos_trivial_baselines_are_those_documented():
    size = ("new_size", "crop_image_height", "crop_image_width")
    settings = config.load(None, [f"{key}=64" for key in size])
    demo = discovery.find_domains(replace(settings, data_root=str(builtin.demo_root())))
    found = measured(unchanged, demo, settings)
    for way, constant, statistics in (("a2b", 0.1386, 0.1432), ("b2a", 0.2095, 0.1671)):
        assert found[way]["identity_l1"] == pytest.approx(0.7549, abs=5e-4)
        assert found[way]["constant_l1"] == pytest.approx(constant, abs=5e-4)
        assert found[way]["statistics_l1"] == pytest.approx(statistics, abs=5e-4)
        assert found[way]["statistics_retrieval"] == 1 and found[way]["chance"] == 1 / 64
