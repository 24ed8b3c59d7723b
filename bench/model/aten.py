"""Which kernels an ATen call launches on a GPU, with their bytes; a rule for each exception.

A call launches one kernel unless it is listed here. None at all: views and other calls whose
results share memory with an argument that they do not write, allocations, questions about a
tensor, and calls on tensors without elements. A fill, a cast, a copy and a concatenation are one
kernel each; so is a reduction. PyTorch's reductions of large tensors also clear a few bytes
first, and cuDNN's convolutions may launch helpers: neither is counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from bench.model.gpu import Gpu


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ALLOCATIONS = _names(
    "empty empty_like empty_strided empty_permuted new_empty new_empty_strided resize_ set_"
)
QUESTIONS = _names(
    "detach alias lift_fresh _unsafe_view _reshape_alias is_same_size is_pinned "
    "_has_compatible_shallow_copy_type sym_size sym_numel sym_stride _version"
)
FILLS = _names(
    "fill_ zero_ zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full "
    "arange scalar_tensor"
)
REDUCTIONS = _names(
    "sum mean amax amin var std var_mean std_mean linalg_vector_norm native_batch_norm "
    "native_batch_norm_backward _native_batch_norm_legit native_layer_norm all any max min "
    "logsumexp prod"
)
# Calls that are several kernels, each with a pass of its own over the tensors.
SEVERAL = {
    "constant_pad_nd": ("fill", "copy"),
    "mse_loss": ("pointwise", "mean"),
    "binary_cross_entropy_with_logits": ("pointwise", "mean"),
    "select_backward": ("fill", "copy"),
    "slice_backward": ("fill", "copy"),
    "reflection_pad2d_backward": ("fill", "scatter"),
    "replication_pad2d_backward": ("fill", "scatter"),
    "_foreach_norm": ("norm", "norm of chunks"),
}
PRODUCTS = _names("mm bmm addmm baddbmm convolution convolution_backward")


class Part(NamedTuple):
    """A piece of memory that a kernel reads or writes: its storage, shape and bytes."""

    storage: int
    shape: tuple[int, ...]
    bytes: int


class Work(NamedTuple):
    """One kernel of an ATen call; `gemm` is (rows, columns, depth) of a product."""

    name: str
    reads: tuple[Part, ...]
    writes: tuple[Part, ...]
    flops: int = 0
    gemm: tuple[int, int, int] | None = None


def name_of(func: OpOverload) -> str:
    """Return the operator's name without namespace and overload."""
    return func._schema.name.rpartition("::")[2]


def part(tensor: Tensor) -> Part:
    """Return a tensor's memory; what it repeats (stride 0) counts once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    count = math.prod(1 if step == 0 and size > 1 else size for size, step in sizes)
    storage = tensor.untyped_storage()._cdata
    return Part(storage, tuple(tensor.shape), count * tensor.element_size())


def works(
    func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], result: Any, gpu: Gpu
) -> list[Work]:
    """Return the kernels that a call launches on a GPU."""
    name = name_of(func)
    if is_free(func, name):
        return []
    given, found = list(tensors((args, kwargs))), list(tensors(result))
    mutated = mutated_by(func, args, kwargs)
    if not any(tensor.numel() for tensor in (*found, *mutated)):
        return []
    if name in ("convolution", "convolution_backward"):
        return list(_convolutions(name, args, found))
    if name.startswith("_foreach") or name.startswith("_fused"):
        return list(_multi_tensor(name, args, kwargs, mutated, found, gpu))
    written = tuple(map(part, mutated or found))
    reads = tuple(map(part, given))
    if name in FILLS:
        reads = ()
    elif name == "copy_":
        reads = (part(args[1]),)
    elif ".out" in str(func):
        outputs = {id(tensor) for tensor in mutated}
        reads = tuple(part(tensor) for tensor in given if id(tensor) not in outputs)
    if name in PRODUCTS:
        gemm = _gemm(name, given)
        return [Work(name, reads, written, 2 * math.prod(gemm), gemm)]
    if name in SEVERAL:
        return [
            Work(f"{name}: {step}", () if step == "fill" else reads, written)
            for step in SEVERAL[name]
        ]
    return [Work(name, reads, written)]


def waits(func: OpOverload) -> bool:
    """Return whether the host needs a result's values or shape, and so waits for the device."""
    tags = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape
    return any(tag in func.tags for tag in tags)


def is_free(func: OpOverload, name: str) -> bool:
    """Return whether a call launches nothing, whatever its tensors."""
    if func.namespace in ("prim", "profiler") or name in ALLOCATIONS | QUESTIONS:
        return True
    if func._schema.is_mutable:
        return False
    returned = [r for r in func._schema.returns if "Tensor" in str(r.type)]
    return all(r.alias_info is not None for r in returned)


def tensors(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and dicts."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from tensors(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors(value)


def mutated_by(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    if not func._schema.is_mutable:
        return []
    found = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            found += tensors(value)
    return found


def _gemm(name: str, given: Sequence[Tensor]) -> tuple[int, int, int]:
    a, b = given[-2:]
    batch = a.shape[0] if a.dim() == 3 else 1
    return batch * a.shape[-2], b.shape[-1], a.shape[-1]


def _convolutions(name: str, args: Sequence[Any], found: Sequence[Tensor]) -> Iterator[Work]:
    """Yield forward, or those of input's, filters' and bias's gradient that are asked for."""
    if name == "convolution":
        x, w, y = args[0], args[1], found[0]
        gemm = y.numel() // w.shape[0], w.shape[0], w[0].numel()
        yield Work(name, tuple(map(part, tensors(args[:3]))), (part(y),), 2 * math.prod(gemm), gemm)
        return
    dy, x, w, mask = args[0], args[1], args[2], args[-1]
    rows, columns, depth = dy.numel() // w.shape[0], w.shape[0], w[0].numel()
    flops, results = 2 * rows * columns * depth, iter(found)
    kinds = (
        ("convolution dgrad", (dy, w), flops, (x.numel() // x.shape[1], x.shape[1],
            flops * x.shape[1] // (2 * max(x.numel(), 1)) // max(x.shape[1], 1))),
        ("convolution wgrad", (dy, x), flops, (depth, columns, rows)),
        ("sum", (dy,), 0, None),
    )  # fmt: skip
    for wanted, (kind, read, count, gemm) in zip(mask, kinds, strict=True):
        if wanted:
            yield Work(kind, tuple(map(part, read)), (part(next(results)),), count, gemm)


def _multi_tensor(
    name: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    mutated: Sequence[Tensor],
    found: Sequence[Tensor],
    gpu: Gpu,
) -> Iterator[Work]:
    """Yield one kernel per launch of PyTorch's multi-tensor kernels: a list of chunks each."""
    lists = [found for value in args if (found := list(tensors(value)))]
    depth = len(lists) + (not mutated)
    written = list(mutated or found)
    if name.startswith("_fused"):  # of weights, gradients and moments; the gradients only read
        depth, written = 4, lists[0] + [t for each in lists[2:] for t in each]
    count = multi_tensor_launches([t.numel() for t in lists[0]], depth, gpu)
    reads, writes = (
        tuple(p._replace(bytes=p.bytes // max(count, 1)) for p in map(part, those))
        for those in (list(tensors((args, kwargs))), written)
    )
    for step in SEVERAL.get(name, ("",)):
        yield from [Work(f"{name} {step}".strip(), reads, writes)] * count


def multi_tensor_launches(sizes: Iterable[int], depth: int, gpu: Gpu) -> int:
    """Return the launches of a multi-tensor kernel over tensors of these sizes.

    A launch takes a limited number of tensors, by the number of lists, and of chunks.
    """
    most = gpu.parameter_tensors[min(depth, max(gpu.parameter_tensors))]
    launches = held = blocks = 0
    for size in sizes:
        if not size:
            continue
        held += 1
        chunks = -(-size // gpu.parameter_chunk)
        for chunk in range(chunks):
            blocks += 1
            last = chunk == chunks - 1
            if blocks == gpu.blocks_per_launch or (held == most and last):
                launches, blocks = launches + 1, 0
                held = 0 if last else 1
    return launches + (blocks > 0)


def meta(value: Any) -> Any:
    """Return nested arguments with every tensor replaced by one without memory."""
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, (list, tuple)):
        return type(value)(map(meta, value))
    if isinstance(value, torch.device):
        return torch.device("meta")
    if isinstance(value, dict):
        return {name: meta(each) for name, each in value.items()}
    return value
