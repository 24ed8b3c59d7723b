"""What a stream and a test set promise, by either reader. Pixels: test_pixels.py."""

from __future__ import annotations

import os
import signal
import struct
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastunit.common import waiting
from fastunit.common.errors import ConfigError, DataError
from fastunit.data import read_ahead
from fastunit.data.discovery import find_domains
from fastunit.data.pipeline import DomainLoader, iter_images
from fastunit.data.validation import SizeRule, validate

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, params=["dali", "pillow"])
def reader(request, monkeypatch) -> str:
    """What reads the images where a test leaves it open."""
    if request.param == "dali":
        pytest.importorskip("nvidia.dali", reason="one of the readers is NVIDIA DALI")
    else:
        monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    return request.param


def loader(files, **options) -> DomainLoader:
    defaults = dict(channels=3, batch_size=4, crop=(8, 8), new_size=None, seed=5, stream=0)
    return DomainLoader(files, device=CPU, **(defaults | options))


def whole(files, channels=3) -> list[torch.Tensor]:
    return list(
        iter_images(files, channels=channels, batch_size=4, crop=None, new_size=None, device=CPU)
    )


@pytest.fixture
def plain(tmp_path) -> list[Path]:
    """Eleven pictures of one grey level each, 10 apart: a pixel tells which file it came from."""
    files = [tmp_path / f"{i:02}.png" for i in range(11)]
    for i, file in enumerate(files):
        Image.new("RGB", (8 + i, 20 - i), (10 * i,) * 3).save(file)
    return files


@pytest.fixture
def ramp(tmp_path) -> list[Path]:
    """One 12x14 (height x width) picture: red is the column, green the row, times 10."""
    y, x = np.mgrid[0:12, 0:14]
    file = tmp_path / "ramp.png"
    Image.fromarray(np.stack([10 * x, 10 * y, 0 * x], -1).astype(np.uint8)).save(file)
    return [file]


def order(stream: DomainLoader, samples: int) -> list[int]:
    """The numbers of the next files of a stream over `plain`."""
    batches = [next(stream) for _ in range(-(-samples // 4))]
    grey = torch.cat(batches)[:samples].mean((1, 2, 3))
    return ((grey + 1) * 12.75).round().int().tolist()


def test_batches_are_channels_last_float_in_range(tmp_path):
    Image.fromarray(np.indices((9, 30)).sum(0).astype(np.uint8) % 2 * 255).save(tmp_path / "x.png")
    batch = next(loader([tmp_path / "x.png"], crop=(8, 24), batch_size=2))
    assert batch.shape == (2, 3, 8, 24) and batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last) and batch.device == CPU
    assert batch.unique().tolist() == [-1.0, 1.0]


def test_a_batch_stays_valid_after_further_calls(plain):
    stream = loader(plain)
    first = next(stream)
    before = first.clone()
    for _ in range(8):
        next(stream).fill_(7)
    assert torch.equal(first, before)


@pytest.mark.parametrize("position", [0, 1, 4, 10, 11, 13, 25])
def test_resumes_bitwise_at_any_position(plain, position):
    whole_run = loader(plain, crop=(6, 5))
    samples = torch.cat([next(whole_run) for _ in range(10)])
    assert whole_run.position == 40
    resumed = loader(plain, crop=(6, 5), position=position)
    assert resumed.position == position
    assert torch.equal(torch.cat([next(resumed) for _ in range(3)]), samples[position:][:12])
    assert resumed.position == position + 12


def test_resumes_where_another_loader_stopped_with_another_thread_count(ramp):
    stream = loader(ramp, threads=1)
    for _ in range(3):
        next(stream)
    resumed = loader(ramp, threads=4, position=stream.position)
    for _ in range(3):
        assert torch.equal(next(stream), next(resumed))


def test_each_epoch_has_every_file_once_in_its_own_order(plain):
    seen = order(loader(plain), 33)
    epochs = [seen[:11], seen[11:22], seen[22:]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(11))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_depends_on_seed_and_stream_only(plain):
    first = order(loader(plain), 11)
    assert order(loader(plain), 11) == first
    assert order(loader(plain, crop=(4, 6)), 11) == first
    assert order(loader(plain, seed=6), 11) != first
    assert order(loader(plain, stream=1), 11) != first
    assert order(loader(plain, seed=2**40 + 5), 11) != first


def test_domains_of_equal_size_never_pair_up_alike(plain):
    pairs = list(zip(order(loader(plain), 44), order(loader(plain, stream=1), 44), strict=True))
    assert len({tuple(pairs[i : i + 11]) for i in range(0, 44, 11)}) == 4
    assert all(sorted(pairs[i : i + 11]) != sorted(pairs[:11]) for i in (11, 22, 33))


def test_domains_of_different_sizes_never_pair_up_alike(plain):
    few = plain[:5]
    pairs = list(zip(order(loader(plain), 220), order(loader(few, stream=1), 220), strict=True))
    for length in (11, 5, 55):  # an epoch of either, and where both begin anew together
        passes = [tuple(pairs[i : i + length]) for i in range(0, 220, length)]
        assert len(set(passes)) == len(passes) > 1


def test_a_batch_may_be_larger_than_the_domain(plain):
    batch = next(loader(plain[:3], batch_size=8))
    grey = ((batch.mean((1, 2, 3)) + 1) * 12.75).round().int().tolist()
    assert sorted(grey[:3]) == sorted(grey[3:6]) == [0, 1, 2]


def test_crops_and_flips_are_uniform_and_exact(ramp):
    stream = loader(ramp, crop=(10, 8), batch_size=50)
    pixels = ((torch.cat([next(stream) for _ in range(14)]) + 1) * 12.75).round()
    columns, rows = pixels[:, 0, 0], pixels[:, 1, :, 0]
    flipped = columns[:, 0] > columns[:, -1]
    left = columns.amin(1)
    assert torch.equal(columns.sort(1).values, left[:, None] + torch.arange(8.0))
    assert torch.equal(rows, rows[:, :1] + torch.arange(10.0))
    # 700 samples: five standard deviations about the expected counts
    assert abs(int(flipped.sum()) - 350) < 5 * (700 * 0.25) ** 0.5
    for counts, places in ((left.int().bincount(), 7), (rows[:, 0].int().bincount(), 3)):
        expected, deviation = 700 / places, (700 * (places - 1)) ** 0.5 / places
        assert len(counts) == places and (counts - expected).abs().max() < 5 * deviation


def test_without_flips_the_stream_is_the_same_unmirrored(ramp):
    """The order and the crops stay, so only the mirrored samples change."""
    mirrored, plain = loader(ramp), loader(ramp, flip=False)
    with_flips = torch.cat([next(mirrored) for _ in range(20)])
    without = torch.cat([next(plain) for _ in range(20)])
    assert (without[:, 0, 0].diff(dim=1) > 0).all()  # red grows with the column
    flipped = with_flips[:, 0, 0, 0] > with_flips[:, 0, 0, -1]
    assert 20 < flipped.sum() < 60
    assert torch.equal(
        torch.where(flipped[:, None, None, None], with_flips.flip(3), with_flips), without
    )
    resumed = loader(ramp, flip=False, position=37)
    assert torch.equal(torch.cat([next(resumed) for _ in range(3)]), without[37:49])


def test_no_workers_decode_in_one_thread(ramp):
    assert torch.equal(next(loader(ramp, threads=0)), next(loader(ramp, threads=2)))


def test_test_images_come_once_in_order_with_a_smaller_last_batch(plain):
    batches = list(
        iter_images(plain, channels=3, batch_size=4, crop=(8, 8), new_size=None, device=CPU)
    )
    assert [len(batch) for batch in batches] == [4, 4, 3]
    grey = (torch.cat(batches).mean((1, 2, 3)) + 1) * 12.75
    assert grey.round().int().tolist() == list(range(11))
    assert all(b.is_contiguous(memory_format=torch.channels_last) for b in batches)


def test_the_centre_is_cropped_unflipped(ramp):
    (image,) = iter_images(ramp, channels=3, batch_size=4, crop=(6, 8), new_size=None, device=CPU)
    pixels = ((image[0] + 1) * 12.75).round()
    assert pixels[0, 0].tolist() == list(range(3, 11))
    assert pixels[1, :, 0].tolist() == list(range(3, 9))


def test_whole_images_keep_their_own_sizes(plain):
    assert [tuple(x.shape) for x in whole(plain)] == [(1, 3, 20 - i, 8 + i) for i in range(11)]


def test_pictures_with_other_channels_than_the_domain_are_refused_by_name(plain):
    for read in (lambda: next(loader(plain, channels=4)), lambda: whole(plain, channels=4)):
        with pytest.raises(DataError, match=r"\.png \(4 channels are read from TIFF and .npy"):
            read()


def test_no_files_and_negative_seeds_are_refused(plain):
    with pytest.raises(DataError, match="no image files"):
        loader([])
    with pytest.raises(ConfigError, match="seed is -1"):
        loader(plain, seed=-1)


def test_dali_that_is_missing_cannot_be_forced(plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(DataError, match=r"data.loader=dali needs .*pip install .*\[train\]"):
        loader(plain, loader="dali")
    with pytest.raises(DataError, match=r"--set data\.loader=pillow"):
        iter_images(
            plain, channels=3, batch_size=4, crop=None, new_size=None, device=CPU, loader="dali"
        )


def text(file: Path) -> None:
    file.write_text("no image\n" * 50)


def shrink(file: Path) -> None:
    Image.new("RGB", (9, 7)).save(file)


CHANGES = [(Path.unlink, "No such file"), (text, "not an image"), (shrink, "too small: 9x7")]


@pytest.mark.parametrize(("change", "reason"), CHANGES)
def test_a_file_changed_since_the_check_is_named(plain, change, reason):
    change(plain[3])
    stream = loader(plain)
    with pytest.raises(DataError) as error:
        for _ in range(4):
            next(stream)
    assert f"cannot read {plain[3]} ({reason}" in str(error.value)
    images = iter_images(plain, channels=3, batch_size=2, crop=(8, 8), new_size=None, device=CPU)
    with pytest.raises(DataError, match=f"cannot read {plain[3]} "):
        list(images)


def test_a_stream_ends_with_its_first_error(plain):
    content = plain[3].read_bytes()
    plain[3].unlink()
    stream = loader(plain)
    with pytest.raises(DataError, match="cannot read"):
        for _ in range(4):
            next(stream)
    plain[3].write_bytes(content)
    with pytest.raises(DataError, match="has ended with an earlier error"):
        next(stream)


def test_a_file_that_passed_the_check_must_keep_its_content(plain):
    validate(plain, rule=SizeRule(None, (8, 8)), workers=1, skip_bad=False)
    status = plain[3].stat()
    Image.new("RGB", Image.open(plain[3]).size, "red").save(plain[3])  # as good as the first one
    os.utime(plain[3], ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match=f"cannot read {plain[3]} .its content is another one"):
        whole(plain)


def test_a_pipe_in_place_of_a_file_does_not_block(plain):
    plain[3].unlink()
    os.mkfifo(plain[3])
    with pytest.raises(DataError, match=f"cannot read {plain[3]} .not a regular file but a named"):
        whole(plain)


def test_a_wait_for_a_file_can_be_interrupted_and_says_which(plain, monkeypatch):
    """A dead network mount: reads do not return."""
    dead, seen, read = threading.Event(), [], read_ahead.content

    def stalled(file: Path, limits):
        if file == plain[5]:
            dead.wait(20)
        return read(file, limits)

    def hear(number: int, frame: object) -> None:
        seen.append(waiting.current())
        raise KeyboardInterrupt

    monkeypatch.setattr(read_ahead, "content", stalled)
    before = signal.signal(signal.SIGALRM, hear)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    start = time.perf_counter()
    try:
        with pytest.raises(KeyboardInterrupt):
            whole(plain)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        dead.set()
    assert time.perf_counter() - start < 2
    assert seen == [f"the files {plain[5]}"]


def test_names_that_are_not_utf_8(tmp_path):
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    Image.new("RGB", (8, 8), "white").save(os.fsencode(file))
    assert validate([file], rule=SizeRule(None, None), workers=1, skip_bad=False) == (file,)
    assert next(loader([file])).unique().tolist() == [1.0]
    file.unlink()
    with pytest.raises(DataError, match=r"caf\\xe9\.png .No such file"):
        next(loader([file]))


def test_planar_tiffs_are_read_in_silence(tmp_path, capfd):
    planes = np.random.default_rng(0).integers(0, 256, (3, 8, 12), np.uint8)
    tags = [(256, 12), (257, 8), (258, 8), (259, 1), (262, 2), (277, 3), (278, 8), (284, 2)]
    entries = [struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags]
    offsets = struct.pack("<3I3I", *(150 + 24 + 96 * k for k in range(3)), 96, 96, 96)
    entries[5:5] = [struct.pack("<HHII", 273, 4, 3, 150)]
    entries[8:8] = [struct.pack("<HHII", 279, 4, 3, 162)]
    directory = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(entries) + bytes(4)
    file = tmp_path / "x.tif"
    file.write_bytes(directory.ljust(150, b"\0") + offsets + planes.tobytes())
    (image,) = whole([file])
    assert np.array_equal(((image[0] + 1) * 127.5).round().byte().numpy(), planes)
    assert "ERROR" not in "".join(capfd.readouterr())


def test_odd_file_names(tmp_path):
    files = [tmp_path / name for name in ("ä ö.png", "日本.png", "a%20b,c;'.png")]
    for file in files:
        Image.new("RGB", (8, 8), "white").save(file)
    assert next(loader(files)).unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("name", "new_size", "crop"),
    [("day2night_amos", 150, (128, 96)), ("emoji_google2twitter", None, (64, 64))],
)
def test_the_shared_data_sets_stream(shared, name, new_size, crop):
    from fastunit.config import Config

    domains = find_domains(Config(data_root=str(shared / "data" / name)))
    files = domains.train_a[:24] + domains.test_b[:8]
    assert validate(files, rule=SizeRule(new_size, crop), workers=2, skip_bad=False) == files
    stream = loader(files, new_size=new_size, crop=crop, batch_size=8)
    batches = [next(stream) for _ in range(5)]
    assert {tuple(batch.shape) for batch in batches} == {(8, 3, *crop)}
    images = torch.cat(batches)
    assert images.min() >= -1 and images.max() <= 1 and images.std() > 0.2
