"""No step computes attention with PyTorch's math kernel, which stores all scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.tiny_runs import training_steps
from vmae_data.recipes import load_recipe
from vmae_train.finetune import FinetuneObjective, FinetuneSpec
from vmae_train.models import vit
from vmae_train.pretrain import PretrainObjective, PretrainSpec
from vmae_train.training.objective import Objective
from vmae_train.training.run_spec import RunSpec

SMALL = ("train.batch=4", "train.micro_batch=4", "loader.workers=0", "model.depth=2")
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]


@pytest.fixture(autouse=True)
def _no_math_kernel() -> Iterator[None]:
    """What fits the math kernel alone raises."""
    with sdpa_kernel(FUSED):
        yield


def _step(spec: RunSpec, objective: Objective, shards: Path, device: torch.device) -> Tensor:
    with training_steps(spec, objective, shards, device) as step:
        return step(0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "settings",
    [(), ("mask.decoder=running-cell",), ("model.decoder_attention=cross",)],
    ids=["all tokens", "running cell", "cross-attention"],
)
def test_pretraining_never_uses_the_math_kernel(
    demo_shards: Path, device: torch.device, precision: str, settings: tuple[str, ...]
) -> None:
    spec = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, [*SMALL, f"train.precision={precision}", *settings])
    if device.type == "cuda" and precision == "float32":
        pytest.skip("kernels for float32 on a GPU depend on its generation")
    assert _step(spec, PretrainObjective(spec), demo_shards, device).isfinite()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("settings", [(), ("probe=attentive",)], ids=["all weights", "attentive probe"])
def test_finetuning_never_uses_the_math_kernel(
    demo_shards: Path, device: torch.device, precision: str, settings: tuple[str, ...]
) -> None:
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, [*SMALL, f"train.precision={precision}", *settings])
    if device.type == "cuda" and precision == "float32":
        pytest.skip("kernels for float32 on a GPU depend on its generation")
    assert _step(spec, FinetuneObjective(spec, str(demo_shards)), demo_shards, device).isfinite()


def test_a_step_that_needs_the_math_kernel_is_noticed(demo_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attention = F.scaled_dot_product_attention

    def of_narrow_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        narrow = attention(q, k, v[..., ::2])  # the fused kernels want as many values as keys
        return torch.cat((narrow, narrow), dim=-1)

    monkeypatch.setattr(vit.F, "scaled_dot_product_attention", of_narrow_values)
    spec = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, [*SMALL])
    with pytest.raises(RuntimeError, match="No available kernel|[Nn]o viable backend"):
        _step(spec, PretrainObjective(spec), demo_shards, torch.device("cpu"))
