"""Videos: every frame as a picture is translated, with its time, and the sound as it was."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastunit
from fastunit.common.errors import DataError
from fastunit.data.image_io import Limits
from fastunit.inference import video
from fastunit.translate import main

av = pytest.importorskip("av", reason="writes and reads the videos")
TIMES = [0, 1, 2, 4, 7, 8, 9]  # in tenths of a second


def patches(count: int = len(TIMES), height: int = 48, width: int = 64) -> np.ndarray:
    """Return frames of four colours each: uint8 [N, H, W, 3]."""
    colours = np.random.default_rng(0).integers(0, 256, (count, 2, 2, 3), np.uint8)
    return np.repeat(np.repeat(colours, height // 2, 1), width // 2, 2)


def make(file: Path, frames: np.ndarray, *, sound: str = "", turned: int = 0) -> Path:
    """Write a nearly lossless video; `sound` is a codec."""
    with av.open(str(file), "w") as made:
        stream = made.add_stream("libx264rgb", rate=10, options={"crf": "0"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.codec_context.time_base = "rgb24", Fraction(1, 10)
        if turned:
            stream.set_display_rotation(turned)
        if sound:
            audio = made.add_stream(sound, rate=16000)
            samples = np.random.default_rng(1).uniform(-0.5, 0.5, (1, 16000)).astype(np.float32)
            if sound == "aac":
                spoken = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            else:
                values = (samples * 2**15).astype(np.int16)
                spoken = av.AudioFrame.from_ndarray(values, format="s16", layout="mono")
            spoken.sample_rate = 16000
        for pixels, time in zip(frames, TIMES, strict=False):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 10)
            made.mux(stream.encode(frame))
        made.mux(stream.encode())
        if sound:
            made.mux(audio.encode(spoken))
            made.mux(audio.encode())
    return file


def read(file: Path) -> tuple[np.ndarray, list[float]]:
    """Return a video's frames and their times in seconds."""
    with av.open(str(file)) as given:
        frames = list(given.decode(video=0))
        pixels = [frame.to_ndarray(format="rgb24", src_colorspace=1) for frame in frames]
        return np.stack(pixels), [float(frame.time) for frame in frames]


def sound_of(file: Path) -> list[bytes]:
    with av.open(str(file)) as given:
        return [bytes(packet) for packet in given.demux(audio=0) if packet.size]


def negative(frames: list[np.ndarray]) -> Sequence[np.ndarray]:
    return [255 - pixels for pixels in frames]


def run(source: Path, target: Path, frames: video.Frames = negative, **options: object) -> int:
    return video.translate(source, target, frames, **{"batch": 3, "limits": Limits()} | options)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm"])
def test_frames_are_translated_and_keep_their_times(tmp_path, suffix):
    source = make(tmp_path / "in.mkv", patches())
    target = tmp_path / f"new/out{suffix}"
    assert run(source, target) == len(TIMES)
    found, times = read(target)
    assert np.allclose(times, np.array(TIMES) / 10, atol=2e-3)
    inner = np.abs(found.astype(int) - (255 - patches()))[:, 8:16, 8:24]  # within a patch
    assert inner.mean() < 2 and inner.max() < 12
    assert [entry.name for entry in target.parent.iterdir()] == [target.name]


def test_frames_come_in_batches(tmp_path):
    sizes = []

    def count(frames: list[np.ndarray]) -> Sequence[np.ndarray]:
        sizes.append(len(frames))
        return frames

    run(make(tmp_path / "in.mkv", patches()), tmp_path / "out.mp4", count)
    assert sizes == [3, 3, 1]


def test_the_sound_is_copied(tmp_path):
    source = make(tmp_path / "in.mkv", patches(), sound="aac")
    run(source, tmp_path / "out.mp4")
    assert sound_of(tmp_path / "out.mp4") == sound_of(source) != []


@pytest.mark.parametrize(
    ("suffix", "sound"), [(".webm", "aac"), (".mp4", "pcm_u8"), (".mp4", "pcm_s16le")]
)
def test_sound_that_a_format_cannot_hold_is_named(tmp_path, suffix, sound):
    source = make(tmp_path / "in.mkv", patches(), sound=sound)
    with pytest.raises(DataError, match=rf"{suffix} cannot hold its sound, {sound}; choose mkv"):
        run(source, tmp_path / f"out{suffix}")
    assert not (tmp_path / f"out{suffix}").exists()


def test_odd_sizes_keep_every_pixel(tmp_path):
    source = make(tmp_path / "in.mkv", patches(height=48, width=64)[:, :47, :63])
    run(source, tmp_path / "out.mp4")
    assert read(tmp_path / "out.mp4")[0].shape == (len(TIMES), 47, 63, 3)


def test_a_turned_video_is_set_upright(tmp_path):
    source = make(tmp_path / "in.mp4", patches(), turned=90)
    with av.open(str(source)) as given:
        assert next(given.decode(video=0)).rotation == 90
    run(source, tmp_path / "out.mp4", lambda frames: frames)
    found, _ = read(tmp_path / "out.mp4")
    expected = np.rot90(patches(), 1, (1, 2))
    assert np.abs(found.astype(int) - expected)[:, 8:16, 8:16].mean() < 2


def test_what_cannot_be_read_is_refused_and_nothing_is_left(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    silent = tmp_path / "sound.mkv"
    with av.open(str(silent), "w") as made:
        audio = made.add_stream("aac", rate=16000)
        zeros = av.AudioFrame.from_ndarray(np.zeros((1, 1024), "f4"), format="fltp", layout="mono")
        zeros.sample_rate = 16000
        made.mux(audio.encode(zeros))
        made.mux(audio.encode())
    big = make(tmp_path / "big.mkv", patches())
    for file, message, limits in (
        (tmp_path / "text.mp4", "damaged, or of a kind that is not read: Invalid data", Limits()),
        (silent, "there is no video in it", Limits()),
        (big, "too large: 64x48 pixels", Limits(pixels=1000)),
    ):
        with pytest.raises(DataError, match=message):
            run(file, tmp_path / "out.mp4", limits=limits)
    assert not list(tmp_path.glob("out*")) and not list(tmp_path.glob(".*"))


def test_a_file_that_ends_early_is_refused(tmp_path):
    source = make(tmp_path / "in.mp4", patches())
    source.write_bytes(source.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"damaged|it has no frames"):
        run(source, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


def test_a_stream_that_is_cut_is_said_to_be(tmp_path, caplog):
    frames = np.random.default_rng(2).integers(0, 256, (7, 96, 96, 3), np.uint8)
    source = make(tmp_path / "in.mkv", frames)
    assert run(source, tmp_path / "whole.mkv") and not caplog.records
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    run(source, tmp_path / "out.mkv")
    (record,) = caplog.records
    assert "in.mkv: its frames end at 0." in record.getMessage()
    assert "of 1.00 seconds; it may have been cut off" in record.getMessage()


def test_an_error_in_writing_is_the_video_s_not_the_disk_s(tmp_path, monkeypatch):
    def unsupported(self, pixels, time):
        raise av.error.OSError(95, "Operation not supported")

    monkeypatch.setattr(video._Writer, "add", unsupported)
    with pytest.raises(DataError, match="Operation not supported"):
        run(make(tmp_path / "in.mkv", patches()), tmp_path / "out.mkv")
    assert not list(tmp_path.glob("out*"))


# ---- the command line


def test_pictures_beside_videos_that_cannot_be_translated_are(tmp_path, model, capsys):
    (tmp_path / "in").mkdir()
    make(tmp_path / "in/x.mkv", patches(height=32, width=32))
    Image.fromarray(patches(1, 32, 32)[0]).save(tmp_path / "in/y.png")
    words = ["--direction", "a2b", "--device", "cpu", "--bits", "16"]
    assert main([*map(str, (model, tmp_path / "in", tmp_path / "out")), *words]) == 1
    assert "x.mkv: videos have 8 bits" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["y.png"]
    assert main([*map(str, (model, tmp_path / "in/x.mkv", tmp_path / "z.mkv")), *words]) == 2


def test_the_command_translates_videos_as_their_frames(tmp_path, model, capsys):
    (tmp_path / "in/deep").mkdir(parents=True)
    make(tmp_path / "in/deep/x.mkv", patches(height=32, width=32), sound="aac")
    words = ["--direction", "a2b", "--device", "cpu"]
    assert main([str(model), str(tmp_path / "in"), str(tmp_path / "out"), *words]) == 0
    assert "translated 1 of 1 images a2b" in capsys.readouterr().out
    found, _ = read(tmp_path / "out/deep/x.mkv")
    translator = fastunit.load(model, "cpu")

    def by_library(frames: list[np.ndarray]) -> Sequence[np.ndarray]:
        return translator.translate(np.stack(frames), "a2b")

    run(tmp_path / "in/deep/x.mkv", tmp_path / "own.mkv", by_library, batch=8)
    assert np.array_equal(found, read(tmp_path / "own.mkv")[0])
    assert main([str(model), str(tmp_path / "in"), str(tmp_path / "two"), *words]) == 0
    again, _ = read(tmp_path / "two/deep/x.mkv")
    assert np.array_equal(found, again)


def test_a_damaged_video_is_listed_and_the_others_are_done(tmp_path, model, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bad.mp4").write_text("no video")
    make(tmp_path / "in/x.mp4", patches(height=32, width=32))
    words = ["--direction", "a2b", "--device", "cpu"]
    assert main([str(model), str(tmp_path / "in"), str(tmp_path / "out"), *words]) == 1
    assert "bad.mp4: damaged, or of a kind that is not read" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.mp4"]
