"""Copies from page-locked buffers to a GPU. Without one, a fake of torch.cuda copies as late as a GPU may."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_runs import training_steps
from tests.train.test_no_device_wait import FINETUNINGS, PRETRAININGS, TINY
from vmae_data.read.batches import Request
from vmae_data.read.dataset import Shards
from vmae_data.recipes import load_recipe
from vmae_train.clips import loader as module
from vmae_train.clips.frame_sampling import StrideSampler
from vmae_train.clips.loader import Batch, ClipLoader, LoaderSpec
from vmae_train.finetune import FinetuneObjective, FinetuneSpec
from vmae_train.pretrain import PretrainObjective, PretrainSpec
from vmae_train.training.objective import Objective
from vmae_train.training.run_spec import RunSpec

REQUESTS = [Request(0, step, tuple(range(2 * step, 2 * step + 2))) for step in range(6)]


class FakeCuda:
    """A copy runs when its event comes: at the `lag`-th question, or when the host waits for it."""

    def __init__(self, lag: float, *, refuses: bool = False) -> None:
        self.lag, self.refuses = lag, refuses
        self.log: list[str] = []
        self.started: list[tuple[Tensor, Tensor]] = []
        self.events: list[FakeEvent] = []
        self.fails = False

    def Stream(self, device: torch.device) -> FakeStream:
        return FakeStream(self, "side")

    def current_stream(self, device: torch.device) -> FakeStream:
        return FakeStream(self, "current")

    def Event(self) -> FakeEvent:
        return FakeEvent(self)

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        self.log.append(f"on {stream.name}")
        yield
        self.log.append("back")

    def cudart(self) -> FakeCuda:
        return self

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        assert address % 4096 == 0
        self.log.append(f"lock {nbytes}")
        return int(self.refuses)

    def cudaHostUnregister(self, address: int) -> int:
        self.log.append("unlock")
        return 0


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.questions, self.come = cuda, 0, False

    def record(self, stream: FakeStream) -> None:
        self.cuda.log.append(f"event on {stream.name}")
        self.copies, self.cuda.started = self.cuda.started, []
        self.cuda.events.append(self)

    def query(self) -> bool:
        self.questions += 1
        if self.questions > self.cuda.lag:
            self.synchronize()
        return self.come

    def synchronize(self) -> None:
        if not self.come:
            for target, source in self.copies:
                target.copy_(source)
        self.come = True


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_event(self, event: FakeEvent) -> None:
        self.cuda.log.append(f"{self.name} waits")

    def synchronize(self) -> None:
        self.cuda.log.append(f"host waits for {self.name}")
        if self.cuda.fails:
            raise RuntimeError("CUDA error")
        for event in self.cuda.events:
            event.synchronize()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the loader copy with a fake."""

    def replace(cuda: FakeCuda) -> FakeCuda:
        class Copies(module._Copies):
            def _upload(self, flat: Tensor) -> Tensor:
                cuda.log.append("copy")
                cuda.started.append((torch.empty_like(flat), flat))
                return cuda.started[-1][0]

        monkeypatch.setattr(module._Copies, "on", lambda device: Copies(device, cuda))
        monkeypatch.setattr(Tensor, "record_stream", lambda _, stream: cuda.log.append(f"kept for {stream.name}"))
        return cuda

    return replace


def _loader(shards: Path, *, ahead: int = 2, device: str = "cpu") -> ClipLoader:
    data, spec = Shards.open(str(shards)), LoaderSpec(workers=0, ahead=ahead)
    return ClipLoader(data, StrideSampler(16, 1), REQUESTS, batch=2, frames=16, seed=3, spec=spec, device=device)


def _batches(loader: ClipLoader) -> list[Batch]:
    with loader:
        return list(loader)


def _assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    assert [batch.request for batch in found] == [batch.request for batch in expected] == REQUESTS
    for one, other in zip(found, expected, strict=True):
        for own, planes in zip(one.planes, other.planes, strict=True):
            assert torch.equal(own.cpu(), planes)
        assert torch.equal(one.label_B.cpu(), other.label_B)


@pytest.mark.parametrize("ahead", [1, 3])
@pytest.mark.parametrize("lag", [0, 2, math.inf])
def test_no_buffer_is_filled_again_before_its_copy_has_ended(
    demo_shards: Path, use: Any, lag: float, ahead: int
) -> None:
    expected = _batches(_loader(demo_shards))
    use(FakeCuda(lag))
    _assert_equal(_batches(_loader(demo_shards, ahead=ahead)), expected)


def test_the_host_waits_for_a_copy_only_if_no_buffer_is_left(demo_shards: Path, use: Any) -> None:
    cuda = use(FakeCuda(math.inf))
    with _loader(demo_shards, ahead=3) as loader:
        batches = iter(loader)
        for count in range(1, 4):
            next(batches)
            assert [event.come for event in cuda.events] == [False] * count


def test_a_batch_belongs_to_the_stream_that_reads_it_and_waits_for_its_copy(demo_shards: Path, use: Any) -> None:
    cuda = use(FakeCuda(0))
    with _loader(demo_shards) as loader:
        cuda.log.clear()
        next(iter(loader))
    assert cuda.log[:6] == ["on side", "copy", "event on side", "back", "current waits", "kept for current"]


@pytest.mark.parametrize("broken", [False, True])
def test_memory_is_unlocked_after_the_copies_whatever_fails(demo_shards: Path, use: Any, broken: bool) -> None:
    cuda = use(FakeCuda(math.inf))
    loader = _loader(demo_shards)
    assert cuda.log == [f"lock {3 * loader.layout.bytes}"]
    cuda.fails = broken
    error, text = (RuntimeError, "CUDA error") if broken else (ValueError, "of a step")
    with pytest.raises(error, match=text), loader:
        next(iter(loader))
        raise ValueError("of a step")
    assert cuda.log[-2:] == ["host waits for side", "unlock"]
    assert broken or all(event.come for event in cuda.events)
    with pytest.raises(OSError, match="Bad file descriptor"):
        loader._buffers.close()  # was closed


def test_without_page_locked_memory_copies_wait(demo_shards: Path, use: Any) -> None:
    expected = _batches(_loader(demo_shards))
    cuda = use(FakeCuda(0, refuses=True))
    loader = _loader(demo_shards)
    _assert_equal(_batches(loader), expected)
    assert [line.split()[0] for line in cuda.log] == ["lock"]
    assert "can't be page-locked" in " ".join(loader.notes)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_cuda
@pytest.mark.device
@pytest.mark.parametrize("locked", [True, False])
def test_batches_on_a_gpu_are_those_of_the_cpu(
    demo_shards: Path, locked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not locked:
        monkeypatch.setattr(module._Copies, "lock", lambda *_: False)
    expected = _batches(_loader(demo_shards))
    busy = torch.ones(4096, 4096, device="cuda")
    for _ in range(50):
        busy = busy @ busy  # the copies overlap with it
    _assert_equal(_batches(_loader(demo_shards, ahead=1, device="cuda")), expected)


def _step_on_gpu(spec: RunSpec, objective: Objective, shards: Path) -> None:
    with training_steps(spec, objective, shards, torch.device("cuda")) as step:
        step(0)  # the first one sets up kernels, which waits
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(1)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@pytest.mark.device
@pytest.mark.parametrize("settings", PRETRAININGS.values(), ids=PRETRAININGS)
def test_a_step_of_pretraining_never_waits_for_a_gpu(demo_shards: Path, settings: tuple[str, ...]) -> None:
    spec = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, [*TINY, *settings])
    _step_on_gpu(spec, PretrainObjective(spec), demo_shards)


@needs_cuda
@pytest.mark.device
@pytest.mark.parametrize("settings", FINETUNINGS.values(), ids=FINETUNINGS)
def test_a_step_of_finetuning_never_waits_for_a_gpu(demo_shards: Path, settings: tuple[str, ...]) -> None:
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, [*TINY, *settings])
    _step_on_gpu(spec, FinetuneObjective(spec, str(demo_shards)), demo_shards)
