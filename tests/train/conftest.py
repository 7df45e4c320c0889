"""Shape checks of the trainer's public functions, the devices of this machine, and tiny runs that many tests read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook(
    [
        "vmae_train.clips.rng",
        "vmae_train.clips.mask",
        "vmae_train.clips.affine",
        "vmae_train.clips.augment",
        "vmae_train.clips.boxes",
        "vmae_train.clips.colour",
        "vmae_train.clips.erasing",
        "vmae_train.clips.image_ops",
        "vmae_train.clips.mixup",
        "vmae_train.clips.randaugment",
        "vmae_train.clips.resample",
        "vmae_train.models",
    ],
    "beartype.beartype",
)
torch.set_num_threads(1)

_DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.device) for name in _DEVICES])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="session")
def tiny_pretraining(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining run of four steps on `demo_shards`. Read only: copy it before you change it."""
    from tests.tiny_runs import pretrain_tiny  # after the import hook

    out = tmp_path_factory.mktemp("runs") / "tiny-pretraining"
    pretrain_tiny(demo_shards, out)
    return out


@pytest.fixture(scope="session")
def tiny_finetuning(tiny_pretraining: Path, demo_shards: Path) -> Path:
    """A finetuning run of four steps that started from `tiny_pretraining`. Read only."""
    from tests.tiny_runs import finetune_tiny

    out = tiny_pretraining.parent / "tiny-finetuning"
    finetune_tiny(demo_shards, out, "evaluate.every_steps=2", init=tiny_pretraining)
    return out


@pytest.fixture(scope="session")
def whole_shards(demo_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with every frame of the demo videos."""
    from vmae_data.build import build_shards
    from vmae_data.encode.build_spec import BuildSpec
    from vmae_data.progress import ProgressStyle
    from vmae_data.recipes import load_recipe

    dest = tmp_path_factory.mktemp("predict") / "shards"
    spec = load_recipe("vmae_data", "demo", BuildSpec, ["stride=1", "samples_per_shard=8"])
    build_shards(str(demo_videos), dest, spec, workers=2, style=ProgressStyle.QUIET)
    return dest


@pytest.fixture(scope="session")
def members(whole_shards: Path) -> list[Path]:
    """The first mp4 members of `whole_shards`, as files named by their keys."""
    from vmae_data.read.dataset import Shards

    shards, folder = Shards.open(str(whole_shards)), whole_shards.parent / "members"
    folder.mkdir()
    paths = []
    for number in range(3):
        member = shards.member_range(number)
        data = shards.shard_path(member.shard).read_bytes()[member.offset : member.offset + member.size]
        paths.append(folder / f"{shards.key(number)}.mp4")
        paths[-1].write_bytes(data)
    return paths


@pytest.fixture(params=["pretrain", "classifier"])
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of model that every format can hold."""
    return str(request.param)


@pytest.fixture
def native(kind: str, tmp_path: Path) -> Path:
    """A saved model of `kind`, in the native format."""
    from tests.converted_models import noisy_model
    from vmae_train.checkpoints.native import save_model

    folder = tmp_path / "native"
    folder.mkdir()
    save_model(folder, noisy_model(kind))
    return folder


@pytest.fixture
def run(tiny_finetuning: Path, tmp_path: Path) -> Path:
    """A finished run that a test may change."""
    return Path(shutil.copytree(tiny_finetuning, tmp_path / "run"))
