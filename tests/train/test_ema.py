from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vmae_data.errors import DataError
from vmae_train.checkpoints.ema import EMA_FILE, WeightMean
from vmae_train.models.geometry import ModelSpec
from vmae_train.models.videomae import PretrainModel

TINY = ModelSpec(size="tiny", depth=1, decoder_depth=1).geometry()


@torch.no_grad()
def _move(model: PretrainModel, by: float) -> None:
    for parameter in model.parameters():
        parameter.add_(by)


def test_the_mean_follows_the_weights_by_its_decay(device: torch.device) -> None:
    model = PretrainModel(TINY, seed=1).to(device)
    first = model.mask_token.detach().clone()
    mean = WeightMean(model, 0.75)
    wanted = first.clone()
    for _ in range(3):
        _move(model, 1.0)
        mean.update(model)
        wanted = 0.75 * wanted + 0.25 * model.mask_token.detach()
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with mean.in_place_of(model):
        assert torch.allclose(model.mask_token, wanted, atol=1e-6)
    for name, value in model.state_dict().items():
        assert torch.equal(value, own[name]), name


def test_the_weights_come_back_when_scoring_fails() -> None:
    model = PretrainModel(TINY, seed=1)
    mean = WeightMean(model, 0.9)
    _move(model, 1.0)
    own = model.mask_token.detach().clone()
    with pytest.raises(RuntimeError), mean.in_place_of(model):
        raise RuntimeError
    assert torch.equal(model.mask_token, own)


def test_a_saved_mean_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model = PretrainModel(TINY, seed=1)
    mean = WeightMean(model, 0.9)
    _move(model, 0.3)
    mean.update(model)
    mean.save(tmp_path)
    again = WeightMean(model, 0.9)
    again.load(tmp_path)
    for _ in range(2):
        _move(model, 0.1)
        mean.update(model)
        again.update(model)
    mean.save(tmp_path)
    (tmp_path / "again").mkdir()
    again.save(tmp_path / "again")
    assert (tmp_path / EMA_FILE).read_bytes() == (tmp_path / "again" / EMA_FILE).read_bytes()


def test_a_file_of_another_model_or_a_broken_one_is_refused(tmp_path: Path) -> None:
    other = PretrainModel(ModelSpec(size="tiny", depth=2, decoder_depth=1).geometry(), seed=1)
    WeightMean(other, 0.9).save(tmp_path)
    mean = WeightMean(PretrainModel(TINY, seed=1), 0.9)
    with pytest.raises(DataError, match="other weights"):
        mean.load(tmp_path)
    (tmp_path / EMA_FILE).write_bytes(b"x" * 20)
    with pytest.raises(DataError, match="not readable"):
        mean.load(tmp_path)
    with pytest.raises(ValueError, match="decay"):
        WeightMean(other, 1.0)
