"""`vmae-train gap`: two sets of shards and a checkpoint → how far apart the sets are in the encoder's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmae_data.amounts import plural
from vmae_data.errors import DataError, MisuseError
from vmae_data.names import source_key
from vmae_data.progress import ProgressBar, ProgressStyle
from vmae_data.read.dataset import Shards
from vmae_data.rng import Purpose, bits, permutation, sample_number
from vmae_train.clips.frame_spacing import check_spacing, describe_clip
from vmae_train.evaluation.feature_gap import (
    FOLDS,
    RELABELLINGS,
    SPLITS,
    GapReport,
    Projection,
    SampleFeatures,
    frechet_gap,
    project,
    separability,
)
from vmae_train.inference.embed import Embedder
from vmae_train.training.summary import print_summary

__all__ = ["measure_gap"]

FEWEST = 10  # samples of a set, and source videos that they are of
ENCODING = ("short_side", "profile", "crf", "qscale")  # keys of a build that change the pictures


def measure_gap(
    embedder: Embedder,
    a: str,
    b: str,
    *,
    samples: int = 2000,
    seed: int = 0,
    workers: int = 0,
    style: ProgressStyle = ProgressStyle.AUTO,
) -> tuple[GapReport, Projection]:
    """Compare equally many samples of two sets of shards, at most `samples` of each, chosen by the seed.

    Raises MisuseError if the sets are the same, too small, or lack the clips; DataError for what can't be read.
    """
    sets = (Shards.open(a), Shards.open(b))
    _check_sets(*sets)
    count = min(samples, *(len(shards) for shards in sets))
    chosen = [_choose(shards, count, seed) for shards in sets]
    clip_a, clip_b = (_clip_text(embedder, shards) for shards in sets)
    shared = len(np.intersect1d(_sources(sets[0], chosen[0]), _sources(sets[1], chosen[1])))
    warnings = _warnings(embedder, sets, shared)
    rows = {
        name: f"{shards.url}, {count} of {len(shards)} samples, shards of {shards.index.spacing}"
        for name, shards in zip("ab", sets, strict=True)
    }
    rows |= {"clip": clip_a} if clip_a == clip_b else {"clip of a": clip_a, "clip of b": clip_b}
    rows["features"] = f"{embedder.describe_features()}, views {embedder.protocol.views}"
    rows["settings"] = embedder.origin
    print_summary(f"gap in features of {embedder.checkpoint}", rows, quiet=style is ProgressStyle.QUIET)
    unreadable: dict[str, str] = {}
    read = [
        _features(embedder, shards, numbers, unreadable, workers, style)
        for shards, numbers in zip(sets, chosen, strict=True)
    ]
    count = min(len(one.source_N) for one in read)
    first, second = (SampleFeatures(one.feature_NE[:count], one.source_N[:count]) for one in read)
    with ProgressBar("comparisons", SPLITS + RELABELLINGS + FOLDS, style) as progress:
        report = GapReport(
            a=a,
            b=b,
            checkpoint=embedder.checkpoint,
            samples=count,
            seed=seed,
            features=embedder.describe_features(),
            views=str(embedder.protocol.views),
            clip_a=clip_a,
            clip_b=clip_b,
            frechet=frechet_gap(first, second, seed=seed, done=progress.advance),
            separability=separability(first, second, seed=seed, done=progress.advance),
            shared_sources=shared,
            unreadable=unreadable,
            warnings=warnings,
        )
    return report, project(first.feature_NE, second.feature_NE)


def _check_sets(a: Shards, b: Shards) -> None:
    """Raises MisuseError unless these are two sets with enough samples."""
    if a.digest == b.digest:
        raise MisuseError(f"{a.url} and {b.url}: hold the same samples. Name two sets of shards")
    for shards in (a, b):
        if len(shards) < FEWEST:
            raise MisuseError(
                f"{shards.url}: has {plural(len(shards), 'sample')}, a gap needs {FEWEST} of each set. Use more videos"
            )


def _choose(shards: Shards, count: int, seed: int) -> list[int]:
    """Numbers of samples, in random order: it depends on the seed and the keys only."""
    hash_N = np.asarray([shards.sample_number(number) for number in range(len(shards))], np.uint64)
    return [int(number) for number in permutation(bits(seed, 0, hash_N, 0, 0, Purpose.GAP))[:count]]


def _sources(shards: Shards, numbers: Sequence[int]) -> NDArray[Any]:
    """A number of each sample's source video, the same in all sets. It comes from the path that the build was given."""
    return np.asarray([sample_number("", source_key(shards.key(number))) for number in numbers], np.uint64)


def _clip_text(embedder: Embedder, shards: Shards) -> str:
    """How the clips of a set are sampled. Raises MisuseError if the shards don't have such clips."""
    clip, frames = embedder.shard_clip(shards), embedder.model.geometry.num_frames
    nearest = check_spacing(clip, shards, frames, embedder.protocol.views.clips)
    return f"{frames} frames, {describe_clip(clip, shards, frames)}" + (f"; {nearest}" if nearest else "")


def _warnings(embedder: Embedder, sets: tuple[Shards, Shards], shared: int) -> tuple[str, ...]:
    """What else than the videos differs between the sets, or is common to them."""
    a, b = (shards.index for shards in sets)
    warnings = [] if embedder.is_stated else [embedder.origin]
    clip = embedder.shard_clip(sets[0])
    if a.spacing != b.spacing and (clip != embedder.shard_clip(sets[1]) or clip.sampler != "stride"):
        warnings.append(
            f"the shards are thinned differently ({a.spacing} and {b.spacing}), so their clips differ: that is part "
            "of the gap. Build both with one spacing, or set a clip.stride that both have"
        )
    encodings = [{key: index.recipe.get(key) for key in ENCODING} for index in (a, b)]
    different = [
        f"{key} {encodings[0][key]} and {encodings[1][key]}"
        for key in ENCODING
        if encodings[0][key] != encodings[1][key]
    ]
    if different:
        warnings.append(
            f"the shards are encoded differently ({', '.join(different)}): that is part of the gap. "
            "Build both with one recipe"
        )
    if shared:
        warnings.append(
            f"{plural(shared, 'source video')} of the same path in both sets. If they are the same videos, the gap is "
            "too small: name sets without common videos"
        )
    return tuple(warnings)


def _features(
    embedder: Embedder,
    shards: Shards,
    numbers: Sequence[int],
    unreadable: dict[str, str],
    workers: int,
    style: ProgressStyle,
) -> SampleFeatures:
    """Features in the order of `numbers`, without the unreadable ones. Raises DataError if too few are left."""
    values: dict[str, NDArray[Any]] = {}
    for result in embedder.run_shards(shards, samples=sorted(numbers), workers=workers, style=style):
        if result.error is not None:
            unreadable[result.video] = result.error
        for row in result.rows:
            values[row.video] = row.values
    read = [number for number in numbers if f"{shards.url}/{shards.key(number)}" in values]
    source_N = _sources(shards, read)
    videos = len(np.unique(source_N))
    if videos < FEWEST:
        raise DataError(
            f"{shards.url}: {len(read)} samples of {videos} videos could be read, a gap needs {FEWEST} videos of each "
            "set. Use more videos, or raise --samples"
        )
    rows = np.stack([values[f"{shards.url}/{shards.key(number)}"] for number in read]).astype(np.float64)
    if not np.isfinite(rows).all():
        raise DataError(f"{embedder.checkpoint}: its features of {shards.url} are not finite. Use another checkpoint")
    return SampleFeatures(rows, source_N)
