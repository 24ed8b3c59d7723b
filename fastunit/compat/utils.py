"""The names of the release's `utils`: configuration, loaders, images, logs, schedules, weights."""

from __future__ import annotations

import html
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fastunit.common import files
from fastunit.common.errors import ConfigError
from fastunit.compat import transforms
from fastunit.compat.data import ImageFilelist, ImageFolder
from fastunit.compat.networks import Vgg16
from fastunit.models.init import initialise
from fastunit.models.perceptual import MEAN_BGR

Loaders = tuple[DataLoader, DataLoader, DataLoader, DataLoader]


def get_config(config: str | Path) -> dict[str, Any]:
    """Return the mapping of a YAML file.

    Raises:
        ConfigError: the file cannot be read, or is no mapping.
    """
    try:
        found = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{config} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{config} is not a mapping of keys and values")
    return found


def get_all_data_loaders(conf: Mapping[str, Any]) -> Loaders:
    """Return the loaders train a, train b, test a, test b of a configuration's folders or lists.

    Args:
        conf: the mapping of a release YAML file: data_root, or data_folder_* and data_list_*.

    Raises:
        DataError: a folder, list or image is missing.
    """
    made = []
    for split, train in (("train", True), ("test", False)):
        for domain in "ab":
            new_size = conf.get("new_size", conf.get(f"new_size_{domain}"))
            shape = {
                "new_size": new_size,
                "height": conf["crop_image_height"],
                "width": conf["crop_image_width"],
                "num_workers": conf["num_workers"],
                "batch_size": conf["batch_size"],
                "train": train,
            }
            if "data_root" in conf:
                folder = Path(conf["data_root"]) / f"{split}{domain.upper()}"
                made.append(get_data_loader_folder(folder, **shape))
            else:
                names = f"data_folder_{split}_{domain}", f"data_list_{split}_{domain}"
                made.append(get_data_loader_list(*(conf[name] for name in names), **shape))
    train_a, train_b, test_a, test_b = made
    return train_a, train_b, test_a, test_b


def get_data_loader_list(
    root: str | Path,
    file_list: str | Path,
    batch_size: int,
    train: bool,
    new_size: int | None = None,
    height: int = 256,
    width: int = 256,
    num_workers: int = 4,
    crop: bool = True,
) -> DataLoader:
    """Return batches [N, 3, H, W] in [-1, 1] of the images that a list names.

    Args:
        root: the folder.
        file_list: the list file, one name a line.
        batch_size: N; the last batch of an epoch is left out where it is smaller.
        train: whether images are shuffled and mirrored at random.
        new_size: of the shorter side, before the crop.
        height: of the crop.
        width: of the crop.
        num_workers: processes; 0 reads in this one.
        crop: whether to crop at a random place.
    """
    prepare = _preparation(train, new_size, (height, width) if crop else None)
    return _loader(ImageFilelist(root, file_list, prepare), batch_size, train, num_workers)


def get_data_loader_folder(
    input_folder: str | Path,
    batch_size: int,
    train: bool,
    new_size: int | None = None,
    height: int = 256,
    width: int = 256,
    num_workers: int = 4,
    crop: bool = True,
) -> DataLoader:
    """As `get_data_loader_list`, of the images in a folder and those below it.

    Args:
        input_folder: the folder.
        batch_size: as there, and so the others.
        train: .
        new_size: .
        height: .
        width: .
        num_workers: .
        crop: .
    """
    prepare = _preparation(train, new_size, (height, width) if crop else None)
    return _loader(ImageFolder(input_folder, prepare), batch_size, train, num_workers)


def _preparation(
    train: bool, new_size: int | None, crop: tuple[int, int] | None
) -> transforms.Compose:
    steps: list[Callable[[Any], Any]] = [transforms.RandomHorizontalFlip()] if train else []
    if new_size is not None:
        steps.append(transforms.Resize(new_size))
    if crop is not None:
        steps.append(transforms.RandomCrop(crop))
    half = (0.5, 0.5, 0.5)
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(half, half)])


def _loader(dataset: Any, batch_size: int, train: bool, workers: int) -> DataLoader:
    return DataLoader(dataset, batch_size, shuffle=train, drop_last=True, num_workers=workers)


def prepare_sub_folder(output_directory: str | Path) -> tuple[str, str]:
    """Make the folders `checkpoints` and `images` in a folder; return their paths."""
    made = tuple(str(Path(output_directory) / name) for name in ("checkpoints", "images"))
    for folder in made:
        Path(folder).mkdir(parents=True, exist_ok=True)
    return made[0], made[1]


def write_2images(
    image_outputs: Sequence[Tensor],
    display_image_num: int,
    image_directory: str | Path,
    postfix: str,
) -> None:
    """Write gen_a2b_POSTFIX.jpg and gen_b2a_POSTFIX.jpg, a row for each kind of image.

    Args:
        image_outputs: what `UNIT_Trainer.sample` returns: of each domain as many batches.
        display_image_num: images of each batch.
        image_directory: the folder.
        postfix: of the names.
    """
    half = len(image_outputs) // 2
    for name, batches in (("a2b", image_outputs[:half]), ("b2a", image_outputs[half:])):
        images = torch.cat([b[:display_image_num].expand(-1, 3, -1, -1).cpu() for b in batches])
        path = Path(image_directory) / f"gen_{name}_{postfix}.jpg"
        transforms.save_image(images, path, nrow=display_image_num, padding=0, normalize=True)


def write_html(
    filename: str | Path,
    iterations: int,
    image_save_iterations: int,
    image_directory: str | Path,
    all_size: int = 1536,
) -> None:
    """Write a page of the images that `write_2images` wrote, the newest first.

    Args:
        filename: the page.
        iterations: the last iteration.
        image_save_iterations: iterations between images.
        image_directory: their folder, as the page names it.
        all_size: width of an image on the page, in pixels.
    """
    latest = iterations - iterations % image_save_iterations
    parts = ["current", *(f"{n:08d}" for n in range(latest, 0, -image_save_iterations))]
    body = [f"<h3>{html.escape(Path(filename).stem)}: iteration {iterations}</h3>"]
    for part in parts:
        for name in ("gen_a2b", "gen_b2a"):
            kinds = ("train",) if part == "current" else ("test", "train")
            for kind in kinds:
                path = f"{image_directory}/{name}_{kind}_{part}.jpg"
                body.append(f'<p>{path}<br><img src="{path}" style="width:{all_size}px"></p>')
    head = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="30">'
    Path(filename).write_text("\n".join([head, *body]), encoding="utf-8")


def write_loss(iterations: int, trainer: Any, train_writer: Any) -> None:
    """Write a trainer's losses to TensorBoard.

    Args:
        iterations: the last iteration, counted from 0.
        trainer: its attributes whose names contain "loss", "grad" or "nwd" are written.
        train_writer: with `add_scalar`.
    """
    for name in sorted(vars(trainer)):
        value = getattr(trainer, name)
        if not name.startswith("_") and re.search("loss|grad|nwd", name) and not callable(value):
            train_writer.add_scalar(name, value, iterations + 1)


def get_model_list(dirname: str | Path, key: str) -> str | None:
    """Return the newest checkpoint, by name, whose name contains `key`; None if there is none."""
    folder = Path(dirname)
    found = sorted(str(path) for path in folder.glob("*.pt") if key in path.name)
    return found[-1] if found else None


def load_vgg16(model_dir: str | Path) -> Vgg16:
    """Return VGG16 with the weights of vgg16.weight in a folder.

    Raises:
        ConfigError: there is no such file. (The release downloads a Lua file and converts it.)
    """
    path = Path(model_dir) / "vgg16.weight"
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing: put the release's vgg16.weight there, or set vgg_w=0"
        )
    network = Vgg16()
    network.load_state_dict(files.read(path))
    return network


def load_inception(model_path: str | Path) -> nn.Module:
    """Return torchvision's Inception v3 with the weights of a file, for the release's scores.

    Args:
        model_path: a state_dict; its `fc.weight` says how many classes there are.

    Raises:
        ConfigError: torchvision is not installed.
        CheckpointError: the file cannot be read.
    """
    try:
        inception_v3 = import_module("torchvision.models").inception_v3
    except ImportError as error:
        raise ConfigError("Inception scores need torchvision: pip install torchvision") from error
    state = files.read(Path(model_path))
    network: Any = inception_v3(weights=None, init_weights=False, transform_input=True)
    network.aux_logits = False
    network.fc = nn.Linear(network.fc.in_features, len(state["fc.weight"]))
    network.load_state_dict(state)
    return network.requires_grad_(False)


def vgg_preprocess(batch: Tensor) -> Tensor:
    """Return RGB images [N, 3, H, W] in [-1, 1] as BGR of 0..255 minus VGG16's mean."""
    mean = batch.new_tensor(MEAN_BGR)[:, None, None]
    return (batch.flip(1) + 1) * 127.5 - mean


def get_scheduler(
    optimizer: torch.optim.Optimizer, hyperparameters: Mapping[str, Any], iterations: int = -1
) -> Any:
    """Return an optimizer's schedule: `lr_policy` "constant" (or none: None) or "step".

    Raises:
        ConfigError: the policy is neither.
    """
    policy = hyperparameters.get("lr_policy", "constant")
    if policy == "constant":
        return None
    if policy != "step":
        raise ConfigError(f"lr_policy={policy!r} must be one of constant, step")
    step, gamma = hyperparameters["step_size"], hyperparameters["gamma"]
    return torch.optim.lr_scheduler.StepLR(optimizer, step, gamma, last_epoch=iterations)


def weights_init(init_type: str = "gaussian") -> Callable[[nn.Module], None]:
    """Return a function for `nn.Module.apply` that initializes a layer by a name of `init`."""

    def start(module: nn.Module) -> None:
        if not list(module.children()):
            initialise(module, init_type)  # pyright: ignore[reportArgumentType]

    return start


class Timer:
    """Print a message with the seconds that a block took: ``with Timer("update: %f"):``."""

    def __init__(self, msg: str) -> None:
        self.msg = msg

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        print(self.msg % (time.perf_counter() - self._start))


def pytorch03_to_pytorch04(
    state_dict_base: Mapping[str, Mapping[str, Tensor]], trainer_name: str = "UNIT"
) -> dict[str, dict[str, Tensor]]:
    """Return a checkpoint from before PyTorch 0.4 without the statistics of its instance norms.

    Args:
        state_dict_base: the networks' state_dicts by domain.
        trainer_name: "UNIT"; in MUNIT's decoders AdaIN keeps them.
    """
    kept = re.compile(r"^dec\.model\.0\.") if trainer_name == "MUNIT" else None
    return {
        domain: {
            name: value
            for name, value in state.items()
            if not name.endswith((".running_mean", ".running_var")) or (kept and kept.match(name))
        }
        for domain, state in state_dict_base.items()
    }


def get_slerp_interp(nb_latents: int, nb_interp: int, z_dim: int) -> Tensor:
    """Return paths between random normal vectors on great circles, [n * nb_interp, z_dim, 1, 1]."""
    ends = torch.randn(nb_latents, z_dim)
    paths = []
    for low, high in zip(ends, ends.roll(-1, 0), strict=True):
        for share in torch.linspace(0, 1, nb_interp + 1)[:-1]:
            paths.append(slerp(float(share), low, high))
    return torch.stack(paths)[..., None, None]


def slerp(val: float, low: Tensor, high: Tensor) -> Tensor:
    """Return the point at a share of the way between two vectors, on their great circle."""
    cosine = torch.dot(low / low.norm(), high / high.norm()).clamp(-1, 1)
    angle = math.acos(float(cosine))
    if angle < 1e-6:
        return low + val * (high - low)
    near, far = math.sin((1 - val) * angle), math.sin(val * angle)
    return (near * low + far * high) / math.sin(angle)
