"""Compiling recorded launches ahead of time, for this machine's GPU or for another.

Triton's own JIT code specializes the recorded arguments, so that what is compiled here is what an
ordinary launch looks for in Triton's cache folder. Needs no GPU.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.cache import get_cache_key, get_cache_manager
from triton.runtime.jit import create_function_from_signature

from fastunit.kernels.common import dependent
from fastunit.kernels.common.runtime import Launch

try:
    from triton._C.libtriton import get_cache_invalidating_env_vars
except ImportError:  # no compiled part: the interpreter alone, elsewhere than on Linux

    def get_cache_invalidating_env_vars() -> dict[str, str]:
        return {}


@dataclass(frozen=True, eq=False)
class Variant:
    """One specialization of a kernel: what Triton compiles for one kind of arguments."""

    source: ASTSource
    target: GPUTarget
    options: Any  # the backend's, a dataclass

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def dtype(self) -> str:
        """Triton's name of the type that the first argument points to: "bf16"."""
        return next(iter(self.source.signature.values())).removeprefix("*")

    @property
    def constants(self) -> dict[str, Any]:
        """The constexprs by name, and the arguments that Triton treats as such: None and 1."""
        names = self.source.fn.arg_names
        return {names[path[0]]: value for path, value in self.source.constants.items()}

    @property
    def arguments(self) -> dict[str, str]:
        """Every argument by name: a constant's value, or the type and, after %, what divides it."""
        known = {name: str(value) for name, value in self.constants.items()}
        divisors = {
            path[0]: attributes[0][1]
            for path, attributes in self.source.attrs.items()
            if attributes
        }
        return {
            name: known.get(name, f"{kind}%{divisors[index]}" if index in divisors else kind)
            for index, (name, kind) in enumerate(self.source.signature.items())
        }

    @property
    def key(self) -> tuple[str, int, int, int]:
        """What tells variants apart."""
        options, arch = self.options, int(self.target.arch)
        return self.source.hash(), arch, options.num_warps, options.num_stages

    @property
    def cache_key(self) -> str:
        """The key under which Triton's cache keeps it, a hash of source, target and compiler."""
        backend = make_backend(self.target)
        options = backend.parse_options(dict(self.options.__dict__))
        key = get_cache_key(self.source, backend, options, get_cache_invalidating_env_vars())
        return hashlib.sha256(key.encode("utf-8")).hexdigest()

    def compile(self) -> Any:
        """Return the compiled kernel; Triton keeps it in its cache folder."""
        return triton.compile(self.source, target=self.target, options=self.options.__dict__)


def variants(launches: Iterable[Launch], arch: int) -> dict[Variant, int]:
    """Return the distinct specializations among recorded launches, with their counts."""
    found: dict[tuple, Variant] = {}
    times: Counter[tuple] = Counter()
    for launch in launches:
        variant = specialise(launch, arch)
        found.setdefault(variant.key, variant)
        times[variant.key] += 1
    return {variant: times[key] for key, variant in found.items()}


def specialise(launch: Launch, arch: int) -> Variant:
    """Return what Triton's JIT would compile for a launch: types, constants and divisibilities."""
    kernel, target = launch.kernel, GPUTarget("cuda", arch, 32)
    backend = make_backend(target)
    given = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, **launch.constexprs}
    if dependent.ON:
        given |= dependent.options(arch)
    # Three lines of JITFunction.run between the arguments and the compiler. They are internals of
    # Triton, but the only place where its specialization rules are written down.
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialisation, options = bind(*launch.args, **given)
    packed = kernel._pack_args(backend, given, bound, specialisation, options)
    options, signature, constexprs, attributes = packed
    return Variant(ASTSource(kernel, signature, constexprs, attributes), target, options)


def folder(variant: Variant) -> Path | None:
    """Return where Triton's cache has a compiled variant, or None.

    A cache folder that was moved is mended: Triton notes absolute paths.
    """
    cache, name = get_cache_manager(variant.cache_key), f"{variant.name[:150]}.json"
    found, listed = cache.get_file(name), cache.get_file(f"__grp__{name}")
    if found is None or listed is None:
        return None
    noted = json.loads(Path(listed).read_text(encoding="utf-8"))["child_paths"]
    here = {child: str(Path(found).with_name(child)) for child in noted}
    if not all(Path(path).is_file() for path in here.values()):
        return None
    if here != noted:
        cache.put_group(name, here)
    return Path(found).parent


def compile_missing(
    found: Iterable[Variant], workers: int, progress: Callable[[int, int], None]
) -> int:
    """Compile the variants that Triton's cache lacks, in parallel; return how many.

    `progress` is called with how many are compiled, and of how many, at first with 0.
    """
    missing = [variant for variant in found if folder(variant) is None]
    if missing:
        progress(0, len(missing))
    # Threads: passes and ptxas do not hold Python's lock.
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(variant.compile) for variant in missing]
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            progress(done, len(missing))
    return len(missing)
