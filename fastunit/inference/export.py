"""Export of trained generators: ONNX, torch.export and safetensors, none of which needs fastunit.

Graphs are of one direction, for images [N, C, H, W] in [-1, 1] of any number and size, height and
width multiples of the generators' `multiple`. They hold standard operators only.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastunit import config as configuration
from fastunit.common import files
from fastunit.common.choices import Direction
from fastunit.common.errors import UserError
from fastunit.config import Config
from fastunit.inference.exported import METADATA, networks_file
from fastunit.kernels.common import runtime
from fastunit.models.domain_pair import DomainPair, evaluating, extended
from fastunit.models.layers import moved

Format = Literal["onnx", "pt2", "safetensors"]
FORMATS: tuple[Format, ...] = get_args(Format)
TOLERANCE = 1e-4  # of the range of values: the largest error of an exported graph
_SAMPLE = (2, 4)  # images and multiples a side that a graph is traced with


class _Direction(nn.Module):
    """The translation in one direction, as the graph that is exported."""

    def __init__(self, pair: DomainPair, direction: Direction) -> None:
        super().__init__()
        self.source, self.target = pair.along(direction)

    def forward(self, image: Tensor) -> Tensor:
        return self.target.decode(self.source.encoder(image))


def export(
    pair: DomainPair, config: Config, path: Path, format: Format, direction: Direction
) -> None:
    """Write an exported file, atomically.

    Args:
        pair: trained generators on the CPU; moved to contiguous memory format.
        config: the configuration of their training.
        path: the file.
        format: "onnx" (one file), "pt2" (torch.export), or "safetensors": weights and
            configuration of both directions, shared layers once.
        direction: "a2b" or "b2a"; not used by safetensors.

    Raises:
        ModuleNotFoundError: a package of the extra `export` is missing.
        OSError: the file cannot be written.
    """
    writers: dict[Format, Callable[[], None]] = {
        "onnx": lambda: _write_onnx(pair, path, _metadata(pair, config, direction), direction),
        "pt2": lambda: _write_pt2(pair, path, _metadata(pair, config, direction), direction),
        "safetensors": lambda: _write_safetensors(pair, config, path),
    }
    with evaluating(pair), torch.no_grad():
        moved(pair, None, torch.contiguous_format)
        writers[format]()


def check(path: Path, pair: DomainPair, direction: Direction, images: Sequence[Tensor]) -> float:
    """Run an exported file on images and return its largest error, as a share of the range.

    Args:
        path: the file.
        pair: the generators that it was made from.
        direction: "a2b" or "b2a".
        images: batches [N, C, H, W] in [-1, 1], of any sizes.

    Raises:
        UserError: the error is above `TOLERANCE`.
    """
    loaded = networks_file(path)[0]
    worst = 0.0
    with evaluating(pair), torch.no_grad():
        for x in images:
            difference = loaded.translate(x, direction) - pair.translate(x, direction)
            worst = max(worst, difference.abs().max().item() / 2)
    if not worst <= TOLERANCE:
        raise UserError(
            f"the exported file's translations differ by up to {worst:.2g} of the range from "
            f"PyTorch's, more than {TOLERANCE:g}; please report it"
        )
    return worst


def _write_onnx(
    pair: DomainPair, path: Path, metadata: dict[str, Any], direction: Direction
) -> None:
    import onnx
    import onnxruntime  # noqa: F401 - `check` needs it: better told before the work
    import onnxscript  # noqa: F401

    shapes = ({0: "batch", 2: "height", 3: "width"},)
    with _quiet(), runtime.default_impl("plain"):
        program = torch.onnx.export(
            _Direction(pair, direction).eval(),
            (_sample(pair, direction),),
            input_names=["image"],
            output_names=["translation"],
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    model.metadata_props.add(key=METADATA, value=json.dumps(metadata))
    model.doc_string = "UNIT image translation: images [N, C, H, W] in [-1, 1]"
    onnx.checker.check_model(model)
    own = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if own:
        raise UserError(f"the graph has operators of {', '.join(sorted(own))}; please report it")
    with files.atomic(path) as temporary:
        onnx.save(model, str(temporary))


def _write_pt2(
    pair: DomainPair, path: Path, metadata: dict[str, Any], direction: Direction
) -> None:
    free = torch.export.Dim.AUTO
    with _quiet(), runtime.default_impl("plain"):
        program = torch.export.export(
            _Direction(pair, direction).eval(),
            (_sample(pair, direction),),
            dynamic_shapes=({0: free, 2: free, 3: free},),
        )
        with files.atomic(path) as temporary:
            torch.export.save(program, temporary, extra_files={METADATA: json.dumps(metadata)})


def _write_safetensors(pair: DomainPair, config: Config, path: Path) -> None:
    from safetensors.torch import save

    first: dict[int, str] = {}
    shared: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in _named(pair):
        kept = first.setdefault(value.data_ptr(), name)
        if kept == name:
            tensors[name] = value.detach().contiguous()
        else:
            shared[name] = kept
    metadata = {"config": configuration.to_dict(config), "shared": shared}
    with files.atomic(path) as temporary:
        # Its save_file makes a file that only its owner may read.
        temporary.write_bytes(save(tensors, {METADATA: json.dumps(metadata)}))


def _named(pair: DomainPair) -> Iterator[tuple[str, Tensor]]:
    for name in ("gen_a", "gen_b"):
        for key, value in getattr(pair, name).state_dict().items():
            yield f"{name}.{key}", value


def _metadata(pair: DomainPair, config: Config, direction: Direction) -> dict[str, Any]:
    return {
        "direction": direction,
        "input_dim_a": pair.gen_a.input_dim,
        "input_dim_b": pair.gen_b.input_dim,
        "multiple": pair.along(direction)[0].multiple,
        "normalisation": "levels of 0..255 / 127.5 - 1",
        "layout": "NCHW, RGB",
        "range_a": config.domain("a").value_range,
        "range_b": config.domain("b").value_range,
    }


def _sample(pair: DomainPair, direction: Direction) -> Tensor:
    source, _ = pair.along(direction)
    count, times = _SAMPLE
    # Of different sides: equal ones would be taken for the same.
    x = torch.zeros(count, source.input_dim, times * source.multiple, (times + 1) * source.multiple)
    return extended(x, source.multiple)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' warnings and those of unfused blocks, which are intended, off stderr."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "fastunit.models")
    ]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
