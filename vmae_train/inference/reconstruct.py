"""`vmae-train reconstruct`: a pretraining model and clips → pictures: original, masked, reconstruction.

The model predicts normalised cubes. Each is denormalised by the mean and the standard deviation of the original cube,
as in VideoMAE's run_videomae_vis.py: brightness and contrast are from the original, only the pattern is predicted.

B clips, C colours, T frames, H rows, W columns, N tokens, M masked, D values of a cube, P pixels of a cube.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from vmae_data.arguments import MAX_SEED, check_integer, check_number
from vmae_data.errors import DataError, MisuseError
from vmae_data.pages.pictures import choose_samples
from vmae_data.read.batches import PADDING
from vmae_data.read.dataset import Shards
from vmae_data.rng import sample_number
from vmae_train.checkpoints.load import load_model
from vmae_train.clips.augment import Augment, AugmentSpec
from vmae_train.clips.colour import per_colour, planes_of_views
from vmae_train.clips.frame_sampling import ClipSpec, view_sampler
from vmae_train.clips.loader import ClipLoader, LoaderSpec
from vmae_train.clips.mask import (
    MaskKind,
    MaskSpec,
    TokenMask,
    batch_mask,
    check_vectors,
    num_masked_tokens,
    sample_mask,
)
from vmae_train.clips.rng import ClipRng
from vmae_train.distributed import choose_device
from vmae_train.evaluation.predict_videos import padded_requests
from vmae_train.inference.drawing import MaskedClip, Reconstruction, picture_path, write_reconstructions
from vmae_train.inference.read_video import SHORT_SIDE, local_video, read_clip
from vmae_train.models.geometry import Geometry
from vmae_train.models.losses import cube_targets
from vmae_train.models.videomae import PretrainModel, grid_of
from vmae_train.runs.metadata import read_facts, run_clip, run_of

__all__ = [
    "Reconstruction",
    "load_pretrained",
    "mask_specs",
    "reconstruct",
    "reconstruct_clips",
    "reconstruct_file",
    "reconstruct_shards",
]

PUBLISHED_RATIO = 0.9
BATCH = 4


def reconstruct_file(
    checkpoint: str,
    data: str,
    out: str | Path,
    *,
    videos: int,
    ratios: Sequence[float] = (),
    kinds: Sequence[MaskKind] = (),
    seed: int,
    device: str | None,
) -> dict[str, str]:
    """Draw some samples of shards, or one video file, under each mask. The suffix of `out` chooses the kind of file.

    Returns the chosen samples that could not be read, with the reasons.
    Raises MisuseError for an unusable suffix, model, mask or stride, DataError for what can't be read.
    """
    path = picture_path(out, "--out")
    model = load_pretrained(checkpoint, device)
    masks = mask_specs(checkpoint, model.geometry, ratios, kinds)
    video, clip = local_video(data), run_clip(checkpoint)
    unreadable: dict[str, str] = {}
    if video is not None:
        clips = [_reconstruct_video(model, video, clip or ClipSpec(stride=1), masks, seed)]
    else:
        shards = Shards.open(data)
        clips, unreadable = reconstruct_shards(model, shards, clip=clip, videos=videos, masks=masks, seed=seed)
    if not clips:
        listed = "; ".join(f"{key}: {reason}" for key, reason in unreadable.items())
        raise DataError(
            f"{data}: none of the chosen samples can be read ({listed}). Run `vmae-shard verify` on the shards"
        )
    write_reconstructions(path, clips, f"{checkpoint} on {data}")
    return unreadable


def load_pretrained(checkpoint: str, device: str | None) -> PretrainModel:
    """A pretraining model on its device. Raises MisuseError for a model with a head."""
    model = load_model(checkpoint)
    if not isinstance(model, PretrainModel):
        raise MisuseError(
            f"{checkpoint}: is a classifier, which predicts no cubes. Name the pretraining that it started from"
        )
    model.to(choose_device(device))
    return model


def mask_specs(
    checkpoint: str, geometry: Geometry, ratios: Sequence[float] = (), kinds: Sequence[MaskKind] = ()
) -> tuple[MaskSpec, ...]:
    """A mask for each kind and each ratio [default: those of the run, else tubes of the published ratio].

    Raises MisuseError for a mask that hides nothing or everything.
    """
    run = run_of(checkpoint)
    own = (read_facts(run).recipe if run is not None else {}).get("mask", {})
    masks = []
    for kind in dict.fromkeys(kinds or (own.get("kind", "tube"),)):
        for ratio in dict.fromkeys(ratios or (float(own.get("ratio", PUBLISHED_RATIO)),)):
            try:
                spec = MaskSpec(kind=kind, ratio=ratio, motion_weight=float(own.get("motion_weight", 1)))
                num_masked_tokens(spec, grid_of(geometry))
            except ValueError as error:
                raise MisuseError(f"--mask {kind} --ratio {ratio:g}: {error}") from error
            masks.append(spec)
    return tuple(masks)


def reconstruct_shards(
    model: PretrainModel, shards: Shards, *, clip: ClipSpec | None, videos: int, masks: Sequence[MaskSpec], seed: int
) -> tuple[list[Reconstruction], dict[str, str]]:
    """The middle clip of some samples of all classes [default `clip`: adjacent kept frames]; and the unreadable samples.

    Raises MisuseError if the shards don't have such clips, or no motion vectors for a motion mask.
    """
    geometry, device = model.geometry, model.mean_C.device
    sampler = view_sampler(clip or ClipSpec(stride="kept"), shards.index, geometry.num_frames, 1)
    numbers = choose_samples(shards.label_N, videos, seed=seed)
    reads_motion = any(mask.kind == "motion" for mask in masks)
    if reads_motion:
        check_vectors(shards)
    spec = AugmentSpec(size=geometry.image_size, crop="center", mean=geometry.mean, std=geometry.std)
    augment = Augment(spec).to(device)
    size = min(BATCH, len(numbers))
    requests = list(padded_requests(numbers, size))
    clips: list[Reconstruction] = []
    with ClipLoader(
        shards,
        sampler,
        requests,
        batch=size,
        frames=min(geometry.num_frames, int(shards.frames_NP[:, 0].max())),
        seed=seed,
        spec=LoaderSpec(workers=0, ahead=1),
        device=device,
        motion=reads_motion,
    ) as batches:
        for batch in batches:
            planes = planes_of_views(batch.planes, batch.index_BVT)
            no_flip_B = torch.zeros_like(batch.weight_B, dtype=torch.bool)
            boxes = augment.sample_boxes(planes.size_B2, batch.rng, no_flip_B)
            rgb = augment(planes, boxes)
            tokens = [batch_mask(mask, batch.rng, grid_of(geometry), batch, boxes) for mask in masks]
            titles = [_title(shards, number) for number in batch.request.samples]
            drawn = reconstruct_clips(model, rgb / 255, tokens, masks, titles)
            clips += [clip for clip, weight in zip(drawn, batch.weight_B.tolist(), strict=True) if weight]
        return clips, dict(batches.unreadable.by_key)


def _title(shards: Shards, number: int) -> str:
    if number == PADDING:
        return ""
    label = int(shards.label_N[number])
    key = shards.key(number)
    return f"{shards.classes[label]}: {key}" if 0 <= label < len(shards.classes) else key


def _reconstruct_video(
    model: PretrainModel, path: Path, clip: ClipSpec, masks: Sequence[MaskSpec], seed: int
) -> Reconstruction:
    """The middle clip of a video file. Raises MisuseError for a motion mask."""
    _check_kinds(masks)
    geometry = model.geometry
    frames = read_clip(path, geometry.num_frames, clip, short_side=max(SHORT_SIDE, geometry.image_size))
    number_B = np.asarray([sample_number("video", path.name)], np.uint64)
    try:
        return _reconstruct_frames(model, torch.from_numpy(frames)[None], number_B, masks, seed, [path.name])[0]
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def reconstruct(
    model: PretrainModel,
    frames_BTHWC: Tensor,
    *,
    mask: MaskKind = "tube",
    ratio: float = PUBLISHED_RATIO,
    seed: int = 0,
) -> list[Reconstruction]:
    """Mask clips and predict the masked cubes. Returns a reconstruction of each clip.

    Clips are RGB, uint8 (B, T, H, W, 3), as `read_clips` gives them. A reconstruction has `original_THWC` and, in `masks[0]`, `masked_THWC`, `predicted_THWC` and the `loss`. Pictures are uint8
    (T, S, S, 3) with the model's size S: the short side is resized to it, and the centre is cropped. `save` writes a file.
    Raises MisuseError for a model with a head, for a mask that hides nothing or everything, and for other values;
    ValueError for frames of other axes, another type or another number.
    """
    if not isinstance(model, PretrainModel):
        raise MisuseError(f"{type(model).__name__} predicts no cubes. Load the pretraining that it started from")
    if mask not in get_args(MaskKind):
        raise MisuseError(f"mask = {mask!r}: expected {', '.join(get_args(MaskKind))}")
    check_number("ratio", ratio)
    check_integer("seed", seed, 0, MAX_SEED)
    try:
        spec = MaskSpec(kind=mask, ratio=ratio)
        _check_kinds([spec])
        num_masked_tokens(spec, grid_of(model.geometry))
    except ValueError as error:
        raise MisuseError(f"mask = {mask!r}, ratio = {ratio}: {error}") from error
    model.check_frames(frames_BTHWC)
    count = len(frames_BTHWC)
    titles = [f"clip {number}" if count > 1 else "" for number in range(1, count + 1)]
    return _reconstruct_frames(model, frames_BTHWC, np.arange(count, dtype=np.uint64), [spec], seed, titles)


def _check_kinds(masks: Sequence[MaskSpec]) -> None:
    """Raises MisuseError for a motion mask of frames that come without motion vectors."""
    if any(mask.kind == "motion" for mask in masks):
        raise MisuseError(
            "mask = motion: needs the motion vectors of shards. Give shards, or mask tube, random or frame"
        )


def _reconstruct_frames(
    model: PretrainModel,
    frames_BTHWC: Tensor,
    number_B: NDArray[np.uint64],
    masks: Sequence[MaskSpec],
    seed: int,
    titles: Sequence[str],
) -> list[Reconstruction]:
    """Raises ValueError for frames that `preprocess` refuses."""
    clips = model.preprocess(frames_BTHWC)
    rgb01 = clips * per_colour(model.std_C) + per_colour(model.mean_C)
    rng = ClipRng.on(clips.device, seed=seed, epoch=0, sample=number_B)
    tokens = [sample_mask(mask, rng, grid_of(model.geometry)) for mask in masks]
    return reconstruct_clips(model, rgb01, tokens, masks, titles)


@torch.inference_mode()
def reconstruct_clips(
    model: PretrainModel,
    rgb01_BCTHW: Float32[Tensor, "B 3 T H W"],
    tokens: Sequence[TokenMask],
    masks: Sequence[MaskSpec],
    titles: Sequence[str],
) -> list[Reconstruction]:
    """Mask cubes of RGB clips (0..1) in several ways, with the tokens of each of the masks, predict them, and draw the predictions into the clips."""
    originals = _uint8_frames(rgb01_BCTHW)
    drawn = [_predict(model, rgb01_BCTHW, mask, spec) for mask, spec in zip(tokens, masks, strict=True)]
    return [Reconstruction(title, originals[n], tuple(clips[n] for clips in drawn)) for n, title in enumerate(titles)]


def _predict(model: PretrainModel, rgb01_BCTHW: Tensor, mask: TokenMask, spec: MaskSpec) -> list[MaskedClip]:
    """Each clip of a batch under one mask."""
    geometry = model.geometry
    clips = (rgb01_BCTHW - per_colour(model.mean_C)) / per_colour(model.std_C)
    predicted_BMD = model(clips, mask).float()
    error = predicted_BMD - cube_targets(rgb01_BCTHW, mask.masked_BM, geometry)
    loss_B = error.square().mean(dim=(1, 2))
    grey = _with_cubes(rgb01_BCTHW, mask, torch.full_like(predicted_BMD, 0.5), geometry)
    filled = _with_cubes(rgb01_BCTHW, mask, _denormalise(rgb01_BCTHW, mask, predicted_BMD, geometry), geometry)
    # The actual share: a ratio of 0.9 masks 14 of 16 positions, which is 88 %.
    name = f"{spec.kind} mask, {100 * mask.masked_BM.shape[1] / geometry.num_tokens:.0f} %"
    frames = zip(_uint8_frames(grey), _uint8_frames(filled), loss_B.tolist(), strict=True)
    return [MaskedClip(name, masked, predicted, loss) for masked, predicted, loss in frames]


def _cubes(rgb01: Tensor, geometry: Geometry) -> Tensor:
    p0, p1 = geometry.tubelet_size, geometry.patch_size
    return rearrange(rgb01, "b c (t p0) (h p1) (w p2) -> b (t h w) (p0 p1 p2) c", p0=p0, p1=p1, p2=p1)


def _denormalise(rgb01: Tensor, mask: TokenMask, predicted_BMD: Tensor, geometry: Geometry) -> Tensor:
    """The inverse of `cube_targets`, with the mean and standard deviation of each original cube."""
    index = mask.masked_BM[..., None, None].expand(-1, -1, geometry.cube_dim // 3, 3)
    variance, mean = torch.var_mean(_cubes(rgb01, geometry).gather(1, index), dim=2, unbiased=True, keepdim=True)
    cubes = rearrange(predicted_BMD, "b m (p c) -> b m p c", c=3)
    return rearrange(cubes * (variance.sqrt() + 1e-6) + mean, "b m p c -> b m (p c)")


def _with_cubes(rgb01: Tensor, mask: TokenMask, cubes_BMD: Tensor, geometry: Geometry) -> Tensor:
    """The clip with its masked cubes replaced."""
    p0, p1, side = geometry.tubelet_size, geometry.patch_size, geometry.image_size // geometry.patch_size
    flat = rearrange(_cubes(rgb01, geometry), "b n p c -> b n (p c)")
    flat = flat.scatter(1, mask.masked_BM[..., None].expand_as(cubes_BMD), cubes_BMD)
    return rearrange(flat, "b (t h w) (p0 p1 p2 c) -> b c (t p0) (h p1) (w p2)", p0=p0, p1=p1, p2=p1, h=side, w=side)


def _uint8_frames(rgb01_BCTHW: Tensor) -> NDArray[np.uint8]:
    pixels = (rgb01_BCTHW * 255).round().clamp(0, 255).byte()
    return np.ascontiguousarray(rearrange(pixels, "b c t h w -> b t h w c").cpu().numpy())
