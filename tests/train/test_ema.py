from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vmae_data.errors import DataError
from vmae_train.checkpoints.ema import EMA_FILE, ModelEma
from vmae_train.checkpoints.native import write_weights
from vmae_train.models.geometry import ModelSpec
from vmae_train.models.videomae import PretrainModel

TINY = ModelSpec(size="tiny", depth=1, decoder_depth=1).geometry()


@torch.no_grad()
def _add(model: PretrainModel, number: float) -> None:
    for parameter in model.parameters():
        parameter.add_(number)


def _save(ema: ModelEma, folder: Path) -> None:
    write_weights(folder / EMA_FILE, {name: value.cpu() for name, value in ema.averages.items()})


def test_the_average_follows_the_weights_by_its_decay(device: torch.device, tmp_path: Path) -> None:
    model = PretrainModel(TINY, seed=1).to(device)
    ema = ModelEma(model, 0.75)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(3):
        _add(model, 1.0)
        ema.update(model.state_dict())
        weights = model.state_dict()
        expected = {name: 0.75 * value + 0.25 * weights[name] for name, value in expected.items()}
    _save(ema, tmp_path)
    stored = load_file(tmp_path / EMA_FILE)
    assert stored.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(stored[name], value.cpu(), atol=1e-6), name


def test_a_saved_average_resumes_bit_for_bit(tmp_path: Path) -> None:
    model = PretrainModel(TINY, seed=1)
    ema = ModelEma(model, 0.9)
    _add(model, 0.3)
    ema.update(model.state_dict())
    _save(ema, tmp_path)
    resumed = ModelEma(model, 0.9)
    resumed.load(tmp_path)
    for _ in range(2):
        _add(model, 0.1)
        ema.update(model.state_dict())
        resumed.update(model.state_dict())
    _save(ema, tmp_path)
    (tmp_path / "resumed").mkdir()
    _save(resumed, tmp_path / "resumed")
    assert (tmp_path / EMA_FILE).read_bytes() == (tmp_path / "resumed" / EMA_FILE).read_bytes()


def test_a_file_of_another_model_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    other = PretrainModel(ModelSpec(size="tiny", depth=2, decoder_depth=1).geometry(), seed=1)
    _save(ModelEma(other, 0.9), tmp_path)
    ema = ModelEma(PretrainModel(TINY, seed=1), 0.9)
    with pytest.raises(DataError, match="names or shapes of the weights differ"):
        ema.load(tmp_path)
    (tmp_path / EMA_FILE).write_bytes(b"x" * 20)
    with pytest.raises(DataError, match="weights can't be read"):
        ema.load(tmp_path)
    with pytest.raises(ValueError, match="decay"):
        ModelEma(other, 1.0)
