"""`deepspeed`: the processes share moments, gradients and weights by ZeRO, stages 0 to 3."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from vmae_train.checkpoints.ema import ModelEma
from vmae_train.engines.ddp import MOMENTS, DataParallel, LossModule, Named
from vmae_train.models.base import VideoModel, trained_parameters

__all__ = ["ZeroDataParallel"]

_MAX_BUCKET = 500_000_000  # gradients that are reduced together, at most; DeepSpeed's default


class _Part(NamedTuple):
    """This process's part of a flattened parameter, and where it is in a partition of the optimizer."""

    shape: torch.Size
    start: int  # in the flattened parameter
    length: int
    partition: Tensor | None = None
    at: int = 0  # in the partition

    def of(self, whole_tensor: Tensor) -> Tensor:
        return whole_tensor.flatten()[self.start : self.start + self.length]

    def in_partition(self, flat: Tensor) -> Tensor:
        return flat[self.at : self.at + self.length]


class ZeroDataParallel(DataParallel):
    """Stage 0: each process has the whole model. 1: a part of the moments. 2: and of gradients. 3: and of weights.

    Until `wrap` everything is whole in each process. Then this class reads the parts that DeepSpeed chose for this
    process, because DeepSpeed's checkpoints can't be read without it.
    """

    def __init__(self, *arguments: Any, stage: int) -> None:
        """The `arguments` are those of DataParallel."""
        super().__init__(*arguments)
        self.stage = stage
        self.waits_in_passes = stage >= 2
        self.takes_scaled_gradients = not stage
        self._engine: Any = None
        self._weight_parts: dict[str, _Part] = {}  # stage 3
        self._moment_parts: dict[str, _Part] = {}  # from stage 1 on

    def wrap(self, optimizer: torch.optim.Optimizer, ema: ModelEma | None) -> None:
        deepspeed = _import_deepspeed(self.device)
        moments: dict[str, Tensor] = {}
        if self.stage:
            moments.update(super()._whole_moments(optimizer) if optimizer.state else ())
            optimizer.state.clear()  # the optimizer's parameters become flat partitions
        self._engine, *_ = deepspeed.initialize(
            model=LossModule(self.model, self.loss),
            optimizer=optimizer,
            config=self._config(),
            dist_init_required=False,
        )
        self.loss = self._engine
        if self.stage:
            self._moment_parts = dict(self._find_moment_parts())
            self._share_moments(optimizer, moments)
        if self.stage == 3:
            self._weight_parts = {name: _weight_part(p, dist.get_rank()) for name, p in self.model.named_parameters()}
            if ema is not None:
                parts = self._weight_parts
                ema.averages = {
                    name: parts[name].of(value).clone() if name in parts else value
                    for name, value in ema.averages.items()
                }

    def _config(self) -> dict[str, Any]:
        """The recipe decides batch, accumulation, learning rate and precision; DeepSpeed must not change them."""
        bucket = min(_MAX_BUCKET, sum(p.numel() for p in self.model.parameters()))
        return {
            "train_micro_batch_size_per_gpu": 1,  # unused: it would only count samples
            "gradient_accumulation_steps": 1,  # `passes` says which backward pass is the last one
            "gradient_clipping": 0.0 if self.clip_grad is None or not self.stage else self.clip_grad,
            "zero_allow_untested_optimizer": True,  # torch's AdamW: DeepSpeed's own ones are compiled at first use
            "zero_optimization": {
                "stage": self.stage,
                "reduce_bucket_size": bucket,
                "memory_efficient_linear": False,  # it would replace a function of torch in the whole process
            },
        }

    def passes(self, *, last: bool) -> AbstractContextManager[Any]:
        self._engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def update(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, scale: float) -> Tensor:
        if not self.stage:  # the gradients are whole and averaged
            return super().update(optimizer, scaler, scale)
        zero = self._engine.optimizer
        zero.loss_scale = 1 / scale  # it divides the gradients by this
        self._engine.step()
        zero.loss_scale = 1.0
        return torch.as_tensor(zero._global_grad_norm, dtype=torch.float32, device=self.device)

    def local_weights(self) -> Mapping[str, Tensor]:
        weights = super().local_weights()
        if not self._weight_parts:
            return weights
        # The end of the last part is padding.
        own: dict[str, Any] = dict(self.model.named_parameters())
        parts = {name: own[name].ds_tensor.detach()[: part.length] for name, part in self._weight_parts.items()}
        return {**weights, **parts}

    def whole_model(self) -> VideoModel:
        return self._whole_copy() if self._weight_parts else self.model

    def _whole_weights(self, weights: Mapping[str, Tensor]) -> Named:
        parts = self._weight_parts
        return (
            (name, _gather(parts[name], value) if name in parts else value.detach()) for name, value in weights.items()
        )

    def _whole_moments(self, optimizer: torch.optim.Optimizer) -> Named:
        if not self._moment_parts:
            yield from super()._whole_moments(optimizer)
        for name, part in self._moment_parts.items():
            assert part.partition is not None
            state = optimizer.state[part.partition]
            for moment in MOMENTS:
                value = state[moment]
                yield f"{moment}/{name}", value.clone() if moment == "step" else _gather(part, part.in_partition(value))

    def _find_moment_parts(self) -> Iterable[tuple[str, _Part]]:
        zero, rank = self._engine.optimizer, dist.get_rank()
        parameters: Iterable[tuple[str, Any]] = trained_parameters(self.model)
        for name, parameter in parameters:
            if self.stage == 3:
                group, at, _ = zero.grad_position[zero.get_param_id(parameter)]
                part = _weight_part(parameter, rank)
                yield name, part._replace(partition=zero.fp32_partitioned_groups_flat[group], at=at)
                continue
            group = next(i for i, members in enumerate(zero.bit16_groups) if any(p is parameter for p in members))
            partition, mapping = zero.single_partition_of_fp32_groups[group], parameter._hp_mapping
            if mapping is None:  # all of it is in partitions of other processes
                yield name, _Part(parameter.shape, 0, 0, partition)
            else:
                inside, own = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield name, _Part(parameter.shape, inside.start, inside.numel, partition, own.start)

    def _share_moments(self, optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
        """Put this process's part of the moments of a checkpoint into the optimizer."""
        for name, part in self._moment_parts.items() if moments else ():
            assert part.partition is not None
            if part.partition not in optimizer.state:
                flat = {moment: torch.zeros_like(part.partition) for moment in MOMENTS if moment != "step"}
                optimizer.state[part.partition] = {**flat, "step": moments[f"step/{name}"]}
            for moment in MOMENTS:
                if moment != "step":
                    own = part.in_partition(optimizer.state[part.partition][moment])
                    own.copy_(part.of(moments[f"{moment}/{name}"]))


def _weight_part(parameter: Any, rank: int) -> _Part:
    """The part of a parameter that stage 3 keeps in this process: parts are equally long, the last is padded."""
    size, numel = parameter.ds_tensor.numel(), parameter.ds_numel
    start = min(size * rank, numel)
    return _Part(parameter.ds_shape, start, min(size, numel - start))


def _gather(part: _Part, own: Tensor) -> Tensor:
    """The whole tensor, from the parts of all processes."""
    bits = torch.zeros(part.shape.numel(), dtype=torch.int32, device=own.device)
    part.of(bits).copy_(own.detach().view(torch.int32))  # a sum of bits and zeros keeps the sign of a zero
    dist.all_reduce(bits)
    return bits.view(torch.float32).view(part.shape)


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed for this device, without what it would compile, import for long, or print."""
    os.environ["DS_ACCELERATOR"] = device.type
    os.environ.setdefault("LOCAL_RANK", "0")  # it refuses to start without
    import deepspeed
    from deepspeed.runtime import compiler

    # Standard output is for results.
    for handler in (log := logging.getLogger("DeepSpeed")).handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    log.setLevel(logging.ERROR)  # the training stops at what it warns of: gradients that are not finite
    # Its messages of torch's coming changes are for its own authors.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if device.type == "cpu":  # it would be compiled, and the processes would wait for each other's lock
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # An optimizer that is not used here is compiled when it is imported, which takes five seconds.
    compile_function = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.original_muon
    finally:
        compiler.compile = compile_function
    return deepspeed
