"""Statistics of a training set, the predictions made of them, and retrieval."""

from __future__ import annotations

import pytest
import torch

from fastunit.training import baselines
from fastunit.training.baselines import Statistics


def column(*values: float) -> torch.Tensor:
    """Return images of one channel and 1x2 pixels, whose second pixel is always 0.3."""
    return torch.tensor([[[[value, 0.3]]] for value in values])


def test_mean_and_spread_at_each_place_over_uneven_batches():
    found = baselines.statistics([column(0.25, 0.75), column(-0.5)])
    assert found.mean.dtype == found.std.dtype == torch.float64
    assert found.mean.shape == (1, 1, 2)
    values = torch.tensor([0.25, 0.75, -0.5], dtype=torch.float64)
    torch.testing.assert_close(found.mean[0, 0, 0], values.mean(), rtol=0, atol=1e-15)
    expected = values.std(correction=0)
    torch.testing.assert_close(found.std[0, 0, 0], expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_what_never_varies_has_exactly_no_spread(count):
    found = baselines.statistics([column(*[0.1] * count), column(0.1)])
    assert (found.std == 0).all()
    assert found.mean[0, 0, 0] == torch.tensor(0.1).double()


def test_a_small_spread_on_a_large_mean_is_kept():
    x = torch.full((1000, 1, 1, 1), 0.999)
    x[500] -= 1 / 127.5
    found = baselines.statistics(x.split(7))
    torch.testing.assert_close(found.std, x.double().std(0, correction=0), rtol=1e-9, atol=0)


def test_batches_are_left_as_they_were_and_sizes_must_agree():
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    before = x.clone()
    baselines.statistics([x, x])
    assert torch.equal(x, before)
    assert baselines.statistics([x, x[..., :4]]) is None
    assert baselines.statistics([x[:, :1], x]) is None


def test_an_input_takes_on_the_targets_statistics():
    source = Statistics(torch.tensor([[[0.2, 0.0, 0.5]]]).double(), torch.tensor([[[0.1, 0.5, 0]]]))
    target = Statistics(torch.tensor([[[-0.4, 0.5, 0.7]]]), torch.tensor([[[0.2, 0.5, 0.4]]]))
    x = torch.tensor([[[[0.3, 0.9, -1.0]]]])
    found = baselines.restyled(x, source, target)
    # A step of one deviation; clipped at 1; a place that never varied says nothing.
    torch.testing.assert_close(found, torch.tensor([[[[-0.2, 1.0, 0.7]]]]).double())


@pytest.mark.parametrize("count", [1, 15, 16, 17, 33])
def test_every_picture_is_its_own_nearest(count):
    truths = torch.rand(count, 3, 2, 2)
    assert baselines.retrieved(truths + 1e-4, truths, 0) == count


def test_images_of_a_later_batch_are_set_against_their_own_truth():
    truths = torch.arange(20.0).reshape(20, 1, 1, 1)
    images = truths[17:20]
    assert baselines.retrieved(images, truths, 17) == 3
    assert baselines.retrieved(images, truths, 16) == 0
    assert baselines.retrieved(images[[0, 2, 1]], truths, 17) == 1


@pytest.mark.parametrize("level", [-1.0, 0.3, 1.0])
def test_one_picture_for_all_inputs_is_at_chance(level):
    truths = torch.rand(19, 1, 3, 3)
    assert baselines.retrieved(torch.full_like(truths, level), truths, 0) == 1


def test_truths_that_are_alike_share_their_hits():
    truths = torch.arange(20.0).reshape(20, 1, 1, 1)
    truths[18] = truths[1]
    assert baselines.retrieved(truths, truths, 0) == 19
    assert baselines.retrieved(truths[:2], truths, 0) == 1.5
    alike = torch.full((4, 1, 1, 1), 0.5)
    assert baselines.retrieved(alike, alike, 0) == 1


def test_pictures_that_are_not_finite_are_not_retrieved():
    truths = torch.rand(3, 1, 2, 2)
    images = truths.clone()
    images[1] = float("nan")
    assert baselines.retrieved(images, truths, 0) == 2


def test_truths_that_are_alike_tie_across_chunks_and_batches(monkeypatch):
    monkeypatch.setattr(baselines, "_CHUNK", 5)
    truths = torch.rand(13, 3, 7, 5)
    truths[12] = truths[0]
    assert baselines.retrieved(truths[:3], truths, 0) == 2.5
    assert baselines.retrieved(truths[12:], truths, 12) == 0.5
