"""Records what a training step launches, in order, without computing anything.

Tensors are on the CPU, so that autograd, autocast and the optimizer work as they are; but an ATen
call is worked out on the meta device, and its result is memory that nobody writes or touches. Our
kernels are recorded in place of being launched (`runtime.recorded_launches`).
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.model import aten
from bench.model.aten import Part, Work
from bench.model.gpu import Gpu
from fastunit.kernels.common import runtime
from fastunit.kernels.common.variants import Variant, specialise

ROOT = Path(__file__).resolve().parents[2]
_OWN = ("kernels/", "fastunit/", "bench/step/")


class Event(NamedTuple):
    """One kernel that a GPU would run, and the place in the code that launches it.

    `variant`, `grid` and `arguments` are those of a Triton kernel: what it compiles to, and the
    scalars by name. Of an ATen kernel they are None.
    """

    work: Work
    place: str  # "kernels/conv/phases.py:border_correction"
    variant: Variant | None = None
    grid: tuple[int, ...] = ()
    arguments: dict[str, Any] | None = None


class Trace(TorchDispatchMode):
    """Inside the block, collects the events of ATen calls and of our launches.

    Attributes:
        events: in the order of the launches.
        waits: calls that make the host wait for the device, by name and place.
    """

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu, self.events, self.waits = gpu, list[Event](), Counter[str]()
        self._numbers, self._count = dict[int, int](), itertools.count()
        self._stack = ExitStack()

    def __enter__(self) -> Trace:
        enter = self._stack.enter_context
        enter(runtime.default_impl("triton"))
        enter(runtime.recorded_launches(self.gpu.arch))
        recorder = runtime._recorder
        assert recorder is not None
        recorder.take = self._take
        # Operations take the path that they take in eager mode without a dispatch mode.
        enter(mock.patch.object(torch._C, "_len_torch_dispatch_stack", lambda: 0))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    def clear(self) -> None:
        """Forget what was recorded so far."""
        self.events.clear()
        self.waits.clear()

    def _take(self, launch: runtime.Launch) -> None:
        event = triton_event(launch, self.gpu.arch, place(sys._getframe(1)))
        self.events.append(event._replace(work=self._numbered(event.work)))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "fastunit":
            with self._again():
                return _implementation(func)(*args, **kwargs)
        name = aten.name_of(func)
        if aten.waits(func):
            self.waits[f"{name} at {place(sys._getframe(1))}"] += 1
            return func(*args, **kwargs)
        result = run_without_data(func, name, args, kwargs)
        self._number((args, kwargs), result)
        found = aten.works(func, args, kwargs, result, self.gpu)
        if found:
            where = place(sys._getframe(1))
            self.events += [Event(self._numbered(work), where) for work in found]
        return result

    def _number(self, given: Any, result: Any) -> None:
        """Number new memory: an address alone would be that of memory which was freed."""
        known = {tensor.untyped_storage()._cdata for tensor in aten.tensors(given)}
        for tensor in aten.tensors(result):
            address = tensor.untyped_storage()._cdata
            if address not in known:
                self._numbers[address] = next(self._count)

    def _numbered(self, work: Work) -> Work:
        def number(parts: Sequence[Part]) -> tuple[Part, ...]:
            for part in parts:
                if part.storage not in self._numbers:
                    self._numbers[part.storage] = next(self._count)
            return tuple(p._replace(storage=self._numbers[p.storage]) for p in parts)

        return work._replace(reads=number(work.reads), writes=number(work.writes))

    @contextmanager
    def _again(self) -> Iterator[None]:
        """Record inside an operator of ours too, for which PyTorch turns the mode off."""
        TorchDispatchMode.__enter__(self)
        try:
            yield
        finally:
            TorchDispatchMode.__exit__(self, None, None, None)


def _implementation(func: Any) -> Any:
    """Return the Python function of an operator that `torch.library.custom_op` made."""
    from torch._library.custom_ops import OPDEFS

    return OPDEFS[func._schema.name]._init_fn


def run_without_data(func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return a call's result, of the right shapes; its values are whatever memory holds."""
    if aten.is_free(func, name):
        return func(*args, **kwargs)
    if func._schema.is_mutable:
        returned = func._schema.returns
        written = aten.mutated_by(func, args, kwargs)
        if not returned:
            return None
        return written[0] if len(returned) == 1 else tuple(written)
    if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta":
        return func(*args, **kwargs)
    if not any(True for _ in aten.tensors((args, kwargs))):
        kwargs = {**kwargs, "device": torch.device("meta")}
    return _allocated(func(*aten.meta(tuple(args)), **aten.meta(dict(kwargs))))


def _allocated(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    return type(value)(map(_allocated, value)) if isinstance(value, (list, tuple)) else value


def triton_event(launch: runtime.Launch, arch: int, where: str) -> Event:
    """Return the event of a recorded launch; bytes and FLOPs are known once it is compiled."""
    variant = specialise(launch, arch)
    names = launch.kernel.arg_names
    arguments = dict(zip(names, launch.args, strict=False)) | launch.constexprs
    parts = {n: aten.part(v) for n, v in arguments.items() if isinstance(v, Tensor)}
    scalars = {n: v for n, v in arguments.items() if not isinstance(v, Tensor)}
    work = Work(variant.name, tuple(parts.values()), ())
    return Event(work, where, variant, launch.grid, scalars | {"": parts})


def place(frame: FrameType | None) -> str:
    """Return the innermost file of the project, and the function in it, that a frame is in."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(str(ROOT)) and not code.co_name.startswith("<"):
            path = Path(code.co_filename).resolve().relative_to(ROOT).as_posix()
            if path.startswith(_OWN) and path != "kernels/common/runtime.py":
                return f"{path}:{code.co_name}"
        frame = frame.f_back
    return "elsewhere"
