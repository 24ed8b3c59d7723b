"""Networks read from exported files, which translate as trained generators do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastunit import config as configuration
from fastunit.common.choices import Direction
from fastunit.common.errors import CheckpointError, UserError
from fastunit.config import Config
from fastunit.models.domain_pair import DomainPair, extended
from fastunit.models.unit import networks
from fastunit.models.vae import check_image

METADATA = "fastunit"  # key of the metadata in every format
SUFFIXES = (".onnx", ".pt2", ".safetensors")
Run = Callable[[Tensor], Tensor]


class Side(NamedTuple):
    """What translation needs to know of one domain's generator."""

    input_dim: int
    multiple: int


class ExportedNetworks(nn.Module):
    """An exported graph of one direction, with the methods of `DomainPair` for translation.

    Runs in float32; ONNX on the CPU, whatever the device of the images.
    """

    def __init__(self, run: Run, metadata: dict[str, Any], path: Path) -> None:
        super().__init__()
        self._run, self._path = run, path
        self.direction: Direction = metadata["direction"]
        self._sides = tuple(
            Side(metadata[f"input_dim_{name}"], metadata["multiple"])
            for name in (self.direction[0], self.direction[-1])
        )
        self._dtype = nn.Parameter(torch.empty(0), requires_grad=False)  # what images are cast to

    def along(self, direction: Direction) -> tuple[Side, Side]:
        """Return source and target; raises UserError for the direction that is not in the file."""
        if direction != self.direction:
            raise UserError(f"{self._path} translates {self.direction} only, not {direction}")
        return self._sides[0], self._sides[1]

    def translate(self, x: Tensor, direction: Direction) -> Tensor:
        """Translate images [N, C, H, W] in [-1, 1] of any size, as `DomainPair.translate`."""
        source, _ = self.along(direction)
        check_image(x, source.input_dim)
        height, width = x.shape[2:]
        return self._run(extended(x, source.multiple))[..., :height, :width]


def networks_file(path: Path) -> tuple[DomainPair | ExportedNetworks, Config]:
    """Return the networks in an exported file, and the configuration of its images.

    Raises:
        CheckpointError: the file is damaged, was not exported by fastunit, or holds weights that
            are not finite.
        ModuleNotFoundError: a package of the extra `export` is missing.
    """
    readers = {".onnx": _onnx, ".pt2": _pt2, ".safetensors": _safetensors}
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        return readers[path.suffix](path)
    except (UserError, ModuleNotFoundError):
        raise
    except Exception as error:  # each library has its own exceptions for damaged files
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(f"{path} is damaged, or not a file of fastunit: {reason}") from error


def _onnx(path: Path) -> tuple[ExportedNetworks, Config]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    metadata = _parsed(session.get_modelmeta().custom_metadata_map, path)

    def run(x: Tensor) -> Tensor:
        (y,) = session.run(None, {"image": x.detach().float().contiguous().cpu().numpy()})
        return torch.from_numpy(y).to(x.device, x.dtype)

    return ExportedNetworks(run, metadata, path), _config(metadata)


def _pt2(path: Path) -> tuple[ExportedNetworks, Config]:
    found = {METADATA: ""}
    program = torch.export.load(path, extra_files=found)
    metadata = _parsed(found, path)
    module = program.module()

    def run(x: Tensor) -> Tensor:
        return module(x.float().contiguous().cpu()).to(x.device, x.dtype)

    return ExportedNetworks(run, metadata, path), _config(metadata)


def _safetensors(path: Path) -> tuple[DomainPair, Config]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = _parsed(file.metadata() or {}, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if not all(value.isfinite().all() for value in tensors.values()):
        raise CheckpointError(f"{path} holds weights that are NaN or infinite")
    tensors |= {name: tensors[kept] for name, kept in metadata["shared"].items()}
    config = configuration.from_dict(metadata["config"])
    pair = networks(config).generator_pair().eval()
    for name in ("gen_a", "gen_b"):
        own = {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(f"{name}.")}
        getattr(pair, name).load_state_dict(own)
    return pair, config


def _parsed(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    if not metadata.get(METADATA):
        raise CheckpointError(f"{path} was not exported by fastunit: it has no metadata of it")
    return json.loads(metadata[METADATA])


def _config(metadata: dict[str, Any]) -> Config:
    return configuration.from_dict(
        {
            **{key: metadata[key] for key in ("input_dim_a", "input_dim_b")},
            "data": {key: metadata[key] for key in ("range_a", "range_b")},
        }
    )
