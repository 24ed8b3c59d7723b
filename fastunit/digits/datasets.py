"""Digits from the files that MNIST, USPS and SVHN are published in, checked before use.

A folder may hold each data set in any of its forms; `load` takes the first it finds, in the order
of `FORMS`. Nothing is unpickled. Files are looked for in the folder, and in a subfolder of the
data set's name, or that one's `raw`.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastunit.common import extras
from fastunit.common.errors import DataError, UserError
from fastunit.digits.networks import CLASSES

SPLITS = ("train", "test")
SHAPES = {"mnist": (28, 28, 1), "usps": (16, 16, 1), "svhn": (32, 32, 3)}  # H, W, C
_IDX_IMAGES, _IDX_LABELS = 0x803, 0x801
_IDX_NAMES = {"train": "train", "test": "t10k"}
_LIBSVM_NAMES = {"train": "usps.bz2", "test": "usps.t.bz2"}

Arrays = tuple[np.ndarray, np.ndarray]  # images [N, H, W, C], labels [N], as they are in the file


@dataclass(frozen=True)
class Digits:
    """One split of a data set.

    images: uint8 [N, C, H, W], white on black where the data set is. labels: int64 [N], 0 to 9.
    """

    images: np.ndarray
    labels: np.ndarray


def load(folder: Path, name: str, split: str) -> Digits:
    """Return the "train" or "test" split of "mnist", "usps" or "svhn" from its files in a folder.

    Raises:
        DataError: there are none, or what they hold is not what it should be; the message names
            the file, the value and the remedy.
    """
    if name not in SHAPES:
        raise DataError(f"{name!r} is no data set of digits; choose one of {', '.join(SHAPES)}")
    if not folder.is_dir():
        raise DataError(f"--data {folder} is not a folder; give the one with the files of {name}")
    candidates = _candidates(name, split)
    for read, names in candidates:
        files = _find(folder, name, names)
        if files:
            images, labels = _guarded(read, files, split)
            return _checked(images, labels, files, SHAPES[name])
    wanted = "; ".join(" and ".join(names) for _, names in candidates)
    raise DataError(
        f"the {split} split of {name} is not in {folder}: put there one of these (the IDX files "
        f"may end in .gz): {wanted}"
    )


def _candidates(name: str, split: str) -> list[tuple[Callable, tuple[str, ...]]]:
    """Return the ways to read a split: a reader, and the files it takes."""
    forms: list[tuple[Callable, tuple[str, ...]]] = [(_read_npz, (f"{name}_{split}.npz",))]
    if name == "mnist":
        start = _IDX_NAMES[split]
        forms.append((_read_idx, (f"{start}-images-idx3-ubyte", f"{start}-labels-idx1-ubyte")))
        forms.append((_read_idx, (f"{start}-images.idx3-ubyte", f"{start}-labels.idx1-ubyte")))
    elif name == "usps":
        forms += [(_read_h5, ("usps.h5",)), (_read_libsvm, (_LIBSVM_NAMES[split],))]
    else:
        forms.append((_read_mat, (f"{split}_32x32.mat",)))
    return forms


def _find(folder: Path, name: str, names: tuple[str, ...]) -> tuple[Path, ...]:
    """Return the files of these names, each as it is or compressed; none where none is there.

    Raises:
        DataError: only some are there.
    """
    for place in (folder, *(folder / sub for sub in (name, name.upper()))):
        for home in (place, place / "raw"):
            found = [_one(home, wanted) for wanted in names]
            if any(found):
                for path, wanted in zip(found, names, strict=True):
                    if path is None:
                        raise DataError(
                            f"{home / wanted} is missing beside {next(filter(None, found))}"
                        )
                return tuple(path for path in found if path is not None)
    return ()


def _one(folder: Path, name: str) -> Path | None:
    endings = ("", ".gz") if "ubyte" in name else ("",)
    paths = (folder / (name + ending) for ending in endings)
    return next((path for path in paths if path.exists()), None)


def _guarded(read: Callable[..., Arrays], files: tuple[Path, ...], split: str) -> Arrays:
    for path in files:
        if not path.is_file():
            raise DataError(f"{path} is not a regular file; put the original file there")
    try:
        return read(*files, split)
    except UserError:
        raise
    except MemoryError as error:
        raise DataError(f"{_names(files)} would not fit into memory: {error}") from error
    except Exception as error:  # the readers' libraries raise dozens of kinds on damaged files
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise DataError(
            f"{_names(files)} is damaged or not what its name says ({reason}); fetch it again"
        ) from error


def _names(files: tuple[Path, ...]) -> str:
    return " or ".join(map(str, files))


# ---- forms


def _read_npz(path: Path, split: str) -> Arrays:
    # Opened here: where the archive is damaged, np.load would leave its file open.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        for key in ("images", "labels"):
            if key not in archive:
                have = ", ".join(archive.files) or "nothing"
                raise DataError(f"{path} has no array {key!r}, only {have}; save both by name")
        return archive["images"], archive["labels"]


def _read_idx(images: Path, labels: Path, split: str) -> Arrays:
    return _idx(images, _IDX_IMAGES, 3), _idx(labels, _IDX_LABELS, 1)


def _idx(path: Path, magic: int, dims: int) -> np.ndarray:
    """Return the uint8 array of an IDX file: a magic number, `dims` sizes, then the values."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        data = file.read()
    head = 4 * (1 + dims)
    found, *shape = struct.unpack(f">{1 + dims}I", data[:head])
    if found != magic:
        raise DataError(f"{path} begins with {found:#x}, not {magic:#x}: it is another IDX file")
    expected = math.prod(shape)
    if len(data) - head != expected:
        raise DataError(
            f"{path} says {shape} in its header, {expected} bytes, but holds {len(data) - head}; "
            "it is cut off or damaged: fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def _read_h5(path: Path, split: str) -> Arrays:
    h5py = _needed("h5py", path)
    with h5py.File(path, "r") as file:
        for key in (split, f"{split}/data", f"{split}/target"):
            if key not in file:
                raise DataError(
                    f"{path} has no {key!r}; USPS's has train and test, each with data and target"
                )
        images, labels = (file[f"{split}/{key}"][()] for key in ("data", "target"))
    return _grey(images, 0, 1, path), labels


def _read_libsvm(path: Path, split: str) -> Arrays:
    """Read lines of a label 1 to 10, which stands for 0 to 9, and values INDEX:-1 to INDEX:1."""
    length = SHAPES["usps"][0] * SHAPES["usps"][1]
    images, labels = [], []
    with bz2.open(path, "rt", encoding="ascii") as lines:
        for number, line in enumerate(lines, 1):
            label, *pairs = line.split()
            values = np.full(length, 0.0)
            for index, value in (pair.split(":") for pair in pairs):
                if not 1 <= int(index) <= length:
                    raise DataError(f"{path}, line {number}: {index} is not in 1 to {length}")
                values[int(index) - 1] = float(value)
            images.append(values)
            labels.append(float(label) - 1)
    return _grey(np.array(images).reshape(-1, length), -1, 1, path), np.array(labels)


def _read_mat(path: Path, split: str) -> Arrays:
    """Read X [32, 32, 3, N] and y [N, 1], where 10 stands for 0."""
    content = _needed("scipy.io", path).loadmat(path, variable_names=("X", "y"))
    for key in ("X", "y"):
        if key not in content:
            raise DataError(f"{path} has no variable {key!r}; SVHN's cropped digits have X and y")
    labels = content["y"].reshape(-1)
    if content["X"].ndim != 4:
        raise DataError(f"X of {path} is {content['X'].shape}; SVHN's is (32, 32, 3, N)")
    if (labels == 0).any():
        raise DataError(f"y of {path} has the label 0; SVHN writes the digit 0 as 10")
    return content["X"].transpose(3, 0, 1, 2), np.where(labels == 10, 0, labels)


def _needed(module: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise DataError(
            f"{path} is read by {error.name}, which is not installed; install it with: "
            f"{extras.install('digits')}"
        ) from error


def _grey(values: np.ndarray, low: float, high: float, path: Path) -> np.ndarray:
    """Return floating images, flat or not, as uint8 [N, 16, 16, 1] with `low` black."""
    height, width, _ = SHAPES["usps"]
    if values.ndim < 2 or values[0:1].size not in (0, height * width):
        raise DataError(f"images of {path} are {values.shape}; USPS's have 16x16 = 256 values each")
    if not (values.min(initial=low) >= low and values.max(initial=high) <= high):  # NaN fails too
        raise DataError(
            f"{path} has values {values.min()} to {values.max()}; USPS's are in {low} to {high}"
        )
    scaled = (values.reshape(-1, height, width, 1) - low) / (high - low) * 255
    return np.round(scaled).astype(np.uint8)


# ---- checks


def _checked(
    images: np.ndarray, labels: np.ndarray, files: tuple[Path, ...], shape: tuple[int, int, int]
) -> Digits:
    """Return arrays as they should be; raises DataError saying how they are not."""
    path = files[0]
    if images.dtype != np.uint8:
        raise DataError(f"images of {path} are {images.dtype}; save them as uint8, 0 to 255")
    if images.ndim == 3:
        images = images[..., None]
    if images.shape[1:] != shape:
        size = "x".join(map(str, images.shape[1:]))
        wanted = "x".join(map(str, shape))
        raise DataError(
            f"each image of {path} is {size} (height x width x channels), but should be {wanted}; "
            "give the data set's own files"
        )
    labels_file = files[-1]
    if labels.ndim != 1:
        raise DataError(f"labels of {labels_file} are {labels.shape}; give one number each")
    if len(labels) != len(images):
        raise DataError(
            f"{path} has {len(images)} images, but {labels_file} {len(labels)} labels; "
            "give files that belong together"
        )
    if not len(images):
        raise DataError(f"{path} has no images; give the data set's own files")
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return Digits(images, _digits(labels, labels_file))


def _digits(labels: np.ndarray, path: Path) -> np.ndarray:
    if not np.issubdtype(labels.dtype, np.number) or np.iscomplexobj(labels):
        raise DataError(f"labels of {path} are {labels.dtype}; they must be numbers 0 to 9")
    wrong = ~((labels >= 0) & (labels < CLASSES) & (labels == np.round(labels)))
    if wrong.any():
        first = int(wrong.argmax())
        raise DataError(
            f"label {first} of {path} stands for {labels[first]}; labels must stand for the digits "
            "0 to 9"
        )
    return labels.astype(np.int64)
