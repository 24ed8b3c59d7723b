"""Validation rules that involve several keys of a configuration."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from fastunit.common.errors import ConfigError

if TYPE_CHECKING:
    from fastunit.config import Config

WIDEST = 8192  # channels of a layer: a 3x3 convolution of as many has 2.4 GB of weights


def check(config: Config) -> None:
    """Raise ConfigError for keys that contradict each other."""
    _check_data(config)
    _check_stopping(config)
    _check_network(config)
    _check_sharing(config)
    _check_widths(config)
    _check_sizes(config)
    _check_perceptual(config)
    _check_identity(config)
    if config.network == "munit":
        _check_munit(config)


def smallest_crop(config: Config) -> int:
    """Return the smallest crop side, a multiple of the downsampling, that all networks accept.

    In every discriminator scale each stride-2 layer needs an input of two pixels (a 4x4 window
    with padding 1; reflection cannot mirror a single pixel). Codes need two pixels a side.
    """
    dis, multiple = config.dis, _multiple(config)
    size = max(4, 2 * multiple)
    if config.network != "paper":  # the paper's discriminators take any size
        # Scale s has ceil(size / 2^s) pixels, and its n layers need 2^n of them.
        size = max(size, 2 ** (dis.num_scales - 1) * (2**dis.n_layer - 1) + 1)
    if config.network == "munit":
        size = max(size, 16)  # the style encoder halves four times
    return size + -size % multiple


def _check_data(config: Config) -> None:
    given = config.given_data()
    if config.data.builtin != "none" and given:
        raise ConfigError(
            f"data.builtin={config.data.builtin} and {', '.join(given)} are both given; "
            "use --data DIR, or set data.builtin=none"
        )
    for key in ("value_range", "range_a", "range_b"):
        if config.data.builtin != "none" and getattr(config.data, key):
            raise ConfigError(
                f"data.{key} is for files of 16 bits and floating numbers, not for the demo; "
                "leave it out"
            )


def _check_stopping(config: Config) -> None:
    if config.patience and not config.evaluate_every:
        raise ConfigError(
            f"patience={config.patience} counts the measurements of evaluate_every, which is 0; "
            "set evaluate_every, or leave patience out"
        )


def _check_network(config: Config) -> None:
    """Reject keys of the networks that are not selected: they would have no effect."""
    release, paper = ("gen", "dis"), ("paper",)
    unused = release if config.network == "paper" else paper
    for name in unused:
        if getattr(config, name) != type(getattr(config, name))():
            other = "release or munit" if unused is release else "paper"
            raise ConfigError(
                f"section {name} is for network={other}, but network={config.network}; leave it out"
            )
    if config.network == "paper":
        _check_paper(config)


def _check_munit(config: Config) -> None:
    """Reject keys of UNIT's codes and objective that MUNIT does not have."""
    for key, none in (
        ("share.enc", 0), ("share.dec", 0), ("latent", "unit"), ("identity_w", 0.0),
    ):  # fmt: skip
        value = functools.reduce(getattr, key.split("."), config)
        if value != none:
            raise ConfigError(f"{key}={value} is for UNIT, not for network=munit; leave it out")
    for key in ("recon_kl_w", "recon_kl_cyc_w"):
        value = getattr(config, key)
        if value not in (0, type(config).__dataclass_fields__[key].default):
            raise ConfigError(
                f"{key}={value} weighs the KL of UNIT's codes, which MUNIT does not have; set "
                "recon_s_w and recon_c_w, and leave it out"
            )


def _check_paper(config: Config) -> None:
    dis, default = config.paper.dis, type(config.paper.dis)()
    shared = dis.name == "COCOSharedDis"
    for name in ("n_layer",) if shared else ("n_front_layer", "n_shared_layer"):
        if getattr(dis, name) != getattr(default, name):
            raise ConfigError(
                f"paper.dis.{name}={getattr(dis, name)} is not for {dis.name}; leave it out"
            )
    halvings, side = dis.n_layer, min(config.crop)
    names = "paper.dis.n_layer"
    if shared:
        halvings = dis.n_front_layer + dis.n_shared_layer
        names = "paper.dis.n_front_layer and n_shared_layer, together"
    if 2**halvings > side:
        raise ConfigError(
            f"{names}={halvings} halves crops of {side} pixels to less than one; at most "
            f"{side.bit_length() - 1}"
        )


def _multiple(config: Config) -> int:
    """Return what a crop's sides must be multiples of."""
    paper = config.network == "paper"
    return config.paper.gen.multiple if paper else 2**config.gen.n_downsample


def _check_sharing(config: Config) -> None:
    for name, key in (("enc", "enc"), ("dec", "gen")):
        shared = getattr(config.share, name)
        if shared and config.network == "paper":
            raise ConfigError(
                f"share.{name}={shared} is for network=release; the paper's networks share "
                f"paper.gen.n_{key}_shared_blk blocks"
            )
        if shared > config.gen.n_res:
            raise ConfigError(
                f"share.{name}={shared} is more than the gen.n_res={config.gen.n_res} residual "
                f"blocks there are; choose 0 to {config.gen.n_res}"
            )


def _check_widths(config: Config) -> None:
    """Reject layers of more than WIDEST channels, which no memory holds."""
    if config.network == "paper":
        gen, dis = config.paper.gen, config.paper.dis
        layers = dis.n_layer
        if dis.name == "COCOSharedDis":
            layers = dis.n_front_layer + dis.n_shared_layer
        widths = {
            "paper.gen.ch and n_enc_front_blk": gen.ch * gen.multiple,
            "paper.dis.ch and its layers": dis.ch * 2 ** (layers - 1),
        }
    else:
        widths = {
            "gen.dim and gen.n_downsample": config.gen.dim * 2**config.gen.n_downsample,
            "dis.dim and dis.n_layer": config.dis.dim * 2 ** (config.dis.n_layer - 1),
        }
    for names, width in widths.items():
        if width > WIDEST:
            raise ConfigError(
                f"{names} make layers of {width:,} channels; at most {WIDEST:,} are allowed"
            )


def _check_sizes(config: Config) -> None:
    multiple, least = _multiple(config), smallest_crop(config)
    power = f"gen.n_downsample={config.gen.n_downsample}"
    smaller = "dis.num_scales, dis.n_layer or gen.n_downsample"
    if config.network == "paper":
        smaller = "paper.gen.n_enc_front_blk"
        power = f"{smaller}={config.paper.gen.n_enc_front_blk} less 1"
    sides = {name: getattr(config, name) for name in ("crop_image_height", "crop_image_width")}
    for name, size in sides.items():
        if size % multiple:
            near = max(multiple, round(size / multiple) * multiple)
            raise ConfigError(
                f"{name}={size} must be a multiple of {multiple} (2 to the power {power}); "
                f"try {near}"
            )
        if size < least:
            raise ConfigError(
                f"{name}={size} is too small for these networks, which need {least} or more; "
                f"enlarge the crop or lower {smaller}"
            )
    name = min(sides, key=sides.__getitem__)  # new_size is of an image's shorter side
    for domain in map(config.domain, "ab"):
        if domain.new_size is not None and domain.new_size < sides[name]:
            raise ConfigError(
                f"new_size={domain.new_size} of domain {domain.name} is smaller than "
                f"{name}={sides[name]}; raise it to {sides[name]} or lower the crop"
            )


def _check_perceptual(config: Config) -> None:
    """Instance norm of VGG16's last features, 1/8 of the image's size, needs two pixels."""
    height, width = config.crop
    if config.vgg_w > 0 and (height // 8) * (width // 8) < 2:
        raise ConfigError(
            f"vgg_w={config.vgg_w} needs crops of at least 8x16 or 16x8 pixels, not "
            f"{height}x{width}; enlarge crop_image_height or crop_image_width, or set vgg_w=0"
        )


def _check_identity(config: Config) -> None:
    a, b = config.input_dim_a, config.input_dim_b
    if config.identity_w > 0 and a != b:
        raise ConfigError(
            f"identity_w={config.identity_w} gives each generator the other domain's images, but "
            f"input_dim_a={a} and input_dim_b={b} differ; set identity_w=0 or make them equal"
        )
