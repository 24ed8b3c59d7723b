"""The names of the release's `data`: image datasets for torch.utils.data, read by Pillow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from fastunit.common.errors import DataError
from fastunit.data.discovery import IMAGES, image_files

Transform = Callable[[Any], Any]
IMG_EXTENSIONS = [form for each in IMAGES for form in (each, each.upper())]


def default_loader(path: str | Path) -> Image.Image:
    """Return an image file as RGB."""
    with Image.open(path) as image:
        return image.convert("RGB")


def is_image_file(filename: str) -> bool:
    """Return whether a name has the extension of an image."""
    return filename.lower().endswith(IMAGES)


def make_dataset(dir: str | Path) -> list[str]:
    """Return the paths of the images in a folder and those below it, sorted.

    Raises:
        DataError: there is no such folder.
    """
    if not Path(dir).is_dir():
        raise DataError(f"{dir} is not a folder of images")
    return [str(path) for path in image_files(Path(dir), IMAGES)]


def default_flist_reader(flist: str | Path) -> list[str]:
    """Return the lines of a list file, without blank ones.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        lines = Path(flist).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"the list {flist} cannot be read: {error}") from error
    return [line.strip() for line in lines if line.strip()]


class _Files(Dataset):
    def __init__(
        self, paths: Iterable[str], transform: Transform | None, loader: Transform, source: object
    ) -> None:
        self.imgs = list(paths)
        self.transform, self.loader = transform, loader
        if not self.imgs:
            raise DataError(f"{source} names no images ({', '.join(IMAGES)})")

    def __getitem__(self, index: int) -> Any:
        image = self.loader(self.imgs[index])
        return image if self.transform is None else self.transform(image)

    def __len__(self) -> int:
        return len(self.imgs)


class ImageFolder(_Files):
    """The images in a folder and those below it.

    Args:
        root: the folder.
        transform: applied to each image.
        return_paths: whether items are (image, path).
        loader: reads a path.

    Raises:
        DataError: there is no such folder, or no image in it.
    """

    def __init__(
        self,
        root: str | Path,
        transform: Transform | None = None,
        return_paths: bool = False,
        loader: Transform = default_loader,
    ) -> None:
        super().__init__(make_dataset(root), transform, loader, root)
        self.root, self.return_paths = root, return_paths

    def __getitem__(self, index: int) -> Any:
        image = super().__getitem__(index)
        return (image, self.imgs[index]) if self.return_paths else image


class ImageFilelist(_Files):
    """The images that a list file names, one a line, relative to a folder.

    Args:
        root: the folder.
        flist: the list file.
        transform: applied to each image.
        flist_reader: reads the list.
        loader: reads a path.

    Raises:
        DataError: the list cannot be read, or is empty.
    """

    def __init__(
        self,
        root: str | Path,
        flist: str | Path,
        transform: Transform | None = None,
        flist_reader: Callable[[Any], list[str]] = default_flist_reader,
        loader: Transform = default_loader,
    ) -> None:
        self.root, self.imlist = root, flist_reader(flist)
        paths = [str(Path(root) / name) for name in self.imlist]
        super().__init__(paths, transform, loader, flist)
