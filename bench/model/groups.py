"""The groups of a step's kernels: which line of the table each belongs to.

`TABLE` is searched from the top for the first pattern that is found in "kernel at file:function".
What no pattern knows is a group of its own, named after the kernel or, for ATen, the file: a new
kernel is seen at once, and gets its line here.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from bench.model.trace import Event

FUSABLE = "losses, pooling, cat, residual adds"  # torch.compile may fuse these
FILLS = "fills, zero bias gradients, sums"
WEIGHTS = "weights: layouts, flips, sums of splits, stacks"
TABLE = (
    ("products", r"^conv_gemm_kernel "),
    ("wgrad", r"^wgrad_kernel "),
    ("forward passes: halo copies, tails", r"^(fprop|statistics)_kernel "),
    ("backward apply: halo folds, tails", r"^backward_apply_kernel "),
    ("backward reduce", r"^backward_reduce_kernel "),
    ("merges", r"^(merge|backward_merge)_kernel "),
    ("sampling", r"^_reparameterize_|kernels/sampling/"),
    ("reflect ring of the 5x5 blocks", r"^(lines|taps)_"),
    ("reflect ring of the 5x5 blocks", r"border|ring|phases\.py:(_windows|_add_windows|_outer)"),
    (FILLS, r" at kernels/(common/frame\.py:empty|.*parameter_grad)"),
    (FILLS, r" at kernels/norm_act/aten\.py:per_row"),
    (FILLS, r" at kernels/conv/direct\.py|gradients\.py:zero"),
    (WEIGHTS, r"^(pack|split_reduce)_kernel"),
    (WEIGHTS, r"packed\.py"),
    (WEIGHTS, r" at kernels/conv/(gemm|phases|geometry)\.py|laid_out_as|grouped\.py:_stack"),
    (WEIGHTS, r" at kernels/common/weight"),
    ("Adam, average", r"^_fused_|^_foreach_"),
    ("1x1 heads of the discriminators", r"^convolution.* at fastunit/|^dot_"),
    ("forward passes: halo copies, tails", r"^shift_add_kernel "),
    (FUSABLE, r" at (fastunit/|kernels/conv/block\.py|kernels/common/frame\.py:dense)"),
)
ORDER = tuple(dict.fromkeys(group for group, _ in TABLE))


def group_of(event: Event, weights: Collection[tuple[int, ...]] = ()) -> str:
    """Return the group of a kernel.

    Args:
        event: the kernel.
        weights: shapes of parameters, each sorted. What writes such a shape outside our kernels,
            as when autograd adds two gradients of a weight, is counted with the weights.
    """
    found = f"{event.work.name} at {event.place}"
    for group, pattern in TABLE:
        if re.search(pattern, found):
            if group == FUSABLE and _writes_weights(event, weights):
                return WEIGHTS
            return group
    if event.variant is not None:
        return event.work.name
    return event.place.partition(":")[0]


def _writes_weights(event: Event, weights: Collection[tuple[int, ...]]) -> bool:
    shapes = [tuple(sorted(part.shape)) for part in event.work.writes]
    return bool(shapes) and all(len(shape) > 1 and shape in weights for shape in shapes)


def is_fusable(event: Event, group: str) -> bool:
    """Return whether torch.compile could fuse this kernel with its neighbours."""
    return event.variant is None and group == FUSABLE
