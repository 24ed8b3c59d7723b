"""Branches of a captured CUDA graph, on streams that only note what waits for what."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastunit.kernels.common import branches, runtime
from fastunit.kernels.conv import block, linked
from fastunit.training.objective import Batch

ARCH, SCALES = 90, 3
CPU = torch.device("cpu")


class Event(NamedTuple):
    """A launch or operation: name, stream, what was done before it, and the memory it is given."""

    name: str
    stream: Stream
    time: int
    clock: dict[Any, int]
    storages: set[int]

    def is_after(self, other: Event) -> bool:
        return self.clock.get(other.stream, 0) >= other.time


class Stream:
    """A stream that knows how much of each stream's work is done before its next launch."""

    def __init__(self, device=CPU):
        self.device, self.clock = device, {}

    def wait_stream(self, other):
        for stream, time in other.clock.items():
            self.clock[stream] = max(time, self.clock.get(stream, 0))


class Streams(TorchDispatchMode):
    """Stands in for torch.cuda's streams while launches are recorded; as a mode, sees all else."""

    def __init__(self):
        super().__init__()
        self.main = self.current = Stream()
        self.last = self.main  # where autograd ran a block last
        self.events: list[Event] = []
        self.backward = 0  # the place of the first event of a backward pass
        self.recorded: dict[int, set[Stream]] = {}  # by storage
        self.owners: dict[int, tuple[Stream, int]] = {}  # of storages: who made them, and when
        self.kept: list[object] = []  # so that no memory is used twice

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self._note(str(function), (*args, *(kwargs or {}).values()), found)
        return found

    def _note(self, name, args, results=()):
        stream = self.current
        stream.clock[stream] = time = stream.clock.get(stream, 0) + 1
        used, made = (
            {each.untyped_storage()._cdata for each in self._tensors(values)}
            for values in (args, results)
        )
        for storage in made - used:
            self.owners.setdefault(storage, (stream, time))
        self.events.append(Event(name, stream, time, {**stream.clock}, used | made))

    def _tensors(self, values):
        found = [each for each in tree_leaves(values) if isinstance(each, Tensor)]
        self.kept += [each.untyped_storage() for each in found]
        return found

    @contextmanager
    def on(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def launch(self, kernel, grid, args, *others):
        self._note(kernel.fn.__name__, args)
        return SimpleNamespace()

    def record(self, tensor, stream):
        self.kept.append(tensor.untyped_storage())
        self.recorded.setdefault(tensor.untyped_storage()._cdata, set()).add(stream)

    def of_lane(self, lane):
        return [each for each in self.events if branches._lanes.get(each.stream, 0) == lane]


@pytest.fixture
def streams(monkeypatch):
    """Return streams in place of torch.cuda's; nothing forks unless a test switches it on."""
    fake = Streams()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: fake.current)
    monkeypatch.setattr(torch.cuda, "stream", fake.on)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(Tensor, "record_stream", lambda x, stream: fake.record(x, stream))
    monkeypatch.setattr(runtime, "Launch", fake.launch)
    monkeypatch.setattr(branches, "_lanes", {})
    branches._stream.cache_clear()
    yield fake
    branches._stream.cache_clear()


@pytest.fixture
def capture(streams, monkeypatch):
    """Switch branches on, as if CPU tensors were on a GPU whose stream is captured.

    As autograd does, let backward passes run on the streams of forward ones, after what was
    launched before.
    """
    monkeypatch.setattr(branches, "ON", True)
    monkeypatch.setattr(branches, "_captures", lambda x: True)
    for function in (block._Eager, linked._Linked):
        for name, method in followed(streams, function).items():
            monkeypatch.setattr(function, name, staticmethod(method))


def followed(streams, function):
    ahead, back = function.forward, function.backward

    def forward(ctx, *args):
        ctx.stream = streams.current
        return ahead(ctx, *args)

    def backward(ctx, *gradients):
        streams.backward = streams.backward or len(streams.events)
        ctx.stream.wait_stream(streams.last)
        streams.last = ctx.stream
        with streams.on(ctx.stream):
            return back(ctx, *gradients)

    return {"forward": forward, "backward": backward}


@pytest.fixture
def step(make_step, tiny):
    """Return a training step of three scales, whose launches are recorded."""
    dis = tiny["dis"] | {"num_scales": SCALES}
    switches = {"pair_domains": "on", "precision": "bf16", "compile": "off", "graphs": "off"}
    with runtime.default_impl("triton"), runtime.recorded_launches(ARCH):
        made = make_step(dis=dis, **switches)
        yield made


def images():
    return Batch(*torch.zeros(2, 2, 3, 32, 32))


# ---- outside of captures


@pytest.mark.parametrize(("on", "capturing"), [(True, False), (False, True)])
def test_nothing_forks_unless_asked_to_and_in_a_capture(on, capturing, streams, step, monkeypatch):
    monkeypatch.setattr(branches, "ON", on)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    x = SimpleNamespace(is_cuda=True, device=CPU)
    with branches.joined():
        assert not branches.may_fork(x, SCALES)
        with branches.beside(x) as branch, branch:
            assert streams.current is streams.main
    step.updates(images())
    assert {each.stream for each in streams.events} == {streams.main}
    assert not streams.recorded


def test_in_a_capture_it_forks(streams, monkeypatch):
    monkeypatch.setattr(branches, "ON", True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    x = SimpleNamespace(is_cuda=True, device=CPU)
    assert not branches.may_fork(x, SCALES)  # nothing would join them
    with branches.joined():
        assert branches.may_fork(x, SCALES)
        assert not branches.may_fork(x, 1) and not branches.may_fork(x, branches.LANES // 2)
    with branches.beside(x, wanted=False) as branch, branch:
        assert streams.current is streams.main
    with branches.beside(x) as branch, branch:
        assert streams.current is not streams.main
    assert not branches.may_fork(SimpleNamespace(is_cuda=False), SCALES)


# ---- a step


@pytest.fixture
def found(capture, streams, step):
    """Return what a step launches; the one before has allocated what outlives it."""
    with streams:
        step.updates(images())
        streams.before = {storage for each in streams.events for storage in each.storages}
        streams.events.clear()
        streams.backward = 0
        step.updates(images())
    return streams


def test_a_filters_gradient_runs_beside_its_input_s(found):
    gradients = [each for each in found.events if each.name == "wgrad_kernel"]
    forked = [each for each in gradients if branches._lanes.get(each.stream, 0) % 2]
    assert len(gradients) - len(forked) <= 2 + 1 + SCALES  # the first layers of networks
    assert {branches._lanes[each.stream] for each in forked} == {1, *range(3, 3 + 2 * SCALES, 2)}
    for each in forked:
        (of_inputs,) = [
            other
            for other in found.events
            if other.name in ("conv_gemm_kernel", "dot_backward_kernel")
            and each.storages & other.storages
            and not each.is_after(other)
            and not other.is_after(each)
        ][:1]
        assert branches._lanes.get(of_inputs.stream, 0) == branches._lanes[each.stream] - 1


def test_what_is_read_or_written_beside_was_allocated_before_the_fork(found):
    for each in found.events:
        if each.name == "wgrad_kernel":
            for stream, time in (found.owners.get(s, each[1:3]) for s in each.storages):
                assert each.clock[stream] >= time


def test_scales_run_beside_each_other_between_a_fork_and_a_join(found):
    scales = [found.of_lane(2 * scale + 2) for scale in range(SCALES)]
    assert all(scales)
    main = found.of_lane(0)
    first = [events[0] for events in scales]
    assert not any(a.is_after(b) for a in first for b in first if a is not b)
    before = [each for each in main if first[0].is_after(each)]
    assert len(before) > 10  # what made the images
    assert all(each.is_after(before[-1]) for each in first)
    halved = [each.name for each in main if not any(map(each.is_after, first))][len(before) :]
    assert halved == ["aten.avg_pool2d.default"] * (SCALES - 1)
    joined = main[len(before) + len(halved)]
    assert joined.name == "aten.split_with_sizes.default"  # of scores
    for events in scales:
        forward = [each for each in events if joined.is_after(each)]
        assert sum("kernel" in each.name for each in forward) >= 2


def test_all_is_joined_before_an_update_and_at_the_end(found):
    updates = [place for place, each in enumerate(found.events) if "adam" in each.name]
    assert len(updates) == 2
    for place in updates:
        update = found.events[place]
        assert all(map(update.is_after, found.events[:place]))
    for each in found.events:
        assert found.main.clock[each.stream] >= each.time


def test_what_crosses_streams_is_recorded_or_outlives_the_step(found):
    crossing = {
        (storage, each.stream)
        for each in found.events[: found.backward]
        for storage in each.storages - found.before
        if found.owners.get(storage, [each.stream])[0] is not each.stream
    }
    into = {stream for _, stream in crossing}
    assert len(into) == 1 + SCALES  # images of each scale, and scores
    for storage, stream in crossing:
        assert stream in found.recorded.get(storage, ())


def test_scores_are_recorded_on_the_step_s_stream(found):
    assert sum(found.main in streams for streams in found.recorded.values()) >= SCALES


def test_scales_with_a_filter_in_common_do_not_fork(capture, streams, step):
    for discriminator in (step.unit.dis_a, step.unit.dis_b):
        discriminator.cnns[2] = discriminator.cnns[1]
    step.updates(images())
    assert {branches._lanes.get(each.stream, 0) for each in streams.events} == {0, 1}


def test_domains_that_run_apart_do_not_fork(capture, streams, make_step, tiny):
    dis = tiny["dis"] | {"num_scales": SCALES}
    with runtime.default_impl("triton"), runtime.recorded_launches(ARCH):
        make_step(dis=dis, precision="bf16", pair_domains="off").updates(images())
    assert {branches._lanes.get(each.stream, 0) for each in streams.events} == {0, 1}


def test_streams_of_branches_have_counters_of_their_own(capture, streams, monkeypatch):
    buffer = torch.zeros(
        (runtime._SLOTS + branches.LANES * runtime._BRANCH_SLOTS) * runtime._SLOT,
        dtype=torch.int32,
    )
    monkeypatch.setattr(runtime, "_zeros", lambda device: buffer)
    device = torch.device("cuda")

    def places():
        found = {runtime.counters(runtime._SLOT, device).storage_offset() for _ in range(500)}
        assert all(place % runtime._SLOT == 0 for place in found)
        return found

    main = places()
    assert len(main) == runtime._SLOTS
    with branches.beside(torch.zeros(1)) as branch, branch:
        beside = places()
    streams.current = branches._stream(CPU, branches.LANES - 1)
    last = places()
    assert len(beside) == len(last) == runtime._BRANCH_SLOTS >= 2
    assert not main & beside and not main & last and not beside & last
    assert max(last) + runtime._SLOT <= len(buffer)
