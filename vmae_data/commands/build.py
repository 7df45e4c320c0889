"""`vmae-shard build` and `merge`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmae_data.commands.report import allowed_failures, judge_failures, tell_build
from vmae_data.console import (
    Debug,
    Json,
    Quiet,
    Settings,
    StorageOptions,
    counted,
    local_argument,
    num_cores,
    print_json,
    progress_style,
)
from vmae_data.errors import MisuseError

if TYPE_CHECKING:
    from vmae_data.encode.build_spec import BuildSpec
    from vmae_data.shards.plan import Part
    from vmae_data.storage import StoragePath

__all__ = ["build", "merge"]

MaxFailures = Annotated[
    str | None, typer.Option("--max-failures", metavar="N|P%", help="Exit with 1 when more sources than this fail.")
]

Staging = Annotated[
    Path | None,
    typer.Option(
        parser=local_argument,
        metavar="DIR",
        help="Where finished encodes wait; left out: in DEST, for a store's in this machine's cache.",
    ),
]


class Executor(Enum):
    LOCAL = "local"
    RAY = "ray"


def build(
    source: Annotated[
        str, typer.Argument(help="A folder of videos, or a listing (`path label` a line); a path or a URL.")
    ],
    dest: Annotated[
        str | None, typer.Argument(help="Where the shards go, a path or a URL; left out: shards/NAME.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe's name, or a TOML file.")] = None,
    settings: Settings = None,
    annotations: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|FOLDER", help="What the folder's videos show: a data set's own files, or a listing."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="train, val or test (train1 for UCF101, HMDB51): chooses among the annotations."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="FILE|INDEX", help="Take the classes and their numbers from another data set."),
    ] = None,
    exclude: Annotated[
        str | None, typer.Option(metavar="FILE", help="Leave out what audit --out marked, or the paths of a text file.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Encode a sample, say what the build would take, write nothing.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Encodes at a time; left out: one a core (on Ray 4 a task).")
    ] = None,
    executor: Annotated[
        Executor, typer.Option(help="Who encodes: this machine, or a Ray cluster (pip install 'vmae\\[ray]').")
    ] = Executor.LOCAL,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The Ray cluster; left out: the one found here, else one is started."),
    ] = None,
    part: Annotated[
        str | None, typer.Option(metavar="I/N", help="Make every N-th shard from the I-th on (from 0); then merge.")
    ] = None,
    max_failures: MaxFailures = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try the sources again that failed.")] = False,
    ffmpeg: Annotated[str | None, typer.Option(help="The ffmpeg to use; left out: the one that was installed.")] = None,
    staging: Staging = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Resize, thin and pack videos into shards. Run again, it goes on where it was stopped."""
    from vmae_data.build import build_shards
    from vmae_data.encode.build_spec import BuildSpec
    from vmae_data.estimate import estimate_build, estimate_lines
    from vmae_data.format import FAILURES, UNLISTED
    from vmae_data.recipes import load_recipe
    from vmae_data.shards.merge import part_failures_name
    from vmae_data.sources.classes import read_classes
    from vmae_data.storage import exists, storage_path, writable

    _refuse_empty(
        {
            "SOURCE": source,
            "DEST": dest,
            "--recipe": recipe,
            "--annotations": annotations,
            "--classes": classes,
            "--exclude": exclude,
            "--address": address,
            "--ffmpeg": ffmpeg,
        }
    )
    spec = load_recipe("vmae_data", recipe, BuildSpec, settings or ())
    allowed = allowed_failures(max_failures)
    if split is not None and not re.fullmatch(r"(train|val|test)[1-9]?", split):
        raise MisuseError(f"--split {split}: expected train, val or test, with a number for UCF101 and HMDB51 (train1)")
    if address is not None and executor is Executor.LOCAL:
        raise MisuseError(f"--address {address}: is for --executor ray only")
    folder = writable(storage_path(dest)) if dest is not None else Path("shards") / _name_of(storage_path(source))
    known = read_classes(classes) if classes is not None else ()
    chosen = _part(part)
    if dry_run:
        estimate = estimate_build(
            source,
            spec,
            workers=workers or num_cores(),
            annotations=annotations,
            split=split,
            classes=known,
            exclude=exclude,
            ffmpeg=ffmpeg,
            style=progress_style(quiet, as_json),
            on_start=lambda: _show_remarks(spec, quiet),
        )
        print_json(estimate) if as_json else print("\n".join(estimate_lines(estimate)))
        return
    report = build_shards(
        source,
        folder,
        spec,
        workers=workers,
        executor=executor.value,
        address=address,
        part=chosen,
        annotations=annotations,
        split=split,
        classes=known,
        exclude=exclude,
        ffmpeg=ffmpeg,
        retry_failed=retry_failed,
        staging=staging,
        style=progress_style(quiet, as_json),
        on_start=lambda: _show_remarks(spec, quiet),
    )
    if not quiet and not as_json:
        if chosen is not None:
            print(f"part {part} is done; when all are: vmae-shard merge {folder}")
        if report.unlisted:
            videos = counted(report.unlisted, "video")
            print(f"{videos} of {source} not in {annotations}; named in {folder / UNLISTED}")
        if report.unmatched:
            print(f"{counted(report.unmatched, 'path')} of {exclude} no source of {source}")
    listed = part_failures_name(chosen) if chosen else FAILURES
    if not exists(folder / listed):  # of a part that is run again after the merge
        listed = FAILURES
    tell_build(report, folder, folder / listed, quiet=quiet, as_json=as_json)
    judge_failures(report, max_failures, allowed)


def merge(
    dest: Annotated[str, typer.Argument(help="Where the parts were built.")],
    max_failures: MaxFailures = None,
    staging: Staging = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the index of a build that was made in parts (`build --part I/N`)."""
    from vmae_data.format import FAILURES
    from vmae_data.shards.merge import merge_parts
    from vmae_data.storage import exists, storage_path

    allowed = allowed_failures(max_failures)
    _refuse_empty({"DEST": dest})
    folder = storage_path(dest)
    if exists(folder):
        raise MisuseError(f"{dest}: is a file; name the folder that the parts were built in")
    report = merge_parts(folder, staging)
    tell_build(report, folder, folder / FAILURES, quiet=quiet, as_json=as_json)
    judge_failures(report, max_failures, allowed)


def _refuse_empty(given: Mapping[str, str | None]) -> None:
    """An empty argument is what an unset variable of a shell leaves, not one that was left out."""
    for name, value in given.items():
        if value == "":
            raise MisuseError(f"{name} is empty; give a value, or leave it out")


def _part(text: str | None) -> Part | None:
    from vmae_data.shards.plan import Part

    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if found is None or not int(found[1]) < int(found[2]):
        raise MisuseError(f"--part {text}: expected I/N with I from 0 to N-1, such as 0/3")
    return Part(int(found[1]), int(found[2]))


def _show_remarks(spec: BuildSpec, quiet: bool) -> None:
    for remark in () if quiet else spec.remarks():
        print(f"remark: {remark}", file=sys.stderr)


def _name_of(source: StoragePath) -> str:
    """A folder's name as it is, a listing's without its ending."""
    from vmae_data.storage import exists

    resolved = source.resolve()
    return (source.stem if exists(source) else resolved.name) or "root"
