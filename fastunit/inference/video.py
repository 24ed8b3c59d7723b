"""Translation of video files, frame by frame; sound is copied."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastunit.common import extras
from fastunit.common.errors import DataError
from fastunit.common.files import FULL, atomic
from fastunit.data.image_io import Limits

VIDEOS = (".mp4", ".mkv", ".mov", ".webm")
_CODECS = {".webm": ("libvpx-vp9", {"crf": "20", "b:v": "0"})}
_CODEC = ("libx264", {"crf": "14"})
_BT709, _BT601, _UNKNOWN = 1, 5, 2  # colours, as FFmpeg numbers them
_LIMITED = 1  # luminance of 16..235
_SLACK = 0.25  # seconds by which a file may exceed its last frame's end
_HIGH = 720  # lines from which on colours are BT.709's where a file does not say

_logger = logging.getLogger(__name__)
Frames = Callable[[list[np.ndarray]], Sequence[np.ndarray]]


def translate(source: Path, target: Path, frames: Frames, *, batch: int, limits: Limits) -> int:
    """Translate a video and return how many frames it has.

    Frames keep their times, and the sound is copied; subtitles and other streams are left out. MP4,
    MOV and MKV have H.264, WebM VP9, with the colours of ITU-R BT.709. Where a side is odd, colours
    have full resolution, which some players do not show.

    Args:
        source: a video.
        target: its extension, one of VIDEOS, is the format.
        frames: translates upright frames, uint8 [H, W, 3], of one size.
        batch: frames at a time.
        limits: `pixels` of a frame.

    Raises:
        DataError: the video cannot be read or written, or PyAV is not installed.
        OSError: the target cannot be written.
    """
    av = require()
    with _named(), av.open(str(source)) as given:
        if not given.streams.video:
            raise DataError("there is no video in it")
        # Inside: to `atomic` many of FFmpeg's errors are errors of the target.
        with atomic(target) as temporary, _named(), av.open(str(temporary), "w") as made:
            count, end = _copy(given, _Writer(made, given, target.suffix), frames, batch, limits)
        if end < (length := _length(given)) - _SLACK:
            _logger.warning(
                "%s: its frames end at %.2f of %.2f seconds; it may have been cut off",
                *(source, end, length),
            )
        return count


@contextmanager
def _named() -> Iterator[None]:
    """Raise errors of FFmpeg as DataError, or as OSError where a disk is full."""
    av = require()
    try:
        yield
    except av.error.FFmpegError as error:
        if error.errno in FULL:
            raise OSError(error.errno, error.strerror) from error
        raise DataError(f"damaged, or of a kind that is not read: {error.strerror}") from error


def _length(given: Any) -> float:
    """Return the seconds of the first video stream, as far as the file says; else 0."""
    video = given.streams.video[0]
    if video.duration is not None:
        return float(video.duration * video.time_base)
    said = re.fullmatch(r"(\d+):(\d+):([\d.]+)", video.metadata.get("DURATION", ""))  # of MKV
    hours, minutes, seconds = map(float, said.groups() if said else (0, 0, 0))
    return 3600 * hours + 60 * minutes + seconds


def require() -> Any:
    """Return PyAV; raises DataError, with the remedy, if it is not installed."""
    try:
        import av
    except ImportError as error:
        raise DataError(f"videos need PyAV; install it with: {extras.install('video')}") from error
    return av


def _copy(
    given: Any, writer: _Writer, frames: Frames, batch: int, limits: Limits
) -> tuple[int, float]:
    """Translate all frames; return how many there are, and the seconds until they end."""
    count, start, time = 0, None, 0
    waiting: list[tuple[np.ndarray, int]] = []

    def translate_waiting() -> None:
        if waiting:
            results = frames([pixels for pixels, _ in waiting])
            for pixels, (_, time) in zip(results, waiting, strict=True):
                writer.add(pixels, time)
            waiting.clear()

    for frame in _frames(given, writer, limits):
        pixels = _upright(frame)
        if waiting and waiting[0][0].shape != pixels.shape:
            raise DataError("the size of its frames changes")
        time = writer.time(count) if frame.pts is None else frame.pts
        start = time if start is None else start
        waiting.append((pixels, time))
        count += 1
        if len(waiting) == batch:
            translate_waiting()
    translate_waiting()
    if not count:
        raise DataError("it has no frames")
    writer.close()
    shown = (time - (start or 0)) * given.streams.video[0].time_base
    return count, float(shown + 1 / writer.rate)


def _frames(given: Any, writer: _Writer, limits: Limits) -> Iterator[Any]:
    """Yield the frames of the first video stream; packets of sound go to the writer."""
    video = given.streams.video[0]
    limits.check_size(video.width, video.height)
    video.thread_type = "AUTO"
    for packet in given.demux([video, *given.streams.audio]):
        if packet.stream.type == "audio":
            writer.copy(packet)
            continue
        for frame in packet.decode():
            limits.check_size(frame.width, frame.height)
            yield frame


def _upright(frame: Any) -> np.ndarray:
    """Return a frame as uint8 [H, W, 3], turned as the file says."""
    colours = frame.colorspace
    if colours == _UNKNOWN:
        colours = _BT709 if frame.height >= _HIGH else _BT601
    pixels = frame.to_ndarray(format="rgb24", src_colorspace=colours)
    return np.rot90(pixels, frame.rotation // 90) if frame.rotation % 360 else pixels


class _Writer:
    """Encodes frames, and copies sound, into an open container."""

    def __init__(self, made: Any, given: Any, suffix: str) -> None:
        self._made, self._given, self._suffix = made, given.streams.video[0], suffix
        codec, options = _CODECS.get(suffix.lower(), _CODEC)
        self.rate = self._given.average_rate or 25
        self._video = made.add_stream(codec, rate=self.rate, options=options)
        self._sounds, self._early, self._open = {}, [], False
        for sound in given.streams.audio:
            try:
                self._sounds[sound.index] = made.add_stream_from_template(sound)
            except ValueError as error:
                raise self._unfit(sound) from error

    def time(self, number: int) -> int:
        """Return the time of a frame in a video that has none, in units of the given video's."""
        return round(number / (self.rate * self._given.time_base))

    def add(self, pixels: np.ndarray, time: int) -> None:
        """Encode uint8 [H, W, 3], shown at a time in units of the given video's."""
        import av

        height, width = pixels.shape[:2]
        if not self._open:
            context = self._video.codec_context
            even = height % 2 == width % 2 == 0
            self._video.width, self._video.height = width, height
            self._video.pix_fmt = "yuv420p" if even else "yuv444p"
            context.time_base = self._given.time_base
            context.colorspace, context.color_range = _BT709, _LIMITED
            context.color_primaries = context.color_trc = _BT709
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
            format=self._video.pix_fmt, dst_colorspace=_BT709, dst_color_range=_LIMITED
        )
        frame.pts, frame.time_base = time, self._given.time_base
        self._made.mux(self._video.encode(frame))
        if not self._open:
            self._open = True
            self._made.mux(self._early)
            self._early.clear()

    def _unfit(self, *sounds: Any) -> DataError:
        names = ", ".join(sound.codec_context.name for sound in sounds)
        return DataError(f"{self._suffix} cannot hold its sound, {names}; choose mkv")

    def copy(self, packet: Any) -> None:
        """Write a packet of sound."""
        if packet.dts is not None:  # the last one is empty
            packet.stream = self._sounds[packet.stream.index]
            if self._open:
                self._made.mux(packet)
            else:  # writing it would start the file before the size of its frames is known
                self._early.append(packet)

    def close(self) -> None:
        """Write the frames that the encoder holds back, and the file's end."""
        av = require()
        self._made.mux(self._video.encode())
        try:
            self._made.close()
        except av.error.FFmpegError as error:  # such as for PCM of unnamed channels in MP4
            if error.errno in FULL or not self._sounds:
                raise
            raise self._unfit(*self._sounds.values()) from error
