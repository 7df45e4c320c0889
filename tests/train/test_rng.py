from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vmae_data.rng as reference
from vmae_data.rng import Purpose
from vmae_train.clips.rng import ClipRng, integer, permutation, splitmix64, uniform

NUMBERS = st.integers(0, 2**64 - 1)
EDGES = np.array([0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1], dtype=np.uint64)


def _tensor(numbers: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(numbers.view(np.int64)).to(device)


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy().view(np.uint64)


def _some_bits(count: int) -> np.ndarray:
    return np.concatenate((EDGES, reference.splitmix64(np.arange(count, dtype=np.uint64))))


@settings(deadline=None, max_examples=50)
@given(
    seed=NUMBERS,
    epoch=st.integers(0, 2**32),
    samples=st.lists(NUMBERS, min_size=1, max_size=4),
    purpose=st.sampled_from(Purpose),
)
def test_bits_are_those_of_the_numpy_rng(seed: int, epoch: int, samples: list[int], purpose: Purpose) -> None:
    rng = ClipRng.on("cpu", seed=seed, epoch=epoch, sample=samples, visit=2, repeat=1)
    numbers = np.array(samples, dtype=np.uint64)
    one = reference.bits(seed, epoch, numbers, 2, 1, purpose, 5)
    assert np.array_equal(_numbers(rng.bits(purpose, 5)), one)
    row = reference.bits(seed, epoch, numbers[:, None], 2, 1, purpose, np.arange(7))
    assert np.array_equal(_numbers(rng.bits(purpose, torch.arange(7))), row)
    assert np.array_equal(rng.host.bits(purpose, np.arange(7)), row)


def test_bits_of_every_purpose_are_those_of_the_numpy_rng() -> None:
    rng = ClipRng.on("cpu", seed=2**63 + 5, epoch=3, sample=EDGES, visit=2, repeat=1)
    for purpose in Purpose:
        assert np.array_equal(_numbers(rng.bits(purpose, 5)), reference.bits(2**63 + 5, 3, EDGES, 2, 1, purpose, 5))


def test_splitmix64_is_numpys(device: torch.device) -> None:
    bits = _some_bits(1000)
    assert np.array_equal(_numbers(splitmix64(_tensor(bits, device))), reference.splitmix64(bits))


def test_integers_are_numpys(device: torch.device) -> None:
    bits = _some_bits(1000)
    for n in (1, 2, 13, 1000, 2**32 - 1):
        result = integer(_tensor(bits, device), n)
        assert np.array_equal(result.cpu().numpy(), reference.integer(bits, n))
    many = np.arange(1, len(bits) + 1)
    result = integer(_tensor(bits, device), torch.from_numpy(many).to(device))
    assert np.array_equal(result.cpu().numpy(), reference.integer(bits, many))


def test_uniforms_are_numpys(device: torch.device) -> None:
    bits = _some_bits(1000)
    result = uniform(_tensor(bits, device))
    assert result.dtype == torch.float32
    assert np.array_equal(result.cpu().numpy().astype(np.float64), reference.uniform(bits))


def test_permutations_are_numpys_and_keep_the_order_of_equal_hashes(device: torch.device) -> None:
    bits = np.stack((_some_bits(188), np.repeat(EDGES, 196 // 8 + 1)[:196]))
    assert np.array_equal(permutation(_tensor(bits, device)).cpu().numpy(), reference.permutation(bits))


def test_numbers_of_a_batch_are_those_of_each_single_sample(device: torch.device) -> None:
    samples = [5, 2**63 + 1, 17]
    batch = ClipRng.on(device, seed=3, epoch=4, sample=samples, visit=[0, 1, 2], repeat=[2, 1, 0])
    for row, sample in enumerate(samples):
        single = reference.Rng(seed=3, epoch=4, sample=sample, visit=row, repeat=2 - row)
        assert integer(batch.bits(Purpose.FLIP), 1000)[row].item() == single.integer(Purpose.FLIP, 1000)


def test_sampling_touches_no_global_generator(device: torch.device) -> None:
    before = torch.random.get_rng_state()
    rng = ClipRng.on(device, seed=1, epoch=1, sample=[1, 2])
    permutation(rng.bits(Purpose.MASK, torch.arange(16, device=device)))
    assert torch.equal(torch.random.get_rng_state(), before)
