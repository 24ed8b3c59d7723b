"""Options with a fixed set of values: a Literal type for each, and tuples of the values."""

from __future__ import annotations

from typing import Literal, get_args

Activation = Literal["relu", "lrelu", "prelu", "selu", "tanh", "none"]
Norm = Literal["none", "bn", "in", "ln", "adain", "sn"]
DiscriminatorNorm = Literal["none", "bn", "in", "ln", "sn"]
PadType = Literal["zero", "reflect", "replicate"]
GanType = Literal["lsgan", "nsgan"]
Precision = Literal["auto", "bf16", "tf32", "fp32", "inherit"]
Switch = Literal["auto", "on", "off"]
Latent = Literal["unit", "learned"]
Network = Literal["release", "paper", "munit"]
Init = Literal["gaussian", "xavier", "kaiming", "orthogonal", "default"]
InitB = Literal["own", "copy"]
LRPolicy = Literal["step", "constant", "linear", "cosine"]
BuiltinData = Literal["none", "scenes", "scene_maps"]
ImageLoader = Literal["auto", "dali", "pillow"]
SaveError = Literal["stop", "retry"]
StallAction = Literal["warn", "exit"]
Profile = Literal["convert", "keep", "ignore"]
TestCrop = Literal["center", "full"]
Direction = Literal["a2b", "b2a"]

ACTIVATIONS = get_args(Activation)
PAD_TYPES = get_args(PadType)
PRECISIONS = get_args(Precision)
LATENTS = get_args(Latent)
INITS = get_args(Init)
PROFILES = get_args(Profile)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
