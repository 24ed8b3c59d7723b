"""Training on a caller's own iterables: `fastunit.fit(config, loaders=(a, b))`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import fastunit
from fastunit import config
from fastunit.common.errors import ConfigError, DataError
from fastunit.training import checkpoint
from fastunit.training.streams import Stream

CPU = torch.device("cpu")


def images(count: int, size: int = 16, channels: int = 3) -> Tensor:
    random = torch.Generator().manual_seed(count)
    return torch.rand(count, channels, size, size, generator=random) * 2 - 1


class Cycle:
    """Batches of two out of `count` images, with a place that can be saved."""

    def __init__(self, count: int, offset: float = 0.0) -> None:
        self._images, self.place = images(count) * (1 - abs(offset)) + offset, 0

    def __iter__(self) -> Iterator[Tensor]:
        while self.place + 2 <= len(self._images):
            self.place += 2
            yield self._images[self.place - 2 : self.place]
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


@pytest.fixture
def settings(tiny) -> config.Config:
    every = {"log_iter": 1, "image_save_iter": 2, "snapshot_save_iter": 2}
    return config.from_dict(tiny | every | {"new_size": None})


def test_torch_s_data_loader_trains(settings, tmp_path):
    loaders = [
        DataLoader(TensorDataset(images(count)), 2, shuffle=True, drop_last=True)
        for count in (5, 7)
    ]
    done = fastunit.fit(settings, output=tmp_path / "run", loaders=tuple(loaders), device="cpu")
    assert done.finished and done.iteration == 4 and "a2b" not in done.measures
    assert (done.folder / "index.html").is_file() and (done.folder / "samples/latest.png").is_file()
    y = fastunit.load(done.folder, "cpu").translate(images(1), "a2b")
    assert y.shape == (1, 3, 16, 16)


def test_batches_are_what_the_iterable_gives_in_its_order_and_over_again(settings):
    stream = Stream(Cycle(4), "a", settings, CPU)
    first = stream.peek()
    found = [next(stream) for _ in range(5)]
    assert found[0] is first and torch.equal(torch.cat(found[:2]), images(4))
    assert torch.equal(found[2], found[0]) and torch.equal(found[3], found[1])
    assert found[0].is_contiguous(memory_format=torch.channels_last)


def test_a_run_is_resumed_to_the_bit(settings, tmp_path):
    def fit(folder: str, **options: Any) -> Path:
        chosen = config.from_dict(config.to_dict(settings) | options.pop("changes", {}))
        loaders = Cycle(6), Cycle(10, 0.2)
        done = fastunit.fit(chosen, output=tmp_path / folder, loaders=loaders, **options)
        return done.folder

    whole = fit("whole")
    fit("parts", changes={"max_iter": 2})
    parts = fit("parts", resume=True)
    one, other = (checkpoint.load(checkpoint.path_of(each, 4)) for each in (whole, parts))
    assert other["streams"] == [{"place": 2}, {"place": 8}]
    assert all(torch.equal(one["unit"][key], other["unit"][key]) for key in one["unit"])


def test_without_a_state_a_resumed_run_says_that_it_starts_anew(settings, tmp_path, caplog):
    loaders = [images(2)], [images(2)]
    short = config.from_dict(config.to_dict(settings) | {"max_iter": 2})
    fastunit.fit(short, output=tmp_path / "run", loaders=loaders)
    with caplog.at_level(logging.WARNING, "fastunit"):
        fastunit.fit(settings, output=tmp_path / "run", resume=True, loaders=loaders)
    assert "the loader of domain a has no state_dict" in caplog.text


BAD = {
    "empty": ([], "gave no batch"),
    "exhausted": (iter([]), "gave no batch"),
    "no tensor": ([3], "gave int"),
    "whole numbers": ([images(2).byte()], r"gave torch\.uint8"),
    "one image": ([images(2)[0]], r"gave torch\.float32 \(3, 16, 16\)"),
    "a short batch": ([images(1)], r"gave a batch of 1 images of 3 channels.*drop_last=True"),
    "gray": ([images(2, channels=1)], "gave a batch of 2 images of 1 channels"),
    "another size": ([images(2, 32)], "gave images of 32x32, but crop_image_height"),
    "levels": ([images(2) * 127.5 + 127.5], r"gave values .*scale images to \[-1, 1\]"),
    "not finite": ([images(2) * float("nan")], r"gave values nan\.\.nan"),
}


@pytest.mark.parametrize(("source", "words"), BAD.values(), ids=BAD)
def test_what_is_no_batch_is_refused_before_anything_is_written(settings, tmp_path, source, words):
    with pytest.raises(DataError, match=f"the loader of domain b {words}"):
        fastunit.fit(settings, output=tmp_path / "run", loaders=([images(2)], source))
    assert not (tmp_path / "run").exists()


def test_loaders_and_files_are_not_mixed(settings):
    both = config.from_dict(config.to_dict(settings) | {"data_root": "photos"})
    with pytest.raises(ConfigError, match="loaders and data_root are both given"):
        fastunit.fit(both, loaders=([images(2)], [images(2)]))
    with pytest.raises(ConfigError, match="two iterables"):
        fastunit.fit(settings, loaders=[images(2)])
