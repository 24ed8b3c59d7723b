"""The cost model: FLOPs and least bytes of each kernel of a training step.

It assumes fused kernels: images are stored with their halo, a convolution also writes the
statistics of its result, one pass normalizes, activates and writes the next layer's halo, and the
sums of the norm's backward are computed by the dgrad that produces its gradient. Each kernel reads
every input once and writes every result once. An upsampling 5x5 block is four 3x3 phases on the
small image; translations are computed once for both updates if `share_fakes` is on; decoder blocks
that both domains share run once if both decode the same codes. Not counted: losses, copies of
images, the correction lines of a reflected border, partial sums of split GEMMs, and recomputation
of activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.ops.layers import Layer, Networks, networks
from fastunit.config import Config

MASTER_BYTES = 4  # bytes of a weight, its gradient and each of Adam's moments
ADAM_PASSES = 7  # Adam reads all four and writes all but the gradient


class Kernel(NamedTuple):
    """One launch.

    `direct` is the FLOPs of the layer as the networks define it, `needed` those of the algorithm
    that is run, `issued` the same including halo and channel padding.
    """

    part: str
    name: str
    direct: int
    needed: int
    issued: int
    bytes: int


def step(config: Config, element: int = 2) -> list[Kernel]:
    """Return the launches of a training step; `element` is the bytes of an image's element."""
    nets = networks(config)
    samples = config.batch_size * config.accumulate
    shared_fakes = config.share_fakes and config.accumulate == 1
    return list(_step(config, nets, samples, shared_fakes, element))


def _step(
    config: Config, nets: Networks, samples: int, shared_fakes: bool, element: int
) -> Iterator[Kernel]:
    both = ("dgrad", "wgrad")
    for domain, encoder in enumerate(nets.encoders):
        decoder = nets.decoders[domain]
        # Shared blocks at the start of the decoder are counted for the first domain only.
        begin = 2 * config.share.dec if domain else 0
        run = Run(samples, element)
        yield from run("encode", encoder, both, image=True)
        yield from run.doubled("decode", decoder[begin:], both)
        if config.recon_x_cyc_w > 0:
            yield from run("encode again", encoder, both)
            yield from run("decode again", decoder, both)
        if config.identity_w > 0:
            yield from run("identity", encoder, both, image=True)
            yield from run("identity", decoder, both)
        for scale in nets.discriminators[domain]:
            yield from run("discriminate", scale, ("dgrad",))
            yield from run.doubled("discriminators' update", scale, both, image=True)
        if not shared_fakes:
            yield from run("translate for the discriminators", encoder)
            yield from run("translate for the discriminators", decoder)
        for layers in nets.perceptual[domain : domain + 1]:
            yield from run("perceptual", layers, ("dgrad",))
            yield from run("perceptual", layers)
    codes = 2 + 2 * (config.recon_x_cyc_w > 0)
    for _ in range(codes):
        moved = element * samples * nets.code
        yield Kernel("sample", "reparameterize", 0, 0, 0, 2 * moved)
        yield Kernel("sample", "reparameterize backward", 0, 0, 0, 3 * moved)
    yield Kernel("Adam", "adam", 0, 0, 0, ADAM_PASSES * MASTER_BYTES * nets.parameters)


class Run(NamedTuple):
    """Yields the kernels of a network for a batch."""

    samples: int
    element: int

    def doubled(self, *args: object, **options: object) -> Iterator[Kernel]:
        """As a call, for two batches at once: both codes, or fake and real images."""
        return self._replace(samples=2 * self.samples)(*args, **options)

    def __call__(
        self, part: str, layers: Sequence[Layer], backward: Sequence[str] = (), image: bool = False
    ) -> Iterator[Kernel]:
        """Yield forward and backward; without the gradient of the input if that is an `image`."""
        before: Layer | None = None
        for index, layer in enumerate(layers):
            after = layers[index + 1].as_run() if index + 1 < len(layers) else None
            run = layer.as_run()
            yield self._gemm(part, "fprop", layer, run.haloed + run.elements_out)
            if layer.norm:
                yield self._pass(part, "norm_act", _normalised(run, after))
            for gemm in backward:
                if gemm == "wgrad":
                    moved = run.haloed + run.haloed_gradient
                    yield self._gemm(part, gemm, layer, moved)
                elif before is not None or not image:
                    moved = run.haloed_gradient + run.haloed
                    if before is not None and before.norm:
                        moved += before.elements_out  # for the sums of the norm's backward
                    yield self._gemm(part, gemm, layer, moved)
            if backward:
                yield self._pass(part, "act backward", _gradient(run, after))
            before = run

    def _gemm(self, part: str, name: str, layer: Layer, elements: int) -> Kernel:
        run, samples = layer.as_run(), self.samples
        weights = run.weights * (MASTER_BYTES if name == "wgrad" else self.element)
        return Kernel(
            part,
            name,
            samples * layer.flops,
            samples * run.flops,
            samples * run.issued(name),
            self.element * samples * elements + weights,
        )

    def _pass(self, part: str, name: str, elements: int) -> Kernel:
        return Kernel(part, name, 0, 0, 0, self.element * self.samples * elements)


def _normalised(layer: Layer, after: Layer | None) -> int:
    """Return the elements moved between a convolution's result and the next layer's input."""
    written = after.haloed if after else layer.elements_out
    return layer.elements_out * (1 + layer.residual) + written


def _gradient(layer: Layer, after: Layer | None) -> int:
    """Return the elements moved between the next input's gradient and the result's gradient."""
    read = after.haloed if after else layer.elements_out
    return read + layer.elements_out * (1 + layer.residual) + layer.haloed_gradient
