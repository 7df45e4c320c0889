from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vmae_train.models.geometry import Geometry, ModelSpec
from vmae_train.models.positions import position_embedding

TINY = ModelSpec(size="tiny").geometry()
FLAT = msgspec.structs.replace(TINY, position="sinusoid-1d")


def _grid(geometry: Geometry, dim: int = 96) -> NDArray[np.float64]:
    """(slices, rows, columns, channels)."""
    embedding = position_embedding(geometry, dim).double().numpy()
    return embedding.reshape(geometry.slices, geometry.side, geometry.side, dim)


def _cubic(old: int, new: int) -> NDArray[np.float64]:
    """(new, old) weights of cubic convolution with a = -0.75, pixel centres aligned, borders repeated."""

    def kernel(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    weights = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            weights[row, min(max(tap, 0), old - 1)] += kernel(centre - tap)
    return weights


@pytest.mark.parametrize("geometry", [TINY, FLAT])
def test_an_interpolated_embedding_is_bicubic_in_space_and_linear_in_time(geometry: Geometry) -> None:
    other = geometry.resized("interpolate", image_size=56, num_frames=24)
    assert (other.slices, other.side, other.position_grid) == (12, 7, (8, 4))
    old = _grid(geometry)
    rows = _cubic(4, 7)
    in_space = np.einsum("rh,cw,shwe->srce", rows, rows, old)
    times = np.clip((np.arange(12) + 0.5) * 8 / 12 - 0.5, 0, 7)
    before = np.floor(times).astype(int)
    share = (times - before)[:, None, None, None]
    expected = (1 - share) * in_space[before] + share * in_space[np.minimum(before + 1, 7)]
    assert np.abs(_grid(other) - expected).max() < 1e-5


def test_a_recomputed_embedding_is_that_of_a_model_made_for_those_clips() -> None:
    other = FLAT.resized("recompute", image_size=56, num_frames=24)
    made = msgspec.structs.replace(FLAT, image_size=56, num_frames=24)
    assert other == made
    assert torch.equal(position_embedding(other, 96)[:128], position_embedding(FLAT, 96))  # the same running numbers …
    assert np.abs(_grid(other)[1, 0, 0] - _grid(FLAT)[1, 0, 0]).max() > 0.1  # … at other positions


def test_an_unchanged_axis_keeps_its_embedding() -> None:
    longer = TINY.resized("interpolate", image_size=None, num_frames=32)
    assert np.abs(_grid(longer)[:, :, :, 32:] - _grid(TINY)[:1, :, :, 32:]).max() < 1e-5
    wider = TINY.resized("interpolate", image_size=64, num_frames=None)
    assert np.abs(_grid(wider)[:, :1, :1, :32] - _grid(TINY)[:, :1, :1, :32]).max() < 1e-5


def test_interpolating_twice_starts_from_the_embedding_of_training() -> None:
    once = FLAT.resized("interpolate", image_size=64, num_frames=None)
    twice = once.resized("interpolate", image_size=48, num_frames=None)
    assert twice == FLAT.resized("interpolate", image_size=48, num_frames=None)
    assert twice.resized("interpolate", image_size=32, num_frames=None) == FLAT
    assert once.resized("interpolate", image_size=64, num_frames=16) == once
    assert once.resized("recompute", image_size=48, num_frames=None).position_grid is None
    assert once.resized("recompute", image_size=None, num_frames=None) == once
