"""`vmae-train finetune`, read as a table of contents: data, order, clips, encoder and head, step, scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import msgspec

from vmae_data.errors import MisuseError
from vmae_data.format import NOT_JSON
from vmae_data.progress import ProgressStyle
from vmae_data.read.batches import BatchLayout
from vmae_data.read.dataset import LabelKind, Shards
from vmae_data.storage import commit_bytes, lock
from vmae_train.clips.augment import Augment
from vmae_train.clips.frame_sampling import view_sampler
from vmae_train.clips.frame_spacing import check_spacing
from vmae_train.clips.mixup import MixupSpec
from vmae_train.distributed import Distributed, choose_device
from vmae_train.evaluation.metrics import AnyScores
from vmae_train.evaluation.predict_videos import check_classes, predict_videos
from vmae_train.evaluation.predictions import compute_scores
from vmae_train.evaluation.protocol import EvaluateSpec, EvaluationProtocol, parse_views
from vmae_train.models.heads import HeadModel
from vmae_train.models.losses import ValueDistance
from vmae_train.runs.layout import EVALUATION
from vmae_train.runs.log import is_validated, print_start
from vmae_train.runs.metadata import RunFacts, check_run
from vmae_train.runs.remote_run import RemoteRun
from vmae_train.training.checkpoint import RunState
from vmae_train.training.dry_run import take_dry_run_steps
from vmae_train.training.engine import Engine
from vmae_train.training.loop import Training, train
from vmae_train.training.objectives import FinetuneLoss, Probe, check_labels, first_model, label_words, learnt_from
from vmae_train.training.optimizer import build_optimizer
from vmae_train.training.recorder import RunPlace, Validated
from vmae_train.training.setup import RunSpec, begin_together, check_cache, set_up_training

__all__ = ["FinetuneReport", "FinetuneSpec", "finetune"]


class FinetuneSpec(RunSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A finetuning recipe. The whole encoder is trained; with `probe`, only what stands on it.

    The data's labels say what is learnt: one class (cross entropy), several (binary cross entropy of each) or values
    (`value_loss`: squared or absolute error, in spreads of the training set).
    """

    evaluate: EvaluateSpec = EvaluateSpec()
    probe: Probe | None = None
    mix: MixupSpec = MixupSpec()
    value_loss: ValueDistance = "mse"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch", "micro_batch"):
            size = getattr(self.train, name)
            if self.mix.is_on and size is not None and size % self.mix.mix_group:
                raise ValueError(f"mix.mix_group = {self.mix.mix_group} does not divide train.{name} = {size}")


class FinetuneReport(NamedTuple):
    state: RunState
    scores: AnyScores


def finetune(
    spec: FinetuneSpec,
    *,
    data: Sequence[str],
    validation: str,
    out: str | Path,
    scratch: Path | None = None,
    init: str | None = None,
    device: str | None = None,
    style: ProgressStyle = ProgressStyle.AUTO,
    distributed: Distributed | None = None,
    dry_run: bool = False,
) -> FinetuneReport:
    """Finetune in the folder or bucket `out`, or go on where it was stopped, and score the validation set.

    A run in a bucket works in a folder below `scratch`, else in one of this machine's cache.

    A `dry_run` takes two steps, writes no checkpoint and raises Rehearsed (see `training.rehearsal`).

    Raises MisuseError for a recipe, data or folder that don't fit each other, VmaeError for a run that can't go on.
    """
    distributed = distributed or Distributed()
    with distributed.all_or_none():
        remote_run = RemoteRun(out, scratch)
        setup, val_shards = set_up_training(spec, data, distributed), Shards.open(validation)
        mix = setup.mix
        classes = mix.sets[0].classes
        check_cache(spec.cache, val_shards)
        for views in {spec.evaluate.views, spec.evaluate.every_views}:
            num_clips = parse_views(views).clips
            view_sampler(spec.clip, val_shards.index, setup.geometry.num_frames, num_clips)
            nearest = check_spacing(spec.clip, val_shards, setup.geometry.num_frames, num_clips)
        check_labels(mix, spec.mix)
        _check_groups(spec, setup.layout)
    with distributed.on_main_process(lock(remote_run.folder, "training")):
        with distributed.all_or_none():
            if distributed.local_rank == 0:  # one a machine
                remote_run.pull(newer_stays=distributed.is_main)
        with distributed.all_or_none():
            facts = RunFacts(
                kind="finetune",
                recipe=msgspec.to_builtins(spec),
                data=mix.urls,
                data_digest=mix.digests,
                data_listing=mix.listings,
                data_weight=mix.weights,
                validation=validation,
                validation_digest=val_shards.digest,
                init=init,
                classes=classes,
            )
            check_run(remote_run.folder, facts, type(spec), remote_run.shown)
            where = choose_device(device, threads=spec.train.threads, distributed=distributed)
            first = first_model(
                spec.model, spec.geometry(), learnt_from(mix), init=init, probe=spec.probe, seed=spec.seed
            )
            model = first.model.to(where)
            check_classes(model, val_shards)
            warned = setup.facts("finetune", init=init, frozen=spec.probe is not None)
            optimizer = build_optimizer(model, spec.optim, depth=setup.geometry.depth)
            engine = setup.engine(model, optimizer, where)
        state = begin_together(distributed, remote_run, facts, engine, keep=spec.checkpoint.keep)
        rows = {
            "labels": label_words(mix),
            "augmentation": augmentation_words(spec, may_flip=bool(mix.may_flip_N.any())),
            "start": first.start,
            **({"validation, thinned": nearest} if nearest else {}),
            **({"probe": f"{spec.probe}; the encoder is frozen"} if spec.probe else {}),
            **setup.rows(engine, state.step),
        }
        print_start(
            "finetune, a dry run" if dry_run else f"finetune → {remote_run.shown}",
            rows,
            quiet=distributed.style(style) is ProgressStyle.QUIET,
        )
        validation_run = _Validation(spec, engine, val_shards, distributed)
        if state.step < setup.steps or validation_run.is_owed(remote_run.folder, state.step):
            augment = Augment(setup.augment).to(where)
            with setup.loader(state.step, where, targets=mix.sets[0].label_kind is not LabelKind.CLASS) as loader:
                training = Training(
                    engine,
                    loader,
                    FinetuneLoss(
                        model.train(), augment, spec.mix, repeats=spec.train.repeats, value_loss=spec.value_loss
                    ),
                    distributed=distributed,
                    place=RunPlace(remote_run, spec.checkpoint, spec.log, style, warned),
                    start=state,
                    order=setup.order,
                    validate=validation_run.in_between,
                    validate_every=spec.evaluate.every_steps,
                )
                state = take_dry_run_steps(training) if dry_run else train(training)
        return FinetuneReport(state, validation_run.finish(remote_run, style))


class _Validation:
    """Scores of the validation set, by all processes together."""

    def __init__(self, spec: FinetuneSpec, engine: Engine, shards: Shards, distributed: Distributed) -> None:
        self._spec, self._engine, self._shards, self._world = spec, engine, shards, distributed

    def _scores(self, views: str, style: ProgressStyle) -> AnyScores:
        spec, model = self._spec, self._engine.model
        assert isinstance(model, HeadModel)
        predictions = predict_videos(
            model,
            self._shards,
            protocol=EvaluationProtocol(parse_views(views), spec.clip, spec.evaluate.merge, spec.augment.antialias),
            loader=spec.loader,
            cache=spec.cache,
            device=self._engine.device,
            batch=spec.evaluate.batch,
            autocast=self._engine.autocast,
            style=style,
            distributed=self._world,
        )
        model.train()
        with self._world.all_or_none():
            return compute_scores(predictions)

    def in_between(self) -> Validated:
        scores = self._scores(self._spec.evaluate.every_views, ProgressStyle.QUIET)
        headline = scores.headline
        line = {headline.key: headline.value, "views": scores.views}
        return Validated(line, headline.key, headline.value, headline.higher_is_better)

    def is_owed(self, folder: Path, step: int) -> bool:
        """Whether the last step's score in between, by which the best checkpoint is chosen, is still to be made."""
        every = self._spec.evaluate.every_steps
        owed = bool(every) and step % (every or 1) == 0 and not is_validated(folder, step)
        return bool(self._world.all_gather(owed, bool)[0])

    def finish(self, remote_run: RemoteRun, style: ProgressStyle) -> AnyScores:
        """The scores of the finished run; those that are there already are not made again."""
        # The first process's answer: another one's file system may be late.
        found = self._world.all_gather(_finished_scores(remote_run.folder), AnyScores | None)[0]
        if found is not None:
            return cast(AnyScores, found)
        scores = self._scores(self._spec.evaluate.views, style)
        with self._world.all_or_none():
            if self._world.is_main:
                commit_bytes(remote_run.folder / EVALUATION, msgspec.json.format(msgspec.json.encode(scores)) + b"\n")
                remote_run.publish(EVALUATION)
        return scores


def _finished_scores(out: Path) -> AnyScores | None:
    """The scores of a run that was finished before."""
    try:
        found: AnyScores = msgspec.json.decode((out / EVALUATION).read_bytes(), type=AnyScores)
    except (FileNotFoundError, *NOT_JSON):
        return None
    return found


def augmentation_words(spec: FinetuneSpec, *, may_flip: bool) -> str:
    """What is done to clips and labels, in the order in which it is done."""
    augment, mixing = spec.augment, spec.mix
    words = [f"crop {augment.crop}{'' if augment.antialias else ' without antialias'}"]
    if (policy := augment.randaugment) is not None:
        strength = f"magnitude {policy.magnitude:g} ± {policy.magnitude_std:g}"
        words.insert(0, f"RandAugment {policy.layers} × {policy.prob:g}, {strength}")
    words.append(f"flip {'on' if augment.flip and may_flip else 'off'}")
    if augment.erasing is not None:
        words.append(f"erasing {augment.erasing.prob:g}")
    if mixing.is_on:
        words.append(f"mixup {mixing.mixup:g}, cutmix {mixing.cutmix:g} in groups of {mixing.mix_group}")
    if mixing.label_smoothing:
        words.append(f"label smoothing {mixing.label_smoothing:g}")
    return "; ".join(words)


def _check_groups(spec: FinetuneSpec, layout: BatchLayout) -> None:
    """Raises MisuseError where a group of mixed samples would lie on two processes or in two micro-batches."""
    group, batch = spec.mix.mix_group, spec.train.batch
    if spec.mix.is_on and (batch % (group * layout.world_size) or layout.micro_batch % group):
        raise MisuseError(
            f"mix.mix_group = {group}: {layout.world_size} processes, each with micro-batches of {layout.micro_batch} of a batch of "
            f"{batch}, would cut groups apart; the share of a process and train.micro_batch must be multiples of it"
        )
