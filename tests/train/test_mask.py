from __future__ import annotations

import itertools
import subprocess
import sys
from collections import deque

import msgspec
import numpy as np
import pytest
import torch

import vmae_data.rng as reference
from vmae_data.rng import Purpose
from vmae_train.clips.mask import (
    Grid,
    MaskKind,
    MaskSpec,
    TokenMask,
    num_masked_patches,
    num_masked_tokens,
    sample_mask,
    tube_mask,
)
from vmae_train.clips.rng import ClipRng

SLICES, PATCHES = 8, 196


def _mask(device: torch.device, *, samples: int = 4, ratio: float = 0.9, epoch: int = 0) -> TokenMask:
    rng = ClipRng.on(device, seed=7, epoch=epoch, sample=list(range(samples)))
    return tube_mask(rng, slices=SLICES, patches=PATCHES, ratio=ratio)


def test_tube_mask_hides_the_same_patches_in_every_slice(device: torch.device) -> None:
    masked_BSM = _mask(device).masked_BM.cpu().reshape(4, SLICES, -1)
    for number in range(SLICES):
        assert torch.equal(masked_BSM[:, number] - number * PATCHES, masked_BSM[:, 0])


@pytest.mark.parametrize(("ratio", "hidden"), [(0.9, 176), (0.75, 147), (0.95, 186)])
def test_tube_mask_hides_the_published_number_of_patches(ratio: float, hidden: int) -> None:
    mask = _mask(torch.device("cpu"), ratio=ratio)
    assert mask.masked_BM.shape == (4, SLICES * hidden)
    assert mask.visible_BV.shape == (4, SLICES * (PATCHES - hidden))


def test_every_token_is_either_visible_or_masked_and_both_ascend(device: torch.device) -> None:
    mask = _mask(device)
    both = torch.cat((mask.visible_BV, mask.masked_BM), dim=1).cpu()
    assert torch.equal(both.sort(dim=1).values, torch.arange(SLICES * PATCHES).expand(4, -1))
    for tokens in (mask.visible_BV, mask.masked_BM):
        assert (tokens.diff(dim=1) > 0).all()


def test_masked_patches_are_the_first_of_numpys_permutation(device: torch.device) -> None:
    mask = _mask(device, epoch=3)
    for sample in range(4):
        order = reference.permutation(reference.bits(7, 3, sample, 0, 0, Purpose.MASK, np.arange(PATCHES)))
        assert mask.masked_BM[sample, :176].tolist() == sorted(order[:176].tolist())


def test_masks_differ_between_samples_and_epochs() -> None:
    first, second = _mask(torch.device("cpu")), _mask(torch.device("cpu"), epoch=1)
    assert not torch.equal(first.masked_BM[0], first.masked_BM[1])
    assert not torch.equal(first.masked_BM, second.masked_BM)


def test_every_patch_is_hidden_equally_often() -> None:
    rng = ClipRng.on("cpu", seed=1, epoch=0, sample=list(range(4000)))
    hidden = tube_mask(rng, slices=1, patches=16, ratio=0.75).masked_BM
    share = torch.bincount(hidden.flatten(), minlength=16) / 4000
    assert (share - 0.75).abs().max() < 5 * (0.75 * 0.25 / 4000) ** 0.5


@pytest.mark.parametrize("ratio", [0.01, 0.001])
def test_a_ratio_that_hides_nothing_is_refused_with_its_numbers(ratio: float) -> None:
    rng = ClipRng.on("cpu", seed=1, epoch=0, sample=[1])
    with pytest.raises(ValueError, match=rf"mask.ratio = {ratio} masks 0 of 16 patches"):
        tube_mask(rng, slices=1, patches=16, ratio=ratio)


def test_a_single_patch_cannot_be_masked_in_part() -> None:
    rng = ClipRng.on("cpu", seed=1, epoch=0, sample=[1])
    with pytest.raises(ValueError, match="1 patches of a slice"):
        tube_mask(rng, slices=8, patches=1, ratio=0.9)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 90.0])
def test_a_spec_outside_zero_and_one_is_refused_by_name(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"mask\.ratio"):
        MaskSpec(ratio=ratio)


def test_a_spec_refuses_unknown_keys_and_kinds() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `rate`"):
        msgspec.convert({"rate": 0.9}, MaskSpec)
    with pytest.raises(msgspec.ValidationError, match="kind"):
        msgspec.convert({"kind": "cube"}, MaskSpec)


def test_importing_the_package_imports_no_torch_and_loading_a_model_no_kornia() -> None:
    code = (
        "import sys, vmae_train, vmae_train.clips; assert 'torch' not in sys.modules; "
        "from vmae_train import TokenMask, TubeMask, load_model; assert TubeMask is TokenMask; "
        "assert 'kornia' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_count_of_hidden_patches_is_truncated_not_rounded() -> None:
    assert num_masked_patches(patches=9, ratio=0.75) == 6  # 6.75
    assert num_masked_patches(patches=196, ratio=0.96) == 188  # 188.16
    assert num_masked_patches(patches=196, ratio=0.85) == 166  # 166.6


GRID = Grid(8, 14, 14)


def _sampled(spec: MaskSpec, device: torch.device | str = "cpu", samples: int = 6, grid: Grid = GRID) -> TokenMask:
    return sample_mask(spec, ClipRng.on(device, seed=7, epoch=0, sample=list(range(samples))), grid)


@pytest.mark.parametrize(
    ("kind", "ratio", "hidden"), [("tube", 0.9, 1408), ("random", 0.9, 1411), ("frame", 0.9, 1372)]
)
def test_every_kind_hides_its_count_in_every_sample(kind: str, ratio: float, hidden: int, device: torch.device) -> None:
    spec = MaskSpec(kind=kind, ratio=ratio)
    assert num_masked_tokens(spec, GRID) == hidden
    mask = _sampled(spec, device)
    both = torch.cat((mask.visible_BV, mask.masked_BM), dim=1).cpu()
    assert mask.masked_BM.shape == (6, hidden)
    assert torch.equal(both.sort(dim=1).values, torch.arange(GRID.tokens).expand(6, -1))
    assert (mask.masked_BM.diff(dim=1) > 0).all() and (mask.visible_BV.diff(dim=1) > 0).all()
    assert mask.predicted_BK is mask.masked_BM
    assert not torch.equal(mask.masked_BM[0], mask.masked_BM[1])


def test_frame_masks_hide_complete_slices_and_random_masks_are_no_tubes() -> None:
    frame = _sampled(MaskSpec(kind="frame", ratio=0.875)).masked_BM.reshape(6, 7, 196)
    assert torch.equal(frame - frame[:, :, :1], torch.arange(196).expand(6, 7, -1))
    spread = _sampled(MaskSpec(kind="random", ratio=0.75)).masked_BM
    counts = torch.stack([(spread // 196 == s).sum(dim=1) for s in range(8)], dim=1)
    assert counts.float().std(dim=1).min() > 0


@pytest.mark.parametrize(("ratio", "share"), [(0.25, 0.75), (0.5, 0.5), (0.75, 0.25)])
def test_the_running_cell_decodes_the_same_share_of_the_masked_tokens_in_every_sample(
    ratio: float, share: float, device
) -> None:
    mask = _sampled(MaskSpec(decoder="running-cell", decoder_ratio=ratio), device, samples=20)
    assert mask.predicted_BK.shape == (20, int(1408 * share))
    assert (mask.predicted_BK.diff(dim=1) > 0).all()
    for masked, decoded in zip(mask.masked_BM.tolist(), mask.predicted_BK.tolist(), strict=True):
        assert set(decoded) <= set(masked)


@pytest.mark.parametrize("kind", ["tube", "random", "frame"])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_a_random_part_of_the_masked_tokens_is_predicted(kind: MaskKind, ratio: float, device) -> None:
    spec = MaskSpec(kind=kind, ratio=0.75, decoder="random", decoder_ratio=ratio)
    mask, whole = _sampled(spec, device, samples=20), _sampled(MaskSpec(kind=kind, ratio=0.75), device, samples=20)
    assert torch.equal(mask.masked_BM, whole.masked_BM) and torch.equal(mask.visible_BV, whole.visible_BV)
    assert mask.unscored_BU is None
    masked = whole.masked_BM.shape[1]
    assert mask.predicted_BK.shape == (20, masked - int(ratio * masked))
    assert (mask.predicted_BK.diff(dim=1) > 0).all()
    for tokens, predicted in zip(mask.masked_BM.tolist(), mask.predicted_BK.tolist(), strict=True):
        assert set(predicted) <= set(tokens)
    assert len({tuple(row) for row in mask.predicted_BK.tolist()}) == 20
    # Any masked token may be predicted: the mean place in the list of masked tokens is its middle.
    place = torch.stack([torch.searchsorted(*pair) for pair in zip(mask.masked_BM, mask.predicted_BK, strict=True)])
    assert place.float().mean() / masked == pytest.approx(0.5, abs=0.03)
    again = sample_mask(spec, ClipRng.on(device, seed=7, epoch=0, sample=[19, 20]), GRID)
    assert torch.equal(again.predicted_BK[:1], mask.predicted_BK[19:])


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_the_running_cell_skips_what_a_queue_that_rotates_with_every_slice_skips(ratio: float) -> None:
    """VideoMAEv2's pattern: its queue begins with the skipped patches, and its head moves to the back in every slice."""
    spec = MaskSpec(ratio=0.95, decoder="running-cell", decoder_ratio=ratio)
    mask = _sampled(spec, samples=40)
    patterns = []
    for phase in range(4):
        queue = deque([True] * int(4 * ratio) + [False] * (4 - int(4 * ratio)))
        queue.rotate(-phase)
        skipped: set[int] = set()
        for number in range(GRID.slices):
            for row, column in itertools.product(range(GRID.rows), range(GRID.columns)):
                if queue[2 * (row % 2) + column % 2]:
                    skipped.add((number * GRID.rows + row) * GRID.columns + column)
            queue.append(queue.popleft())
        patterns.append(skipped)
    phases = []
    for masked, decoded in zip(mask.masked_BM.tolist(), mask.predicted_BK.tolist(), strict=True):
        expected = [sorted(set(masked) - skipped) for skipped in patterns]
        phases.append(expected.index(decoded))
    assert set(phases) == {0, 1, 2, 3}
    assert mask.unscored_BU is not None
    for phase, visible, unscored in zip(phases, mask.visible_BV.tolist(), mask.unscored_BU.tolist(), strict=True):
        assert unscored == sorted(set(visible) - patterns[phase])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decoder": "running-cell", "decoder_ratio": 0.1}, "skips 0 of the 4"),
        ({"decoder": "running-cell", "kind": "random"}, "only tube masks"),
        ({"decoder": "random", "decoder_ratio": 1.0}, "decoder_ratio = 1: expected"),
        ({"ratio": 1.0}, "between 0 and 1"),
    ],
)
def test_impossible_masks_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskSpec(**values)


def test_a_mask_that_does_not_fit_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="masks 0 of 8 slices"):
        num_masked_tokens(MaskSpec(kind="frame", ratio=0.1), GRID)
    for grid in (Grid(8, 7, 14), Grid(6, 14, 14)):
        with pytest.raises(ValueError, match="running-cell"):
            num_masked_tokens(MaskSpec(decoder="running-cell"), grid)
