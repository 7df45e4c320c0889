"""The wrong videos that scores name → parts of a page: frames, true and predicted class, their probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vmae_data.errors import VmaeError
from vmae_data.pages.html import Gallery, Note, Part, Section, Tile
from vmae_data.read.contact_sheet import contact_sheet
from vmae_data.read.dataset import Shards
from vmae_train.evaluation.metrics import AnyScores, Scores, WrongVideo, top_confusions
from vmae_train.evaluation.predictions import MAX_WRONG

__all__ = ["wrong_sections"]


def wrong_sections(scores: AnyScores | None, shards: Shards | None, problem: str = "") -> Iterator[Section]:
    """The most confused pairs, each with a video, and the most confident errors. `shards` None: `problem` is the reason."""
    if not isinstance(scores, Scores) or not scores.wrong:
        return
    if shards is None:
        yield Section("Wrong videos", (Note(f"Their frames can't be shown: {problem}", warning=True),))
        return
    yield Section("Most confused pairs", tuple(_pair_parts(scores, shards)))
    yield Section("Wrong videos", tuple(_video_parts(scores, shards)))


def _pair_parts(scores: Scores, shards: Shards) -> Iterator[Part]:
    confusion = np.asarray(scores.confusion, dtype=np.int64)
    titles, videos = [], []
    for true, predicted in top_confusions(confusion):
        pair, count = (scores.classes[true], scores.classes[predicted]), confusion[true, predicted]
        video = next((one for one in scores.wrong if (one.label, one.predicted) == pair), None)
        if video is not None:
            titles.append(f"{pair[0]} → {pair[1]}: {count} {'videos' if count > 1 else 'video'}")
            videos.append(video)
    if videos:
        yield Note("True class → predicted class. Each pair shows the video with the most confident error.")
    yield from _gallery(shards, videos, titles)


def _video_parts(scores: Scores, shards: Shards) -> Iterator[Part]:
    shown = scores.wrong[:MAX_WRONG]
    wrong = scores.videos - int(np.trace(np.asarray(scores.confusion)))
    yield Note(
        f"{'All' if wrong == len(shown) else f'{len(shown)} of'} {wrong} wrong videos, the most confident first. "
        "The frames are the first, middle and last kept one."
    )
    yield from _gallery(shards, shown, [f"{one.label} → {one.predicted}" for one in shown])


def _gallery(shards: Shards, videos: Sequence[WrongVideo], titles: Sequence[str]) -> Iterator[Part]:
    """A tile for each video that can be read. A sentence for each other one."""
    tiles: list[Tile] = []
    notes: list[Part] = []
    sources = shards.source_paths([one.sample for one in videos if 0 <= one.sample < len(shards)])
    paths = iter(sources)
    for one, title in zip(videos, titles, strict=True):
        if not 0 <= one.sample < len(shards):
            notes.append(Note(f"{one.key} can't be shown: the data set has no such sample.", warning=True))
            continue
        path = next(paths)
        try:
            gallery, unreadable = contact_sheet(shards, [one.sample])
        except VmaeError as error:  # a shard or the store is missing: the others can't be read either
            notes.append(Note(f"The frames can't be shown: {error}", warning=True))
            break
        lines = (
            f"predicted {one.predicted}: {100 * one.probability:.1f} %",
            f"true {one.label}: {100 * one.label_probability:.1f} %",
            path or one.key,
        )
        tiles += [tile._replace(title=title, lines=lines) for tile in gallery.tiles]
        notes += [Note(f"{one.key} can't be shown: {reason}", warning=True) for reason in unreadable.values()]
    if tiles:
        yield Gallery(tuple(tiles))
    yield from notes
