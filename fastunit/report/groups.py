"""The groups that a run's numbers are shown in, on the page and in TensorBoard alike."""

from __future__ import annotations

from typing import NamedTuple


class Group(NamedTuple):
    """A panel of the page, and the first part of its numbers' TensorBoard tags."""

    title: str
    tag: str
    names: tuple[str, ...]


LOSSES = (
    Group("discriminators", "discriminators", ("discriminator_a", "discriminator_b")),
    Group("adversarial", "adversarial", ("adversarial_a", "adversarial_b")),
    Group("reconstruction (L1)", "reconstruction", ("reconstruction_a", "reconstruction_b")),
    Group("cycle (L1)", "cycle", ("cycle_a", "cycle_b")),
    Group("identity (L1)", "identity", ("identity_a", "identity_b")),
    Group("style codes (L1)", "style", ("style_a", "style_b")),
    Group("content codes (L1)", "content", ("content_a", "content_b")),
    Group("KL of the codes", "kl", ("kl_a", "kl_b", "cycle_kl_a", "cycle_kl_b")),
    Group("totals", "totals", ("generator_total", "discriminator_total")),
    Group("perceptual", "perceptual", ("perceptual_a", "perceptual_b")),
)
_HELD_OUT = Group("held out", "held_out", ("held_out", "held_out_a2b", "held_out_b2a"))
_RUN = Group("the run", "run", ("learning_rate", "images_per_s", "data_wait"))
_TAGS = {
    name: f"{group.tag}/{name}" for group in (*LOSSES, _HELD_OUT, _RUN) for name in group.names
}


def tag(name: str) -> str:
    """Return a number's tag in TensorBoard, GROUP/NAME; one of no group keeps its name."""
    return _TAGS.get(name, name)
