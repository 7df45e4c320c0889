"""Measures and hashes of frames, and copies among fingerprints."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.audited_videos import (
    FRAMES,
    HEIGHT,
    RATE,
    WIDTH,
    blurred_frames,
    moving_frames,
)
from vmae_data.audit.duplicates import DuplicateSpec, find_duplicates
from vmae_data.audit.hashes import MIRROR, Fingerprint, fingerprint
from vmae_data.audit.measures import GRID, grey_levels, measure, sharpness_of, shrink

pytestmark = pytest.mark.processes


def test_measures_hardly_depend_on_size_and_stride() -> None:
    def measured(scale: int, stride: int) -> Any:
        frames = list(moving_frames(1))[::stride]
        big = [frame.repeat(scale, axis=0).repeat(scale, axis=1) for frame in frames]
        levels = grey_levels(full_range=True)
        return measure(np.arange(len(big)) * stride / RATE, np.stack([shrink(frame, levels) for frame in big]), [])

    one, two, four = measured(1, 1), measured(3, 1), measured(1, 3)
    assert two.motion == pytest.approx(one.motion, rel=0.02)
    assert four.motion == pytest.approx(one.motion, rel=0.1)
    assert (one.cuts, four.cuts, one.black, one.frozen) == (0, 0, 0, 0)


def test_limited_range_is_scaled_to_grey_levels() -> None:
    levels = grey_levels(full_range=False)
    assert (levels[16], levels[235], levels[0], levels[255]) == (0, 255, 0, 255)


def test_a_flash_is_no_cut() -> None:
    grey = np.stack([frame[:GRID, :GRID] for frame in moving_frames(3)])
    flash = grey.copy()
    flash[30] = 255
    assert measure(np.arange(FRAMES) / RATE, flash, []).cuts == 0
    cut = np.concatenate([grey[:30], grey[30:, ::-1] ^ 255])
    assert measure(np.arange(FRAMES) / RATE, cut, []).cuts == 1


def test_blur_lowers_the_sharpness_more_than_low_contrast() -> None:
    levels = grey_levels(full_range=True)
    frame = next(moving_frames(4))
    sharp, blurred = sharpness_of(frame, levels), sharpness_of(next(blurred_frames(4)), levels)
    faint = sharpness_of((frame // 2 + 60).astype(np.uint8), levels)
    assert sharp is not None and blurred is not None and faint is not None
    assert sharp > 2 * blurred
    assert faint > 2 * blurred
    assert sharpness_of(np.full((HEIGHT, WIDTH), 90, dtype=np.uint8), levels) is None


def test_a_mirrored_frame_has_the_hash_with_the_mirror_bits_flipped() -> None:
    grey = np.stack([frame[:GRID, :GRID] for frame in moving_frames(6)])
    times = np.arange(FRAMES) / RATE
    one, other = fingerprint(times, grey), fingerprint(times, grey[:, :, ::-1])
    assert (np.bitwise_count(one.look_T ^ MIRROR ^ other.look_T) <= 1).all()  # rounding may flip a bit near 0


def test_flat_frames_have_no_hash() -> None:
    flat = np.full((24, GRID, GRID), 128, dtype=np.uint8)
    assert not len(fingerprint(np.arange(24) / RATE, flat).time_T)


def _random_print(rng: np.random.Generator, frames: int = 24) -> Fingerprint:
    bits = rng.integers(0, 2**63, (2, frames), dtype=np.uint64)
    return Fingerprint(np.arange(frames, dtype=np.float32) / 8, bits[0], bits[1], np.ones(frames, dtype=np.bool_))


def _noisy(one: Fingerprint, rng: np.random.Generator, flips: int) -> Fingerprint:
    noise = [sum(1 << int(bit) for bit in rng.choice(64, flips, replace=False)) for _ in range(2 * len(one.time_T))]
    noise_2T = np.asarray(noise, dtype=np.uint64).reshape(2, -1)
    return one._replace(look_T=one.look_T ^ noise_2T[0], move_T=one.move_T ^ noise_2T[1])


def test_only_noisy_copies_are_found_among_thousands() -> None:
    rng = np.random.default_rng(0)
    prints = [_random_print(rng) for _ in range(2000)]
    copies = [_noisy(prints[number], rng, flips=6) for number in range(0, 2000, 20)]
    digests = [bytes([0]) + n.to_bytes(4, "big") for n in range(2100)]
    found = find_duplicates([*prints, *copies], digests, range(2100), DuplicateSpec())
    assert found.original == {2000 + n: 20 * n for n in range(100)}
    assert found.num_candidates < 300  # of two million pairs


def test_a_frame_that_all_videos_share_makes_few_candidates_and_no_copies() -> None:
    rng = np.random.default_rng(1)
    title = rng.integers(0, 2**63, 4, dtype=np.uint64)
    prints = []
    for _ in range(300):
        one = _random_print(rng)
        one.look_T[:4], one.move_T[:4] = title, title
        prints.append(one)
    found = find_duplicates(prints, [n.to_bytes(4, "big") for n in range(300)], range(300), DuplicateSpec())
    assert not found.original
    assert found.num_candidates < 300 * 40  # of 44,850 pairs


def test_many_copies_of_one_video_are_all_copies_of_the_first() -> None:
    rng = np.random.default_rng(2)
    first = _random_print(rng)
    prints = [first, *(_noisy(first, rng, flips=2) for _ in range(70))]
    found = find_duplicates(prints, [n.to_bytes(4, "big") for n in range(71)], range(71), DuplicateSpec())
    assert found.original == dict.fromkeys(range(1, 71), 0)


def test_parts_of_one_video_are_no_copies_of_each_other() -> None:
    rng = np.random.default_rng(3)
    one = _random_print(rng)
    same = find_duplicates([one, one], [b"a", b"a"], ["video", "video"], DuplicateSpec())
    other = find_duplicates([one, one], [b"a", b"b"], ["video", "other"], DuplicateSpec())
    assert not same.original
    assert other.original == {1: 0}
