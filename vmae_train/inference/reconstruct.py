"""Pictures of what a pretraining model makes of hidden cubes: original, masked, reconstruction.

Predictions are normalised cubes, so each is put back with its own mean and spread, taken from the original, as in
VideoMAE's visualisation (run_videomae_vis.py): brightness and contrast of a hidden cube are given, its pattern is not.

B clips, C colours, T frames, H rows, W columns, N tokens, M masked, D values of a cube, P pixels of a cube.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from vmae_data.errors import DataError, MisuseError
from vmae_data.pictures import animated_gif, choose_samples, picture
from vmae_data.read.batches import PADDING, Request
from vmae_data.read.dataset import Shards
from vmae_data.rng import sample_number
from vmae_data.storage import commit_bytes, writable_path
from vmae_train.checkpoints.load import load_model
from vmae_train.clips.augment import Augment, AugmentSpec
from vmae_train.clips.colour import planes_of_views
from vmae_train.clips.frame_sampling import ClipSpec, view_sampler
from vmae_train.clips.loader import ClipLoader, LoaderSpec
from vmae_train.clips.mask import TokenMask, num_masked_patches, tube_mask
from vmae_train.clips.rng import ClipRng
from vmae_train.distributed import choose_device
from vmae_train.inference.drawing import Reconstruction, draw_moving, draw_still
from vmae_train.inference.read_video import fetched_video, read_clip
from vmae_train.models.geometry import Geometry
from vmae_train.models.losses import cube_targets
from vmae_train.models.videomae import PretrainModel
from vmae_train.runs.metadata import read_facts, run_clip, run_of

__all__ = [
    "Drawn",
    "Reconstruction",
    "load_pretrained",
    "mask_ratio",
    "reconstruct_clips",
    "reconstruct_file",
    "reconstruct_shards",
]

PUBLISHED_RATIO = 0.9
BATCH = 4


class Drawn(NamedTuple):
    """Reconstructions, and the samples that could not be read."""

    clips: list[Reconstruction]
    unreadable: dict[str, str]


def reconstruct_file(
    checkpoint: str, data: str, out: str | Path, *, videos: int, ratio: float | None, seed: int, device: str | None
) -> dict[str, str]:
    """Draw some samples of a data set, or one video file, into a .png (frames side by side) or a .gif (moving).

    Gives the chosen samples that could not be read, and why.

    Raises MisuseError for a suffix, model, ratio or stride that can't work, DataError for what can't be read.
    """
    place = writable_path(out, "--out")
    if place.suffix not in (".png", ".gif"):
        raise MisuseError(f"--out {out}: expected a name that ends in .png or .gif")
    model = load_pretrained(checkpoint, device)
    ratio = mask_ratio(checkpoint, model.geometry, ratio)
    path = fetched_video(data)
    if path is not None:
        drawn = Drawn([_of_video(model, path, run_clip(checkpoint) or ClipSpec(stride=1), ratio, seed)], {})
    else:
        shards = Shards.open(data)
        drawn = reconstruct_shards(model, shards, clip=run_clip(checkpoint), videos=videos, ratio=ratio, seed=seed)
    if not drawn.clips:
        listed = "; ".join(f"{key}: {why}" for key, why in drawn.unreadable.items())
        raise DataError(f"{data}: not one of the chosen samples can be read ({listed}); verify the shards")
    if place.suffix == ".gif":
        commit_bytes(place, animated_gif(draw_moving(drawn.clips)).data)
    else:
        commit_bytes(place, picture(draw_still(drawn.clips), lossless=True).data)
    return drawn.unreadable


def load_pretrained(checkpoint: str, device: str | None) -> PretrainModel:
    """A pretraining model on its device. Raises MisuseError where it is a classifier."""
    model = load_model(checkpoint)
    if not isinstance(model, PretrainModel):
        raise MisuseError(
            f"{checkpoint}: is a classifier, which predicts no cubes; name the pretraining that it began from"
        )
    model.to(choose_device(device))
    return model


def mask_ratio(checkpoint: str, geometry: Geometry, given: float | None) -> float:
    """The share of hidden places: as given, else as trained, else as published.

    Raises MisuseError when it would hide nothing or everything.
    """
    ratio = given
    if ratio is None:
        run = run_of(checkpoint)
        recipe = read_facts(run).recipe if run is not None else {}
        ratio = float(recipe.get("mask", {}).get("ratio", PUBLISHED_RATIO))
    try:
        num_masked_patches(patches=geometry.patches, ratio=ratio)
    except ValueError as error:
        raise MisuseError(f"--ratio {ratio}: {error}") from error
    return ratio


def reconstruct_shards(
    model: PretrainModel, shards: Shards, *, clip: ClipSpec | None, videos: int, ratio: float, seed: int
) -> Drawn:
    """The middle clip of some samples, spread over the classes. Without `clip`, of neighbouring kept frames.

    Raises MisuseError when the shards don't hold such clips.
    """
    geometry, device = model.geometry, model.mean_C.device
    sampler = view_sampler(clip or ClipSpec(stride="kept"), shards.index, geometry.num_frames, 1)
    numbers = choose_samples(shards.label_N, videos, seed=seed)
    spec = AugmentSpec(size=geometry.image_size, crop="center", mean=geometry.mean, std=geometry.std)
    augment = Augment(spec).to(device)
    size = min(BATCH, len(numbers))
    requests = list(_requests(numbers, size))
    clips = []
    with ClipLoader(
        shards,
        sampler,
        requests,
        batch=size,
        frames=min(geometry.num_frames, int(shards.frames_NP[:, 0].max())),
        seed=seed,
        spec=LoaderSpec(workers=0, ahead=1),
        device=device,
    ) as batches:
        for batch in batches:
            planes = planes_of_views(batch.planes, batch.index_BVT)
            never_B = torch.zeros_like(batch.weight_B, dtype=torch.bool)
            rgb = augment(planes, augment.sample_boxes(planes.size_B2, batch.rng, never_B))
            titles = [_title(shards, number) for number in batch.request.samples]
            made = reconstruct_clips(model, rgb / 255, batch.rng, ratio, titles)
            clips += [clip for clip, weight in zip(made, batch.weight_B.tolist(), strict=True) if weight]
        return Drawn(clips, dict(batches.unreadable.by_key))


def _requests(numbers: Sequence[int], size: int) -> Iterator[Request]:
    for step, first in enumerate(range(0, len(numbers), size)):
        samples = numbers[first : first + size]
        yield Request(0, step, (*samples, *[PADDING] * (size - len(samples))))


def _title(shards: Shards, number: int) -> str:
    if number == PADDING:
        return ""
    label = int(shards.label_N[number])
    key = shards.key(number)
    return f"{shards.classes[label]}: {key}" if 0 <= label < len(shards.classes) else key


def _of_video(model: PretrainModel, path: Path, clip: ClipSpec, ratio: float, seed: int) -> Reconstruction:
    """The middle clip of a plain video file."""
    geometry, device = model.geometry, model.mean_C.device
    frames = read_clip(path, geometry.num_frames, clip)
    clips = model.preprocess(torch.from_numpy(frames)[None].to(device))
    rgb01 = clips * _per_colour(model.std_C) + _per_colour(model.mean_C)
    rng = ClipRng.on(device, seed=seed, epoch=0, sample=np.asarray([sample_number("video", path.name)], np.uint64))
    return reconstruct_clips(model, rgb01, rng, ratio, [path.name])[0]


@torch.inference_mode()
def reconstruct_clips(
    model: PretrainModel,
    rgb01_BCTHW: Float32[Tensor, "B 3 T H W"],
    rng: ClipRng,
    ratio: float,
    titles: Sequence[str],
) -> list[Reconstruction]:
    """Hide cubes of RGB clips (0..1), have them predicted, and put the predictions in their places."""
    geometry = model.geometry
    mask = tube_mask(rng, slices=geometry.slices, patches=geometry.patches, ratio=ratio)
    clips = (rgb01_BCTHW - _per_colour(model.mean_C)) / _per_colour(model.std_C)
    predicted_BMD = model(clips, mask).float()
    error = predicted_BMD - cube_targets(rgb01_BCTHW, mask.masked_BM, geometry)
    loss_B = error.square().mean(dim=(1, 2))
    hidden = _with_cubes(rgb01_BCTHW, mask, torch.full_like(predicted_BMD, 0.5), geometry)
    shown = _with_cubes(rgb01_BCTHW, mask, _put_back(rgb01_BCTHW, mask, predicted_BMD, geometry), geometry)
    originals, masked, predicted = (_pictures(x) for x in (rgb01_BCTHW, hidden, shown))
    return [
        Reconstruction(title, originals[n], masked[n], predicted[n], float(loss_B[n])) for n, title in enumerate(titles)
    ]


def _cubes(rgb01: Tensor, geometry: Geometry) -> Tensor:
    p0, p1 = geometry.tubelet_size, geometry.patch_size
    return rearrange(rgb01, "b c (t p0) (h p1) (w p2) -> b (t h w) (p0 p1 p2) c", p0=p0, p1=p1, p2=p1)


def _put_back(rgb01: Tensor, mask: TokenMask, predicted_BMD: Tensor, geometry: Geometry) -> Tensor:
    """Undo `cube_targets` with each cube's own mean and spread."""
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


def _pictures(rgb01_BCTHW: Tensor) -> NDArray[np.uint8]:
    pixels = (rgb01_BCTHW * 255).round().clamp(0, 255).byte()
    return np.ascontiguousarray(rearrange(pixels, "b c t h w -> b t h w c").cpu().numpy())


def _per_colour(x_C: Tensor) -> Tensor:
    return rearrange(x_C, "c -> c 1 1 1")
