"""Reading digits from every published form, and refusing what is not as it should be."""

from __future__ import annotations

import bz2
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from fastunit.common.errors import DataError
from fastunit.digits import datasets
from fastunit.digits.datasets import load

LABELS = np.array([0, 9, 5, 3, 3], np.uint8)


def pictures(name: str, count: int = 5) -> np.ndarray:
    """Return uint8 [N, H, W, C]."""
    return np.random.default_rng(1).integers(0, 256, (count, *datasets.SHAPES[name]), np.uint8)


def write_npz(folder, name="mnist", split="train", **changes):
    images = pictures(name)
    arrays = {"images": images[..., 0] if images.shape[-1] == 1 else images, "labels": LABELS}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_{split}.npz"
    np.savez_compressed(path, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return path


def idx(values: np.ndarray, magic: int | None = None) -> bytes:
    magic = 0x800 + values.ndim if magic is None else magic
    return struct.pack(f">{1 + values.ndim}I", magic, *values.shape) + values.tobytes()


def write_idx(folder, split="train", ending="", dot=False):
    start, sign = {"train": "train", "test": "t10k"}[split], "." if dot else "-"
    folder.mkdir(parents=True, exist_ok=True)
    for kind, values in (("images", pictures("mnist")[..., 0]), ("labels", LABELS)):
        data = idx(values)
        name = f"{start}-{kind}{sign}idx{values.ndim}-ubyte{ending}"
        (folder / name).write_bytes(gzip.compress(data) if ending else data)


def write_h5(folder, images=None, labels=LABELS):
    h5py = pytest.importorskip("h5py", reason="needs h5py, of the extra fastunit[digits]")
    with h5py.File(folder / "usps.h5", "w") as file:
        for split in datasets.SPLITS:
            part = file.create_group(split)
            part["data"] = pictures("usps").reshape(5, -1) / 255 if images is None else images
            part["target"] = labels


def write_libsvm(folder, name="usps.bz2", lines=None):
    if lines is None:
        values = pictures("usps").reshape(5, -1) / 127.5 - 1
        lines = [
            f"{label + 1} " + " ".join(f"{i}:{value:.6f}" for i, value in enumerate(row, 1))
            for label, row in zip(LABELS.tolist(), values, strict=True)
        ]
    (folder / name).write_bytes(bz2.compress("\n".join(lines).encode()))


def write_mat(folder, split="train", **changes):
    io = pytest.importorskip("scipy.io", reason="needs scipy, of the extra fastunit[digits]")
    labels = np.where(LABELS == 0, 10, LABELS)[:, None]
    content = {"X": pictures("svhn").transpose(1, 2, 3, 0), "y": labels} | changes
    io.savemat(folder / f"{split}_32x32.mat", {k: v for k, v in content.items() if v is not None})


FORMS = {
    "mnist npz": ("mnist", write_npz),
    "mnist idx": ("mnist", write_idx),
    "mnist idx, compressed": ("mnist", lambda folder: write_idx(folder, ending=".gz")),
    "mnist idx, dotted": ("mnist", lambda folder: write_idx(folder, dot=True)),
    "mnist idx in MNIST/raw": ("mnist", lambda folder: write_idx(folder / "MNIST" / "raw")),
    "usps npz": ("usps", lambda folder: write_npz(folder, "usps")),
    "usps npz in usps": ("usps", lambda folder: write_npz(folder / "usps", "usps")),
    "usps h5": ("usps", write_h5),
    "usps libsvm": ("usps", write_libsvm),
    "svhn npz": ("svhn", lambda folder: write_npz(folder, "svhn")),
    "svhn mat": ("svhn", write_mat),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_digits(form, tmp_path):
    name, write = FORMS[form]
    write(tmp_path)
    digits = load(tmp_path, name, "train")
    assert digits.images.dtype == np.uint8 and digits.labels.dtype == np.int64
    np.testing.assert_array_equal(digits.images, pictures(name).transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(digits.labels, LABELS)


def test_test_splits(tmp_path):
    write_idx(tmp_path, "test")
    write_libsvm(tmp_path, "usps.t.bz2")
    write_mat(tmp_path, "test")
    for name in datasets.SHAPES:
        assert load(tmp_path, name, "test").labels.tolist() == LABELS.tolist()
        with pytest.raises(DataError, match=f"the train split of {name} is not in"):
            load(tmp_path, name, "train")


@pytest.mark.parametrize(
    ("name", "split", "count"),
    [("mnist", "train", 60_000), ("mnist", "test", 10_000), ("usps", "train", 7291),
     ("usps", "test", 2007)],
)  # fmt: skip
def test_the_real_files(shared, name, split, count):
    digits = load(shared / "data" / "digits_mnist_usps", name, split)
    height, width, channels = datasets.SHAPES[name]
    assert digits.images.shape == (count, channels, height, width)
    assert set(digits.labels.tolist()) == set(range(10))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def replaced(path: Path) -> None:
    path.write_bytes(b"no digits here\n" * 99)


UNCHECKED = ("mnist idx", "mnist idx, dotted", "usps h5", "svhn mat")  # no checksum of the values
DAMAGES = [
    (form, damage)
    for form in FORMS
    for damage in (cut, flipped, emptied, replaced)
    if " in " not in form and not (damage is flipped and form in UNCHECKED)
]


@pytest.mark.parametrize(("form", "damage"), DAMAGES)
def test_damaged_files(form, damage, tmp_path):
    name, write = FORMS[form]
    write(tmp_path)
    path = sorted(tmp_path.iterdir())[0]  # of two IDX files, the images
    damage(path)
    with pytest.raises(DataError, match=str(path)) as caught:
        load(tmp_path, name, "train")
    assert "\n" not in str(caught.value)


def object_array() -> np.ndarray:
    return np.array([{"a": 1}] * 5, dtype=object)


WRONG = {
    "images of another size": ({"images": pictures("usps")[..., 0]}, r"16x16x1 .* 28x28x1"),
    "images in colour": ({"images": np.zeros((5, 28, 28, 3), np.uint8)}, "28x28x3"),
    "images flat": ({"images": np.zeros((5, 784), np.uint8)}, "is 784 "),
    "images of floats": (
        {"images": pictures("mnist")[..., 0] / 255},
        "float64; save them as uint8",
    ),
    "no images": ({"images": None}, "no array 'images', only labels"),
    "no labels": ({"labels": None}, "no array 'labels', only images"),
    "too few labels": ({"labels": LABELS[:4]}, "5 images, but .* 4 labels"),
    "a label of 10": ({"labels": LABELS + 1}, "label 1 of .* stands for 10"),
    "a negative label": ({"labels": LABELS.astype(int) - 1}, "label 0 of .* stands for -1"),
    "half a label": ({"labels": LABELS + 0.5}, "stands for 0.5"),
    "labels of NaN": ({"labels": LABELS * np.nan}, "stands for nan"),
    "labels of text": ({"labels": np.array(list("09533"))}, "<U1; they must be numbers"),
    "labels one-hot": ({"labels": np.eye(10)[LABELS]}, r"\(5, 10\); give one number each"),
    "pickled labels": ({"labels": object_array()}, "damaged or not what its name says .*pickle"),
    "nothing in it": (
        {"images": np.zeros((0, 28, 28), np.uint8), "labels": LABELS[:0]},
        "no images",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_content(case, tmp_path):
    changes, words = WRONG[case]
    path = write_npz(tmp_path, **changes)
    with pytest.raises(DataError, match=words) as caught:
        load(tmp_path, "mnist", "train")
    assert str(path) in str(caught.value)


def test_wrong_content_of_usps(tmp_path):
    write_h5(tmp_path, images=np.full((5, 256), 2.0))
    with pytest.raises(DataError, match=r"values 2.0 to 2.0; USPS's are in 0 to 1"):
        load(tmp_path, "usps", "train")
    write_h5(tmp_path, images=np.zeros((5, 100)))
    with pytest.raises(DataError, match=r"\(5, 100\); USPS's have 16x16"):
        load(tmp_path, "usps", "train")
    (tmp_path / "usps.h5").unlink()
    for line, words in (
        ("3 257:0.5", "line 1: 257 is not in 1 to 256"),
        ("3 0:0.5", "line 1: 0 is not in"),
        ("3 1:-1.5", "-1.5 to 0.0; USPS's are in -1"),
        ("3 1:nan", "nan"),
        ("11 1:0.5", "stands for 10"),
        ("three 1:0.5", "usps.bz2 is damaged"),
        ("3 one", "usps.bz2 is damaged"),
    ):
        write_libsvm(tmp_path, lines=[line])
        with pytest.raises(DataError, match=words):
            load(tmp_path, "usps", "train")


def test_wrong_content_of_svhn(tmp_path):
    for changes, words in (
        ({"X": None}, "no variable 'X'"),
        ({"y": None}, "no variable 'y'"),
        ({"X": pictures("svhn")[0]}, r"\(32, 32, 3\); SVHN's is"),
        ({"y": np.zeros((5, 1))}, "label 0; SVHN writes the digit 0 as 10"),
        ({"y": np.full((5, 1), 11)}, "stands for 11"),
        ({"y": np.ones((4, 1))}, "5 images, but"),
    ):
        write_mat(tmp_path, **changes)
        with pytest.raises(DataError, match=words):
            load(tmp_path, "svhn", "train")


def test_wrong_idx_headers(tmp_path):
    write_idx(tmp_path)
    images, labels = (tmp_path / f"train-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
    whole = images.read_bytes()
    images.write_bytes(labels.read_bytes() + bytes(99))
    with pytest.raises(DataError, match=f"{images} begins with 0x801, not 0x803"):
        load(tmp_path, "mnist", "train")
    images.write_bytes(whole + b"\0")
    with pytest.raises(DataError, match=r"\[5, 28, 28\] in its header, 3920 bytes, but holds 3921"):
        load(tmp_path, "mnist", "train")
    images.write_bytes(struct.pack(">4I", 0x803, *[2**32 - 1] * 3))
    with pytest.raises(DataError, match="cut off or damaged"):
        load(tmp_path, "mnist", "train")
    images.unlink()
    with pytest.raises(DataError, match=f"{images} is missing beside {labels}"):
        load(tmp_path, "mnist", "train")


def test_places_without_digits(tmp_path):
    with pytest.raises(DataError, match="nowhere is not a folder"):
        load(tmp_path / "nowhere", "mnist", "train")
    with pytest.raises(DataError, match="'emnist' is no data set of digits; choose one of mnist"):
        load(tmp_path, "emnist", "train")
    (tmp_path / "mnist_train.npz").mkdir()
    with pytest.raises(DataError, match=r"mnist_train.npz is not a regular file"):
        load(tmp_path, "mnist", "train")


@pytest.mark.parametrize(("name", "module"), [("usps", "h5py"), ("svhn", "scipy")])
def test_a_missing_package_is_named(name, module, tmp_path, monkeypatch):
    FORMS[f"{name} {'h5' if name == 'usps' else 'mat'}"][1](tmp_path)

    def missing(wanted: str):
        raise ModuleNotFoundError(name=wanted.partition(".")[0])

    monkeypatch.setattr(datasets.importlib, "import_module", missing)
    with pytest.raises(DataError, match=rf"read by {module}, .*pip install .*\[digits\]'"):
        load(tmp_path, name, "train")
