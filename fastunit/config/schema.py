"""The typed configuration: the 2018 release's YAML keys and fastunit's own.

A configuration is a tree of frozen dataclasses. Every key has its meaning and its limits in the
field's metadata: `from_dict` checks values by them, and `reference` prints the table of
docs/configuration.md from them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from fastunit.common.choices import (
    Activation,
    BuiltinData,
    DiscriminatorNorm,
    GanType,
    ImageLoader,
    Init,
    InitB,
    Latent,
    LRPolicy,
    Network,
    PadType,
    Precision,
    SaveError,
    StallAction,
    Switch,
    TestCrop,
)
from fastunit.config.fields import Unused, key, section
from fastunit.config.schema2017 import PaperConfig


@dataclass(frozen=True)
class GeneratorConfig:
    UNUSED: ClassVar[dict[str, Unused]] = dict.fromkeys(
        ("mlp_dim", "style_dim"), Unused("MUNIT's style code, which UNIT does not have")
    )

    dim: int = key(64, "channels of the first layer", low=1, high=4096)
    activ: Activation = key("relu", "activation of every block but the last")
    n_downsample: int = key(
        2, "stride-2 layers in the encoder, upsamplings in the decoder", low=0, high=10
    )
    n_res: int = key(4, "residual blocks in the encoder, and again in the decoder", low=0, high=256)
    pad_type: PadType = key("reflect", "padding")


@dataclass(frozen=True)
class DiscriminatorConfig:
    dim: int = key(64, "channels of the first layer", low=1, high=4096)
    norm: DiscriminatorNorm = key("none", "norm of every layer but the first and last")
    activ: Activation = key("lrelu", "activation")
    n_layer: int = key(4, "stride-2 layers per scale", low=1, high=16)
    gan_type: GanType = key("lsgan", "least squares or non-saturating")
    num_scales: int = key(3, "image scales, each half the one before", low=1, high=16)
    pad_type: PadType = key("reflect", "padding")


@dataclass(frozen=True)
class ShareConfig:
    enc: int = key(
        0, "last residual blocks of the encoders that both domains share", low=0, high=256
    )
    dec: int = key(
        0, "first residual blocks of the decoders that both domains share", low=0, high=256
    )


@dataclass(frozen=True)
class DataConfig:
    builtin: BuiltinData = key("none", "built-in demo domains instead of files")
    skip_bad: bool = key(
        False, "skip unreadable and too-small files instead of ending with an error"
    )
    test_crop: TestCrop = key(
        "center",
        "part of a test image that is evaluated: its centre crop or all of it",
    )
    loader: ImageLoader = key(
        "auto",
        "what reads images: NVIDIA DALI, or Pillow, which gives the same images up to one level; "
        "auto: DALI where it is installed",
    )
    flip: bool = key(True, "mirror half of the training images left to right")
    max_pixels: int = key(2**26, "largest image that is read, in pixels", low=1, high=2**32)
    max_bytes: int = key(2**28, "largest image file that is read, in bytes", low=1, high=2**40)
    max_seconds: float = key(
        30.0, "longest time that reading and checking one image may take", low=0.1, high=86400.0
    )
    value_range: tuple[float, float] | None = key(
        None,
        "[low, high]: values of 16-bit and floating files, in both domains, that become black and "
        "white; None: those of the file's type, of floating numbers 0 and 1",
        low=-1e9,
        high=1e9,
    )
    range_a: tuple[float, float] | None = key(
        None, "data.value_range of domain a alone", low=-1e9, high=1e9
    )
    range_b: tuple[float, float] | None = key(
        None, "data.value_range of domain b alone", low=-1e9, high=1e9
    )


@dataclass(frozen=True)
class CheckpointConfig:
    keep_last: int = key(3, "how many of the newest checkpoints are kept", low=1)
    keep_every: int = key(0, "also keep every M-th checkpoint permanently; 0: none", low=0)
    minutes: float = key(
        15.0, "save also when the last checkpoint is as many minutes old; 0: never", low=0.0
    )
    on_save_error: SaveError = key(
        "stop", "when a checkpoint cannot be written: end, or go on and try again each minute"
    )


@dataclass(frozen=True)
class Domain:
    """How one domain's images are read.

    `new_size` is the shorter side after resizing, None: not resized. `value_range` holds the
    values of 16-bit and floating files that become -1 and 1, None: those of the file's type.
    """

    name: str
    channels: int
    new_size: int | None
    value_range: tuple[float, float] | None


@dataclass(frozen=True)
class Config:
    """All settings of a run. Defaults are those of the 2018 release's 256x256 configurations."""

    UNUSED: ClassVar[dict[str, Unused]] = {
        "recon_s_w": Unused(
            "MUNIT's weight of the style's reconstruction (network=munit); UNIT has no style", True
        ),
        "recon_c_w": Unused(
            "MUNIT's weight of the content's reconstruction (network=munit); UNIT has "
            "recon_kl_cyc_w instead",
            True,
        ),
    }

    # Schedule of the run, in iterations.
    max_iter: int = key(1_000_000, "iterations to train", low=1)
    log_iter: int = key(1, "iterations between records in metrics.jsonl and TensorBoard", low=1)
    image_save_iter: int = key(10_000, "iterations between kept sample grids", low=1)
    image_display_iter: int = key(100, "iterations between refreshes of samples/latest.png", low=1)
    snapshot_save_iter: int = key(10_000, "iterations between checkpoints", low=1)
    evaluate_every: int = key(
        0,
        "iterations between measurements on held-out training images, by which checkpoints/best.pt "
        "is chosen; 0: none",
        low=0,
    )
    patience: int = key(
        0,
        "measurements of evaluate_every in a row without a better one after which training stops; "
        "0: never",
        low=0,
    )
    stall_after: float = key(
        120.0, "seconds without progress until a warning says what is awaited; 0: never", low=0.0
    )
    stall_action: StallAction = key("warn", "then warn, or end the process with exit code 4")
    display_size: int = key(16, "images of each domain in a sample grid", low=1, high=4096)

    # Optimization.
    batch_size: int = key(1, "images of each domain in a batch", low=1, high=65536)
    accumulate: int = key(
        1,
        "batches whose gradients are averaged in an iteration; above 1 share_fakes is off",
        low=1,
        high=65536,
    )
    clip_grad_norm: float = key(
        0.0, "norm to which each optimizer's gradient is clipped; 0: off", low=0.0
    )
    lr: float = key(1e-4, "Adam's learning rate", low=0.0, high=10.0)
    beta1: float = key(0.5, "Adam's decay of the gradient's mean", low=0.0, below=1.0)
    beta2: float = key(0.999, "Adam's decay of the gradient's square", low=0.0, below=1.0)
    weight_decay: float = key(
        1e-4, "L2 penalty added to the gradient (not AdamW's)", low=0.0, high=10.0
    )
    init: Init = key("kaiming", "initialization of the generators")
    init_b: InitB = key(
        "own",
        "initial weights of domain b's generator: its own, as in the release, or a copy of a's",
    )
    lr_policy: LRPolicy = key("step", "learning-rate schedule")
    step_size: int = key(100_000, "iterations between learning-rate steps", low=1)
    gamma: float = key(0.5, "learning-rate factor of a step", low=0.0, high=1.0)
    decay_from: float = key(
        0.5,
        "fraction of max_iter after which linear and cosine lower the rate, to 0 at the end",
        low=0.0,
        below=1.0,
    )
    warmup_iter: int = key(
        0, "iterations in which the learning rate rises from 0, under any lr_policy", low=0
    )
    share_fakes: bool = key(
        True, "one forward pass of the generators for both updates; false: one each, as the release"
    )
    ema_decay: float = key(
        0.0,
        "decay of the exponential moving average of the generators, used for samples and "
        "translation; at most (1 + n) / (10 + n) after n iterations; 0: off",
        low=0.0,
        below=1.0,
    )
    seed: int = key(0, "seed of weights, noise and data order", low=0, below=2**63)

    # Speed.
    precision: Precision = key(
        "auto",
        "compute dtype of convolutions and matmuls; auto: bf16 where the GPU supports it, else "
        "fp32; inherit: PyTorch's own settings",
    )
    pair_domains: Switch = key(
        "auto",
        "grouped execution: both domains' layers in one launch; auto: on GPUs",
    )
    graphs: Switch = key("auto", "replay the step as a CUDA graph; auto: on GPUs")
    compile: Switch = key("auto", "torch.compile the code between fused operations; auto: on GPUs")
    deterministic: bool = key(
        False,
        "the same bits in every run on one machine: deterministic algorithms; slower on "
        "GPUs; CPUs always give the same bits",
    )
    checkpoint_activations: bool = key(
        False, "recompute blocks in backward instead of keeping activations; saves memory"
    )

    # Objective: weights of equations 1-3.
    gan_w: float = key(1.0, "adversarial terms (lambda 0)", low=0.0, high=1e6)
    recon_x_w: float = key(10.0, "L1 of the reconstructions (lambda 2)", low=0.0, high=1e6)
    recon_h_w: float = key(0.0, "accepted and unused, as in the release", low=0.0, high=1e6)
    recon_kl_w: float = key(0.01, "KL of the codes (lambda 1)", low=0.0, high=1e6)
    recon_x_cyc_w: float = key(10.0, "L1 of the cycles (lambda 4); 0: no cycle", low=0.0, high=1e6)
    recon_kl_cyc_w: float = key(0.01, "KL of the re-encoded codes (lambda 3)", low=0.0, high=1e6)
    identity_w: float = key(
        0.0,
        "identity term: L1 of each image and its translation to its own domain",
        low=0.0,
        high=1e6,
    )
    vgg_w: float = key(
        0.0, "perceptual term on VGG16 features; needs vgg_model_path", low=0.0, high=1e6
    )
    vgg_model_path: str | None = key(
        None, "VGG16 weights with torchvision's key names, for BGR images of 0..255 minus the mean"
    )

    # Networks.
    network: Network = key(
        "release",
        "networks of the 2018 release (sections gen, dis, share), of the paper (section paper), or "
        "MUNIT (sections gen, dis)",
    )
    input_dim_a: int = key(3, "channels of domain a", low=1, high=1024)
    input_dim_b: int = key(3, "channels of domain b", low=1, high=1024)
    gen: GeneratorConfig = section(GeneratorConfig, "generators")
    dis: DiscriminatorConfig = section(DiscriminatorConfig, "discriminators")
    paper: PaperConfig = section(PaperConfig, "the paper's networks")
    latent: Latent = key(
        "unit", "standard deviation of the codes: 1, as in the release, or learned"
    )
    share: ShareConfig = section(ShareConfig, "weight sharing between the generators")

    # Data.
    data_root: str | None = key(None, "folder with trainA, trainB and optionally testA, testB")
    data_folder_train_a: str | None = key(None, "folder of domain a's training images")
    data_folder_train_b: str | None = key(None, "folder of domain b's training images")
    data_folder_test_a: str | None = key(None, "folder of domain a's test images")
    data_folder_test_b: str | None = key(None, "folder of domain b's test images")
    data_list_train_a: str | None = key(None, "text file naming files in data_folder_train_a")
    data_list_train_b: str | None = key(None, "text file naming files in data_folder_train_b")
    data_list_test_a: str | None = key(None, "text file naming files in data_folder_test_a")
    data_list_test_b: str | None = key(None, "text file naming files in data_folder_test_b")
    new_size: int | None = key(None, "shorter side after resizing, both domains", low=1, high=65536)
    new_size_a: int | None = key(None, "shorter side after resizing, domain a", low=1, high=65536)
    new_size_b: int | None = key(None, "shorter side after resizing, domain b", low=1, high=65536)
    crop_image_height: int = key(256, "height of the training crop in pixels", low=1, high=16384)
    crop_image_width: int = key(256, "width of the training crop in pixels", low=1, high=16384)
    num_workers: int = key(2, "decoding threads per domain; 0 means 1", low=0, high=256)
    data: DataConfig = section(DataConfig, "how files are treated")
    checkpoint: CheckpointConfig = section(CheckpointConfig, "which checkpoints are kept")

    def domain(self, name: str) -> Domain:
        """Return the settings of domain "a" or "b" alone."""
        own = getattr(self, f"new_size_{name}")
        new_size = own if own is not None else self.new_size
        value_range = getattr(self.data, f"range_{name}") or self.data.value_range
        return Domain(name, getattr(self, f"input_dim_{name}"), new_size, value_range)

    def given_data(self) -> list[str]:
        """Return the keys that name image files and are set."""
        return [key for key in DATA_KEYS if getattr(self, key) is not None]

    @property
    def threads(self) -> int:
        """Decoding threads per domain, at least 1: none decodes in the calling thread."""
        return max(1, self.num_workers)

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of the training crop."""
        return self.crop_image_height, self.crop_image_width


DATA_KEYS = tuple(spec.name for spec in fields(Config) if spec.name.startswith("data_"))
