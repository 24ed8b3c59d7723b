"""Baselines without a network, made from the training sets' statistics, and retrieval."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 64  # true images in memory as float64 at a time


class Statistics(NamedTuple):
    """Mean and standard deviation of a domain's images at each position: float64 [C, H, W]."""

    mean: Tensor
    std: Tensor


def statistics(batches: Iterable[Tensor]) -> Statistics | None:
    """Return the statistics over the images of all batches [N, C, H, W], summed in float64.

    The standard deviation is the biased one (divided by the number of images), and exactly 0 where
    all images agree. Returns None if images differ in size.
    """
    count = 0
    origin = total = squares = torch.empty(0)  # of the first image's shape, once there is one
    for batch in batches:
        if not count:
            origin = batch[0].double()
            total, squares = torch.zeros_like(origin), torch.zeros_like(origin)
        elif batch.shape[1:] != origin.shape:
            return None
        x = batch.double() - origin  # exactly 0 where all images agree
        total += x.sum(0)
        squares += x.square().sum(0)
        count += len(x)
    shift = total / count
    return Statistics(origin + shift, (squares / count - shift.square()).clamp_min(0).sqrt())


def restyled(x: Tensor, source: Statistics, target: Statistics) -> Tensor:
    """Return images of the source [N, C, H, W] with the target's statistics, float64 in [-1, 1].

    (x - source.mean) / source.std * target.std + target.mean, clipped; the target's mean at
    positions where the source's standard deviation is 0.
    """
    scale = torch.where(source.std > 0, target.std / source.std, 0)
    return ((x - source.mean) * scale + target.mean).clamp(-1, 1)


def retrieved(images: Tensor, truths: Tensor, first: int) -> float:
    """Return the number of images that are nearer to their own true image than to any other.

    Images are [N, C, H, W], truths [M, C, H, W]; truths[first + i] belongs to image i. The
    distance is the L1 distance in float64. A tie between k truths counts 1/k, so that a constant
    prediction scores exactly chance, 1 in M.
    """
    x = images.double().flatten(1)
    parts = truths.split(_CHUNK)
    distance = torch.cat([torch.cdist(x, part.double().flatten(1), p=1) for part in parts], 1)
    places = torch.arange(len(x), device=x.device)
    nearest = distance == distance.amin(1, keepdim=True)
    hits = nearest[places, first + places] / nearest.sum(1).clamp_min(1)
    return hits.sum().item()
