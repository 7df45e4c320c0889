"""A training recipe → the peak memory and the FLOPs of its step. It needs neither data nor a GPU.

The step of an optimizer runs on fake tensors, which have shapes and no values: crops from planes, model, backward pass,
AdamW. Every tensor that it allocates is counted from its creation to its end. Not counted are what kernels allocate for
themselves, fragmentation, the CUDA context, and the frames of further batches that wait on the device.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.resources import files
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from vmae_data.motion import cells_of
from vmae_data.read.batches import BatchLayout, Request
from vmae_train.clips.augment import Augment
from vmae_train.clips.colour import Planes
from vmae_train.clips.loader import Batch
from vmae_train.clips.rng import ClipRng
from vmae_train.finetune import FinetuneSpec, label_loss
from vmae_train.models.heads import Classifier
from vmae_train.models.videomae import PretrainModel
from vmae_train.pretrain import PretrainSpec, masked_loss
from vmae_train.training.head import probed
from vmae_train.training.optimizer import build_optimizer

__all__ = [
    "Footprint",
    "KnownFootprint",
    "find_footprint",
    "footprint_key",
    "frame_size",
    "known_footprints",
    "measure_footprint",
    "noise_batch",
]

CLASSES = 400
ALLOCATION = 512  # bytes: the allocator of CUDA rounds up to this
MIB = 1 << 20


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of one process's step in MiB, and the floating point operations of its micro-batch.

    A multiply-add is two operations. The backward pass is included, the crops are not.
    """

    micro_batch: int  # videos
    state_mib: float  # frames, weights, optimizer, moving average; gradients if several micro-batches add to them
    crops_mib: float  # the peak while clips are made of planes, state included
    peak_mib: float
    gflop_a_clip: float


class KnownFootprint(msgspec.Struct, frozen=True, kw_only=True):
    """A row of footprints.json: `python -m tools.bench.memory` writes it."""

    recipes: tuple[str, ...]
    key: str
    footprint: Footprint


def find_footprint(spec: PretrainSpec | FinetuneSpec, *, processes: int = 1) -> Footprint:
    """From the table of the recipes, or measured, which takes seconds to minutes."""
    key = footprint_key(spec, processes=processes)
    known = {row.key: row.footprint for row in known_footprints()}
    return known[key] if key in known else measure_footprint(spec, processes=processes)


def known_footprints() -> tuple[KnownFootprint, ...]:
    table = (files("vmae_train") / "footprints.json").read_bytes()
    return msgspec.json.decode(table, type=tuple[KnownFootprint, ...])


def memory_text(peak_mib: float) -> str:
    """The line of a recipe's head."""
    amount = f"{peak_mib / 1024:.1f} GiB" if peak_mib >= 1024 else f"{peak_mib:.0f} MiB"
    return f"Memory: {amount} at the peak of a GPU (computed: docs/planning.md). Hours: vmae-train plan."


def footprint_key(spec: PretrainSpec | FinetuneSpec, *, processes: int = 1) -> str:
    """A digest of what decides the footprint."""
    layout = BatchLayout.of(spec.train.batch, spec.train.micro_batch, processes)
    if isinstance(spec, PretrainSpec):
        own: tuple[Any, ...] = (spec.mask,)
    else:
        own = (spec.mix, spec.probe, spec.value_loss, *([spec.aux.mask] if spec.aux.is_on else []))
    parts = [
        *(type(spec).__name__, spec.geometry().stored()),
        *(spec.model.activation_checkpointing, spec.model.drop_path > 0, *own),
        msgspec.structs.replace(spec.augment, flip=False),
        *(layout.micro_batch, layout.grad_accum_steps > 1 or processes > 1),
        *(spec.train.repeats, spec.train.precision, spec.ema.decay is not None),
    ]
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:16]


def frame_size(image_size: int) -> tuple[int, int]:
    """Height and width of the frames that are assumed: 16:9, with a short side of 8 / 7 of the model's size."""
    height = 2 * round(image_size * 4 / 7)
    return height, 2 * round(height * 8 / 9)


def measure_footprint(spec: PretrainSpec | FinetuneSpec, *, processes: int = 1) -> Footprint:
    """Raises MisuseError for fewer videos than processes. `train.precision` auto is the bfloat16 of a GPU."""
    layout = BatchLayout.of(spec.train.batch, spec.train.micro_batch, processes)
    precision = torch.bfloat16 if spec.train.precision == "auto" else getattr(torch, spec.train.precision)
    memory, flops = _Memory(), FlopCounterMode(display=False, custom_mapping=_ATTENTION)
    model, augment = _build_model(spec), _build_augment(spec)
    with FakeTensorMode(allow_non_fake_inputs=True), memory:
        _make_fake(model)
        _make_fake(augment)
        optimizer = build_optimizer(model, spec.optim, depth=model.geometry.depth)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()  # makes its moments
        average = spec.ema.build(model)
        if layout.grad_accum_steps == 1 and processes == 1:  # DistributedDataParallel keeps the memory of gradients
            optimizer.zero_grad(set_to_none=True)
        batch = noise_batch(
            layout.micro_batch, model.geometry.num_frames, model.geometry.image_size, motion=spec.reads_motion
        )
        state, memory.peak = memory.live, memory.live
        made_clips: list[int] = []  # the peak and the operations until then
        augment.register_forward_hook(lambda *_: made_clips.extend((memory.peak, flops.get_total_flops())))
        with flops:
            with _autocast(precision):
                loss = _loss(spec, model, augment, batch)
            torch.autograd.backward(loss)
        nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        optimizer.step()
        if average is not None:
            average.update(model.state_dict())
    clips = layout.micro_batch * spec.train.repeats
    return Footprint(
        micro_batch=layout.micro_batch,
        state_mib=round(state / MIB, 1),
        crops_mib=round(made_clips[0] / MIB, 1),
        peak_mib=round(memory.peak / MIB, 1),
        gflop_a_clip=round((flops.get_total_flops() - made_clips[1]) / clips / 1e9, 3),
    )


def _build_model(spec: PretrainSpec | FinetuneSpec) -> PretrainModel | Classifier:
    """Without first weights: their memory is not touched."""
    geometry = spec.geometry()
    if isinstance(spec, PretrainSpec):
        model: PretrainModel | Classifier = PretrainModel(geometry, seed=None)
    else:
        classes = tuple(map(str, range(CLASSES)))
        model = Classifier(probed(geometry, spec.probe, standardize=spec.standardize), classes, seed=None)
        if spec.aux.is_on:
            model.share_encoder(PretrainModel(geometry, seed=None))
        if spec.probe is not None:
            model.freeze_encoder()
    model.set_options(msgspec.structs.replace(spec.model, compile=False))
    return model.train()


def _build_augment(spec: PretrainSpec | FinetuneSpec) -> Augment:
    """`random` reads sizes on a CPU, and fake tensors have no values; `multiscale` allocates the same."""
    crop = "multiscale" if spec.augment.crop == "random" else spec.augment.crop
    augment = Augment(msgspec.structs.replace(spec.augment, size=spec.geometry().image_size, crop=crop))
    augment.reads_boxes = False  # as on a GPU
    return augment


def _make_fake(module: nn.Module) -> None:
    """Fake tensors in place of parameters and buffers."""
    for part in module.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            fake = nn.Parameter(torch.empty(weight.shape), requires_grad=weight.requires_grad)
            setattr(part, name, fake)
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def noise_batch(
    count: int, frames: int, image_size: int, device: torch.device | str = "cpu", *, motion: bool = False
) -> Batch:
    """A batch as the loader gives it: frames of noise, of the size that is assumed for a model's image size.

    `motion`: with lengths of motion vectors, which are 0.
    """
    height, width = frame_size(image_size)
    cells = (count, frames, *cells_of(height, width))

    def plane(divisor: int) -> Tensor:
        shape = (count, frames, height // divisor, width // divisor)
        return torch.randint(0, 256, shape, dtype=torch.uint8, device=device)

    zeros = torch.zeros(count, dtype=torch.int64, device=device)
    yes = torch.ones(count, dtype=torch.bool, device=device)
    sizes = torch.tensor([[height, width]] * count, device=device)
    samples = np.arange(count)
    return Batch(
        planes=Planes(plane(1), plane(2), plane(2), sizes, zeros, yes),
        index_BVT=None,
        label_B=zeros,
        weight_B=torch.ones(count, device=device),
        may_flip_B=yes,
        valid=count,
        rng=ClipRng.on(device, seed=0, epoch=0, sample=samples),
        request=Request(0, 0, tuple(samples.tolist())),
        motion_BFHW=torch.zeros(cells, dtype=torch.int32, device=device) if motion else None,
    )


def _loss(
    spec: PretrainSpec | FinetuneSpec, model: PretrainModel | Classifier, augment: Augment, batch: Batch
) -> Tensor:
    """As the objective of the recipe."""
    repeats = spec.train.repeats
    if isinstance(spec, PretrainSpec):
        assert isinstance(model, PretrainModel)
        return masked_loss(model, batch, augment, spec.mask, repeats=repeats)
    assert isinstance(model, Classifier)
    losses = label_loss(model, batch, augment, spec.mix, spec.aux, repeats=repeats, value_loss=spec.value_loss)
    return losses[0] if spec.aux.is_on else losses


def _autocast(precision: torch.dtype) -> AbstractContextManager[Any]:
    return nullcontext() if precision is torch.float32 else torch.autocast("cpu", dtype=precision)


class _Memory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors that exist, and the most that existed at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address not in self._known:  # else: a view of it
            size = -(-storage.nbytes() // ALLOCATION) * ALLOCATION
            self._known.add(address)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._remove, address, size)

    def _remove(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.live -= size


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward_flops(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))  # type: ignore[no-untyped-call]


# The kernels of a CPU: torch counts those of GPUs only.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
