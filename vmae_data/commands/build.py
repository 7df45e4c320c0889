"""`vmae-shard build`: videos → shards, or with --dry-run an estimate of the build."""

from __future__ import annotations

import re
import sys
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vmae_data.amounts import plural
from vmae_data.commands.options import MaxFailures, Settings, Staging, failure_limit
from vmae_data.commands.output import build_json, check_failures, print_build
from vmae_data.console import (
    Debug,
    Json,
    Quiet,
    StorageOptions,
    argument,
    flag,
    num_cores,
    option,
    print_json,
    progress_style,
    recipe_option,
)
from vmae_data.errors import MisuseError, resumable
from vmae_data.names import first_names

if TYPE_CHECKING:
    from vmae_data.encode.build_spec import BuildSpec
    from vmae_data.shards.merge import BuildReport
    from vmae_data.shards.plan import Part
    from vmae_data.sources.find import Listing
    from vmae_data.sources.val_share import ValShare
    from vmae_data.storage import StoragePath

NAMED = 3  # videos in a message
Executor = Enum("Executor", {"LOCAL": "local", "RAY": "ray"})


def build(
    source: Annotated[
        str, argument("SOURCE", "Read a folder of videos, or a listing with one `path label` per line. Path or URL.")
    ],
    dest: Annotated[
        str | None, argument("DEST", "Write the shards to this folder, a path or a URL.", "shards/NAME-OF-SOURCE")
    ] = None,
    recipe: Annotated[
        str | None,
        recipe_option(
            "vmae_data",
            "Use a recipe: a name from `vmae-shard recipes`, or a TOML file.",
            "every 4th frame, short side 256, H.264",
        ),
    ] = None,
    settings: Settings = None,
    annotations: Annotated[
        str | None,
        option("FILE|FOLDER", "Read labels from annotation files or a listing.", "the class folders of SOURCE"),
    ] = None,
    split: Annotated[
        str | None, option("SPLIT", "Build one split: train, val or test (UCF101, HMDB51: train1, …).", "all splits")
    ] = None,
    val_share: Annotated[
        float | None,
        option("SHARE", "Make DEST/train and DEST/val: this share of SOURCE is for validation.", "one data set"),
    ] = None,
    group_by: Annotated[
        str | None,
        option("PATTERN", "Never split a group, whose name this regular expression finds in each path.", "no groups"),
    ] = None,
    classes: Annotated[
        str | None,
        option(
            "FILE|INDEX", "Take the class numbers from a file or a data set.", "from the annotations, else sorted names"
        ),
    ] = None,
    exclude: Annotated[
        str | None, option("FILE", "Skip videos that `audit --out` marked, or whose path is a line of FILE.", "no file")
    ] = None,
    dry_run: Annotated[
        bool, flag("--dry-run", "Encode a few videos, estimate time and size, and write nothing.", "build the shards")
    ] = False,
    workers: Annotated[
        int | None, option("N", "Encode N videos at a time.", "one per CPU core; 4 per task on Ray", min=1, max=1024)
    ] = None,
    executor: Annotated[
        Executor, option("local|ray", "Encode on this machine, or on a Ray cluster (pip install 'vmae\\[ray]').")
    ] = Executor.LOCAL,
    address: Annotated[
        str | None,
        option("HOST:PORT", "Use this Ray cluster.", "RAY_ADDRESS, else one on this machine, else a new one"),
    ] = None,
    part: Annotated[
        str | None, option("I/N", "Build only part I of N, counted from 0. Run `merge` last.", "all shards")
    ] = None,
    max_failures: MaxFailures = None,
    append: Annotated[
        bool,
        flag("--append", "Build the videos that SOURCE gained into new shards of DEST.", "refuse a changed SOURCE"),
    ] = False,
    retry_failed: Annotated[bool, flag("--retry-failed", "Try failed sources again.", "skip them")] = False,
    ffmpeg: Annotated[str | None, option("FILE", "Use this ffmpeg.", "VMAE_FFMPEG, else the installed one")] = None,
    staging: Staging = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Resize videos, drop frames, and pack them into shards.

    Run the same command again to resume a stopped build.

    Examples:
        vmae-shard build videos shards/mine --val-share 0.2
        vmae-shard build videos s3://bucket/shards/k400 --recipe k400 --dry-run
        vmae-shard build videos shards/mine --append
    """
    from vmae_data.build import build_shards, build_train_and_val
    from vmae_data.encode.build_spec import BuildSpec
    from vmae_data.progress import announce
    from vmae_data.recipes import load_recipe
    from vmae_data.sources.classes import read_classes
    from vmae_data.storage import storage_path, writable

    style = progress_style(quiet, as_json)
    spec = load_recipe("vmae_data", recipe, BuildSpec, settings or ())
    limit = failure_limit(max_failures)
    if split is not None and not re.fullmatch(r"(train|val|test)[1-9]?", split):
        raise MisuseError(f"--split {split}: expected train, val or test, with a number for UCF101 and HMDB51 (train1)")
    if address is not None and executor is Executor.LOCAL:
        raise MisuseError(f"--address {address}: is for --executor ray only")
    folder = writable(storage_path(dest)) if dest is not None else _default_dest(storage_path(source))
    share = _parse_share(val_share, group_by)
    class_names = read_classes(classes) if classes is not None else ()
    chosen = _parse_part(part)
    common: dict[str, Any] = {
        "annotations": annotations,
        "split": split,
        "classes": class_names,
        "exclude": exclude,
        "ffmpeg": ffmpeg,
        "style": style,
        "on_start": partial(_print_notes, spec, quiet),
    }
    if dry_run and append:
        raise MisuseError("--dry-run --append: the estimate is of a whole build. Remove one of them")
    announce("finding the videos", style)
    if dry_run:
        rules = _stored_rules(folder, share)
        estimated = {**common, "share": share, "rules": rules, "workers": workers or num_cores()}
        _print_estimate(source, spec, estimated, quiet, as_json)
        return
    options = common | {
        "workers": workers,
        "executor": executor.value,
        "address": address,
        "part": chosen,
        "append": append,
        "retry_failed": retry_failed,
        "staging": staging,
    }
    reports: dict[StoragePath, BuildReport] = {}
    with resumable(lambda: ", ".join(f"{built} is complete" for built in reports)):
        if share is None:
            builds = iter([(folder, build_shards(source, folder, spec, **options))])
        else:
            builds = build_train_and_val(source, folder, spec, share, **options)
        for built, report in builds:
            reports[built] = report
            if not quiet and not as_json:
                _print_sources(report, source, annotations, exclude, built)
                if chosen is not None:
                    print(f"part {part} is done. After all parts, run: vmae-shard merge {built}")
                print_build(report, built, _failure_list(built, chosen))
    if as_json:
        results = [build_json(report, built) for built, report in reports.items()]
        print_json(dict(zip(("train", "val"), results, strict=True)) if share else results[0])
    for report in reports.values():
        check_failures(report, max_failures, limit)


def _stored_rules(folder: StoragePath, share: ValShare | None) -> int:
    from vmae_data.shards.plan import stored_rules
    from vmae_data.shards.subset import SUBSETS

    return stored_rules(folder / SUBSETS[0] if share else folder)


def _print_estimate(source: str, spec: BuildSpec, options: dict[str, Any], quiet: bool, as_json: bool) -> None:
    from vmae_data.estimate import estimate_build, estimate_lines

    estimate = estimate_build(source, spec, **options)
    if as_json:
        print_json(estimate)
    elif not quiet:
        print("\n".join(estimate_lines(estimate)))


def _default_dest(source: StoragePath) -> Path:
    """shards/NAME, where NAME is that of a folder, or of a listing without its suffix."""
    from vmae_data.storage import exists

    return Path("shards") / ((source.stem if exists(source) else source.resolve().name) or "root")


def _parse_share(share: float | None, group_by: str | None) -> ValShare | None:
    from vmae_data.sources.val_share import ValShare

    if share is None and group_by is not None:
        raise MisuseError(f"--group-by {group_by}: needs --val-share, such as --val-share 0.2")
    return ValShare(share, group_by).checked() if share is not None else None


def _parse_part(text: str | None) -> Part | None:
    from vmae_data.shards.plan import Part

    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if match is None or not int(match[1]) < int(match[2]):
        raise MisuseError(f"--part {text}: expected I/N with I from 0 to N-1, such as 0/3")
    return Part(int(match[1]), int(match[2]))


def _print_notes(spec: BuildSpec, quiet: bool, listing: Listing) -> None:
    for warning in listing.warnings:  # No other file or line names what these lost.
        print(f"warning: {warning}", file=sys.stderr)
    for note in () if quiet else (*spec.notes(), *listing.notes):
        print(f"note: {note}", file=sys.stderr)


def _print_sources(
    report: BuildReport, source: str, annotations: str | None, exclude: str | None, folder: StoragePath
) -> None:
    """Print how many videos and lists do not match each other."""
    from vmae_data.format import UNLISTED

    for paths, what in (
        (report.removed, f"of {folder} not in {source} any more"),
        (report.changed, f"of {source} changed since it was built"),
    ):
        if paths:
            print(f"{plural(len(paths), 'video')} {what}: {first_names(paths, NAMED)}. The data set keeps its samples")
    if report.unlisted:
        print(f"{annotations} has no row for {plural(report.unlisted, 'video')}, listed in {folder / UNLISTED}")
    if report.unmatched:
        print(f"{exclude}: {plural(report.unmatched, 'path')} did not match any video of {source}")


def _failure_list(folder: StoragePath, part: Part | None) -> StoragePath:
    """The file that lists the failed sources. After the merge a part has no list of its own."""
    from vmae_data.format import FAILURES
    from vmae_data.shards.merge import part_failures_name
    from vmae_data.storage import exists

    if part is not None and exists(folder / part_failures_name(part)):
        return folder / part_failures_name(part)
    return folder / FAILURES
