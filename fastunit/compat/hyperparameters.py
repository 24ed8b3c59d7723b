"""The mapping of a release YAML file as a configuration, and the release's names of losses."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from fastunit.common.errors import ConfigError
from fastunit.config import Config, MunitConfig, from_dict
from fastunit.config.fields import build

# The release's attribute for each loss of `objective.LOSSES`. The release names cycle losses by the
# cycle (aba), fastunit by the image (a).
ATTRIBUTES = {
    "discriminator_a": "loss_dis_a",
    "discriminator_b": "loss_dis_b",
    "discriminator_total": "loss_dis_total",
    "adversarial_a": "loss_gen_adv_a",
    "adversarial_b": "loss_gen_adv_b",
    "reconstruction_a": "loss_gen_recon_x_a",
    "reconstruction_b": "loss_gen_recon_x_b",
    "kl_a": "loss_gen_recon_kl_a",
    "kl_b": "loss_gen_recon_kl_b",
    "cycle_a": "loss_gen_cyc_x_a",
    "cycle_b": "loss_gen_cyc_x_b",
    "cycle_kl_a": "loss_gen_recon_kl_cyc_aba",
    "cycle_kl_b": "loss_gen_recon_kl_cyc_bab",
    "perceptual_a": "loss_gen_vgg_a",
    "perceptual_b": "loss_gen_vgg_b",
    "generator_total": "loss_gen_total",
}
MUNIT_ATTRIBUTES = {
    name: attribute
    for name, attribute in ATTRIBUTES.items()
    if not name.startswith(("kl", "cycle"))
} | {
    "style_a": "loss_gen_recon_s_a",
    "style_b": "loss_gen_recon_s_b",
    "content_a": "loss_gen_recon_c_a",
    "content_b": "loss_gen_recon_c_b",
    "cycle_a": "loss_gen_cycrecon_x_a",
    "cycle_b": "loss_gen_cycrecon_x_b",
}
NETWORKS = ("gen_a", "gen_b", "dis_a", "dis_b")
SCHEDULE = ("lr_policy", "step_size", "gamma")
WEIGHTS = ("gan_w", "recon_x_w", "recon_kl_w", "recon_x_cyc_w", "recon_kl_cyc_w", "identity_w")
WEIGHTS += ("vgg_w",)
MUNIT_WEIGHTS = ("gan_w", "recon_x_w", "recon_s_w", "recon_c_w", "recon_x_cyc_w", "vgg_w")


def changed(settings: Config, hyperparameters: Mapping[str, Any] | None, keys: tuple) -> Config:
    """Return settings with the values of `keys` from hyperparameters, checked."""
    hyperparameters = hyperparameters or {}
    given = {key: hyperparameters[key] for key in keys if key in hyperparameters}
    own = (type(v) in (int, float) and v == getattr(settings, k) for k, v in given.items())
    if all(own):  # as usual, in every update
        return settings
    checked = build(type(settings), given, "")
    return replace(settings, **{key: getattr(checked, key) for key in given})


def configuration(hyperparameters: Mapping[str, Any], network: str) -> Config:
    """Return the configuration of a release's mapping, for networks "release" or "munit".

    Raises:
        ConfigError: it is one of the 2017 release; or as `config.from_dict`.
        ValueError: the mapping selects other networks.
    """
    if "hyperparameters" in hyperparameters.get("train", {}):
        raise ConfigError(
            "this is a configuration of the 2017 release (train.hyperparameters, train.datasets_a),"
            " not of 2018; `python -m fastunit.train --config paper` trains the paper's networks"
        )
    known = {spec.name for spec in fields(MunitConfig if network == "munit" else Config)}
    foreign = [key for key in hyperparameters if key not in known]
    if foreign:
        warnings.warn(f"unused hyperparameters: {', '.join(foreign)}", stacklevel=3)
    given = {key: value for key, value in hyperparameters.items() if key in known}
    defaults = {"precision": "inherit", "compile": "off", "network": network}
    config = from_dict(defaults | given)
    if config.network != network:
        own = "MUNIT_Trainer has MUNIT's" if network == "munit" else "UNIT_Trainer has UNIT's"
        raise ValueError(f"network={config.network}: {own} networks (network={network})")
    return config
