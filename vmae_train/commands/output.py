"""Results of the vmae-train commands, as text or JSON: scores, unreadable videos, a dry run, loader throughput."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vmae_data.amounts import plural
from vmae_data.console import print_json, print_rows

if TYPE_CHECKING:
    from vmae_train.embed import Embedded
    from vmae_train.evaluation.feature_gap import GapReport
    from vmae_train.evaluation.frozen_scores import FrozenScores
    from vmae_train.feed import FeedReport
    from vmae_train.inference.predict import Prediction
    from vmae_train.predict import Predicted
    from vmae_train.training.dry_run import DryRunReport

__all__ = [
    "print_dry_run",
    "print_embedded",
    "print_feed",
    "print_frozen",
    "print_gap",
    "print_predicted",
    "print_result",
    "print_scores",
    "print_unreadable",
]

BAR = 24  # characters of a probability of 1


def print_result(quiet: bool, as_json: bool, values: dict[str, Any], text: str) -> None:
    """Print one result: `values` as JSON, or `text`."""
    from vmae_data.pages.html import printable

    if as_json:
        print_json(values)
    elif not quiet:
        print(printable(text))


def print_scores(scores: Any, quiet: bool, as_json: bool) -> None:
    import msgspec

    texts = [str(scores.headline)]
    if scores.headline.key == "top1":
        texts += [f"top-5 {scores.top5:.2f} %"] if scores.top5 is not None else []
        texts.append(f"mean of classes {scores.mean_class:.2f} %")
    elif scores.headline.key == "mae":
        texts.append(f"RMSE {scores.rmse:.4g}")
    texts += [f"{scores.videos} videos", f"{scores.views} views" + (f" ({scores.control})" if scores.control else "")]
    print_result(quiet, as_json, msgspec.to_builtins(scores), ", ".join(texts))


def print_frozen(scores: FrozenScores, quiet: bool, as_json: bool) -> None:
    """Print the scores of features: a line for each classifier."""
    import msgspec

    lines = []
    if scores.knn is not None:
        top5 = f", top-5 {scores.knn.top5:.2f} %" if scores.knn.top5 is not None else ""
        lines.append(f"k-NN, k = {scores.knn.k}: top-1 {scores.knn.top1:.2f} %{top5}")
    for one in scores.few_shot:
        shots = plural(one.shots, "video") + " a class"
        lines.append(f"{shots}: nearest class mean {one.nearest_mean}, logistic regression {one.logistic}")
    if scores.few_shot:
        lines.append(f"± is the standard deviation over {scores.few_shot[0].seeds} seeds")
    control = f" ({scores.control})" if scores.control else ""
    lines.append(f"{scores.videos} videos, {scores.train_videos} training videos, {scores.views} views{control}")
    if as_json:
        print_json(msgspec.to_builtins(scores))
    elif not quiet:
        print("\n".join(lines))


def print_gap(report: GapReport, quiet: bool, as_json: bool) -> None:
    """Print the distances between two sets as a table, what they say, and what else they come from."""
    import msgspec

    from vmae_data.pages.html import printable

    frechet, linear = report.frechet, report.separability
    if as_json:
        print_json({**msgspec.to_builtins(report), "summary": report.summary})
    elif not quiet:
        rows = {
            "Fréchet distance": f"{frechet.between:.4g} (squared; {frechet.samples} samples of each side)",
            "halves of A": f"{frechet.halves_a:.4g}",
            "halves of B": f"{frechet.halves_b:.4g}",
            "excess": f"{frechet.excess:.4g} above the mean of the halves",
            "chance": f"p = {frechet.p_value:.2g} (labels A and B dealt anew)",
            "linear classifier": f"{linear.accuracy:.1f} ± {linear.standard_error:.1f} % "
            f"(chance 50 %, {linear.folds} folds, standard error)",
            "samples": f"{report.samples} of each set",
        }
        print_rows(f"A: {report.a}, B: {report.b}", rows.items())
        print(report.summary)
    for warning in report.warnings:
        print(f"warning: {printable(warning)}", file=sys.stderr)


def print_unreadable(unreadable: dict[str, str]) -> None:
    """One warning for each video that was skipped."""
    from vmae_data.pages.html import printable

    for key, why in unreadable.items():
        print(f"skipped, unreadable: {printable(key)}: {printable(why)}", file=sys.stderr)


def print_predicted(predicted: Predicted, out: str | None, top: int) -> None:
    """Print the classes of each video or window with bars; or, if a file was written, how much it holds."""
    from vmae_data.pages.html import printable

    if out is not None:
        done = len(predicted.results) - len(predicted.unreadable)
        print(
            f"{out}: {plural(predicted.rows or 0, 'row')}. {done} videos predicted, {predicted.kept} kept from before"
        )
        return
    for result in predicted.results:
        if result.error is None:
            print(printable(result.video))
        for prediction in result.rows:
            print("\n".join(_prediction_lines(prediction, top)))


def print_embedded(embedded: Embedded, out: str, quiet: bool, as_json: bool) -> None:
    """Print how much was written, and how fast."""
    from vmae_data.pages.html import printable

    counts = embedded.counts
    values = {
        "out": out,
        "rows": embedded.rows,
        "videos": counts.done,
        "kept": counts.kept,
        "unreadable": len(counts.unreadable),
        "clips": embedded.clips,
        "clips_per_second": embedded.clips_per_second,
        "uneven": embedded.uneven,
    }
    text = f"{out}: {plural(embedded.rows, 'row')}. {plural(counts.done, 'video')} embedded, {counts.kept} kept from before"
    if embedded.clips:
        text += f". {embedded.clips_per_second:.3g} clips/s ({embedded.clips} clips in {embedded.seconds:.1f} s)"
    print_result(quiet, as_json, values, text)
    for video, seconds in embedded.uneven.items():
        print(
            f"warning: {printable(video)}: its frames are not evenly spaced, "
            f"so times of features are wrong by up to {seconds:.2f} s",
            file=sys.stderr,
        )


def _prediction_lines(prediction: Prediction, top: int) -> list[str]:
    from vmae_data.pages.html import printable
    from vmae_data.read.dataset import LabelKind

    span = ""
    if prediction.start is not None and prediction.end is not None:
        span = f"{prediction.start:.2f} to {prediction.end:.2f} s"
    pairs = [(printable(name), value) for name, value in prediction.top(top)]
    width = max(len(name) for name, _ in pairs)
    lines = []
    for number, (name, value) in enumerate(pairs):
        text = f"{value:.4g}"
        if prediction.kind is not LabelKind.VALUES:
            text = f"{value:6.1%}  {'█' * round(BAR * value)}"
        lines.append(f"  {span if number == 0 else '':{len(span)}}  {name:{width}}  {text}".rstrip())
    return lines


def print_dry_run(report: DryRunReport, quiet: bool, as_json: bool) -> None:
    """Print what a dry run measured; its warnings go to stderr."""
    if as_json:
        totals = {"total_seconds": report.total_seconds, "disk_mb": report.disk_mb}
        warnings = [diagnostic._asdict() for diagnostic in report.cautions]
        print_json({**report._asdict(), **totals, "cautions": warnings})
    elif not quiet:
        waiting = report.wait_seconds / report.step_seconds if report.step_seconds else 0.0
        memory_of = "this process" if report.device == "cpu" else report.device
        rows = {
            "steps": f"{report.steps} of {plural(report.batch, 'video')}, {plural(report.epochs, 'epoch')}",
            "time": f"{timedelta(seconds=round(report.total_seconds))} (h:mm:ss) without evaluation and checkpoints, "
            f"from the second step ({report.step_seconds:.4g} s); {waiting:.0%} waits for data; limit: {report.limits}",
            "memory": f"{report.memory_mb:.0f} MB, the peak of {memory_of}",
            "disk": f"{report.disk_mb:.1f} MB: {plural(report.checkpoints, 'checkpoint')} of "
            f"{report.checkpoint_mb:.1f} MB, and one more while it is written",
            "loss": f"{report.loss:.4f}",
        }
        print_rows("dry run: nothing was written", rows.items())
    for diagnostic in report.cautions:
        print(f"warning: {diagnostic.text}", file=sys.stderr)


def print_feed(report: FeedReport, title: str, appetite: float, quiet: bool, as_json: bool) -> None:
    """Print how many clips per second the loader delivers, and what limits it."""
    import msgspec

    cores = report.cores_for(appetite)
    if as_json:
        print_json({**msgspec.to_builtins(report), "appetite": appetite, "cores_needed": cores})
        return
    if quiet:
        return
    rate, cpu_ms = report.clips_per_second, 1000 * report.cpu_seconds_a_clip
    cache = "" if report.cache_hits is None else f", {report.cache_hits:.0%} of the samples from the cache"
    rows = {
        "clips/s": f"at most {report.training_clips_per_second:.1f} in a training",
        "loader": f"{rate:.1f} clips/s ({report.clips} in {report.seconds:.1f} s, {report.workers} workers)",
        "first batch": f"after {report.first_batch_seconds:.2f} s",
        **{
            stage.name: f"{1000 * stage.seconds_a_clip:.2f} ms per clip, busy {stage.busy:.0%}"
            for stage in report.stages
        },
        "limits": report.limits,
        "read": f"{report.read_mb:.1f} MB, {report.read_mb_per_second:.1f} MB/s{cache}",
        "cores": f"{report.cores_used:.2f} used; {cores:.1f} needed for {appetite:g} clips/s "
        f"({cpu_ms:.2f} ms of CPU time per clip)",
    }
    print_rows(title, rows.items())
