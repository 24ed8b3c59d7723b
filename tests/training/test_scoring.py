"""Scores of generators on test images, with features that can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastunit import config
from fastunit.common.errors import DataError
from fastunit.data import discovery
from fastunit.data.discovery import Domains
from fastunit.evaluation import distances
from fastunit.models.styled_pair import StyledPair
from fastunit.models.unit import networks
from fastunit.training import held_out, scoring
from tests.support.munit import munit as styled

CPU = torch.device("cpu")


class Levels:
    """Features: the mean of each channel."""

    label = kernel = frechet = "levels"

    def __call__(self, x: Tensor) -> Tensor:
        return x.double().mean((2, 3))

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return (self(x) - self(y)).abs().mean(1)


class Darker(nn.Module):
    """Halves values on the way to b, and leaves them on the way back."""

    def translate(self, x: Tensor, way: str) -> Tensor:
        return x / 2 if way == "a2b" else x


@pytest.fixture
def settings(tiny) -> config.Config:
    return config.from_dict(tiny)


@pytest.fixture
def munit(tiny) -> StyledPair:
    pair = networks(config.from_dict(styled(tiny)))
    with torch.no_grad():  # new networks hardly depend on the style
        for p in pair.parameters():
            p.add_(torch.randn_like(p) / 10)
    return pair.generator_pair()


def test_translations_in_two_styles_are_compared(settings, domains, munit):
    files = list(domains.test_a)
    scores, _ = scoring.Scorer(settings, domains, Levels(), CPU).score(munit)
    codes = munit.random_styles(10 * len(files), seed=0).view(len(files), 2, 5, -1)
    one, other = (
        torch.cat(
            [
                munit.eval().translate(images([file], settings), "a2b", codes[n, kind, draw][None])
                for n, file in enumerate(files)
                for draw in range(5)
            ]
        )
        for kind in range(2)
    )
    found = scores["a2b"]["diversity"]
    assert set(found) == {"l1", "features"} and found["l1"].value > 1e-3
    assert found["l1"].value == pytest.approx((one - other).abs().mean().item(), rel=1e-4)
    wanted = Levels().distance(one, other).mean().item()
    assert found["features"].value == pytest.approx(wanted, rel=1e-4)


def test_networks_without_styles_have_no_diversity(settings, domains):
    scores, _ = scoring.Scorer(settings, domains, None, CPU).score(Darker())
    assert "diversity" not in scores["a2b"]


@pytest.fixture
def domains(photos: Path, settings) -> Domains:
    return discovery.find_domains(
        config.from_dict(config.to_dict(settings) | {"data_root": str(photos)})
    )


def images(files, settings) -> Tensor:
    read = held_out.read(files, settings.domain("a"), settings, settings.crop, CPU)
    return torch.cat(list(read))


def test_sets_are_compared_with_the_target_s_test_images(settings, domains):
    scores, rankings = scoring.Scorer(settings, domains, Levels(), CPU).score(Darker())
    test_a, test_b, train_b = (
        Levels()(images(files, settings))
        for files in (domains.test_a, domains.test_b, (domains.train_b[0], domains.train_b[-1]))
    )
    kernel = scores["a2b"]["kernel"]
    assert kernel["translation"].value == pytest.approx(distances.kernel(test_a / 2, test_b))
    assert kernel["ceiling"].value == pytest.approx(distances.kernel(test_a, test_b))
    assert kernel["floor"].value == pytest.approx(distances.kernel(train_b, test_b))  # as many
    frechet = scores["b2a"]["frechet"]
    assert frechet["translation"] == frechet["ceiling"]  # b is left as it is
    x = images(domains.test_a, settings)
    error = (x / 2).abs().mean((1, 2, 3))
    assert scores["a2b"]["cycle_l1"].value == pytest.approx(error.mean().item(), rel=1e-5)
    assert {way: len(ranking) for way, ranking in rankings.items()} == {"a2b": 2, "b2a": 2}


def test_pairs_have_errors_of_each_image_and_are_ranked(settings, domains):
    scorer = scoring.Scorer(settings, domains, Levels(), CPU)
    scores, rankings = scorer.score(Darker())
    a, b = images(domains.test_a, settings), images(domains.test_b, settings)
    errors = (a / 2 - b).abs().mean((1, 2, 3))
    pairs = scores["a2b"]["pairs"]
    assert pairs["count"] == 2
    assert pairs["paired"]["l1"].value == pytest.approx(errors.mean().item(), rel=1e-5)
    assert pairs["figures"]["paired_l1"] == pytest.approx(pairs["paired"]["l1"].value)
    assert {"l1", "psnr", "ssim", "features"} == pairs["paired"].keys()
    assert {"paired", "identity", "constant", "statistics"} <= pairs.keys()
    ranked = sorted(zip(errors.tolist(), domains.test_a, strict=True))
    assert [file for _, file in rankings["a2b"]] == [file for _, file in ranked]
    assert [error for error, _ in rankings["a2b"]] == pytest.approx(
        [e for e, _ in ranked], rel=1e-5
    )
    (example,) = scorer.examples(Darker(), "a2b", [domains.test_a[1]])
    for found, wanted in zip(example, (a[1], a[1] / 2, b[1]), strict=True):
        assert torch.equal(found, wanted)


def test_without_an_extractor_there_are_no_distances_of_sets(settings, domains):
    scores, _ = scoring.Scorer(settings, domains, None, CPU).score(Darker())
    assert "kernel" not in scores["a2b"] and "cycle_l1" in scores["a2b"]
    assert "features" not in scores["a2b"]["pairs"]["paired"]


def test_without_test_images_there_is_no_score(settings, domains):
    with pytest.raises(DataError, match="testA and testB"):
        scoring.Scorer(settings, Domains(domains.train_a, domains.train_b, (), ()), None, CPU)


def test_plain_values_for_json():
    measured = distances.Measured(1.0, None)
    assert scoring.plain({"a": {"b": measured, "c": 2}}) == {
        "a": {"b": {"value": 1.0, "margin": None}, "c": 2}
    }
