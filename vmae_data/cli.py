"""The command line of vmae-shard. It alone prints and exits; everything heavy is imported when a command runs."""

from __future__ import annotations

import os
import re
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from vmae_data import __version__
from vmae_data.console import (
    Debug,
    Json,
    Quiet,
    Settings,
    new_app,
    print_json,
    progress_style,
    run_app,
    show_checks,
    show_recipes,
)
from vmae_data.errors import MisuseError, VmaeError

if TYPE_CHECKING:
    from vmae_data.merge import BuildReport
    from vmae_data.prepare.plan import BuildSpec, Part

__all__ = ["app", "main"]

MaxFailures = Annotated[
    str | None, typer.Option("--max-failures", metavar="N|P%", help="Exit with 1 when more sources than this fail.")
]


class Executor(Enum):
    LOCAL = "local"
    RAY = "ray"


app = new_app("vmae-shard", "Turn videos into WebDataset shards that a VideoMAE training reads fast.", __version__)


@app.command()
def build(
    source: Annotated[str, typer.Argument(help="A folder of videos, or a listing (`path label` a line).")],
    dest: Annotated[str | None, typer.Argument(help="Where the shards go; left out: shards/NAME.")] = None,
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
        Executor, typer.Option(help="Who encodes: this machine, or a Ray cluster (pip install 'vmae[ray]').")
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
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Resize, thin and pack videos into shards. Run again, it goes on where it was stopped."""
    from vmae_data.build import build_shards
    from vmae_data.format import FAILURES, UNLISTED
    from vmae_data.merge import part_failures_name
    from vmae_data.prepare.classes import read_classes
    from vmae_data.prepare.estimate import estimate_build, estimate_lines
    from vmae_data.prepare.plan import BuildSpec
    from vmae_data.recipes import load_recipe
    from vmae_data.store import local_path

    spec = load_recipe("vmae_data", recipe, BuildSpec, settings or ())
    allowed = _allowed_failures(max_failures)
    if split is not None and not re.fullmatch(r"(train|val|test)[1-9]?", split):
        raise MisuseError(f"--split {split}: expected train, val or test, with a number for UCF101 and HMDB51 (train1)")
    if address is not None and executor is Executor.LOCAL:
        raise MisuseError(f"--address {address}: is for --executor ray only")
    folder = local_path(dest) if dest else Path("shards") / _name_of(local_path(source))
    known = read_classes(classes) if classes else ()
    chosen = _part(part)
    if dry_run:
        estimate = estimate_build(
            source,
            spec,
            workers=workers or _cores(),
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
        style=progress_style(quiet, as_json),
        on_start=lambda: _show_remarks(spec, quiet),
    )
    if not quiet and not as_json:
        if chosen is not None:
            print(f"part {part} is done; when all are: vmae-shard merge {folder}")
        if report.unlisted:
            videos = _counted(report.unlisted, "video")
            print(f"{videos} of {source} not in {annotations}; named in {folder / UNLISTED}")
        if report.unmatched:
            print(f"{_counted(report.unmatched, 'path')} of {exclude} no source of {source}")
    listed = part_failures_name(chosen) if chosen else FAILURES
    if not (folder / listed).exists():  # of a part that is run again after the merge
        listed = FAILURES
    _tell_build(report, folder, folder / listed, quiet=quiet, as_json=as_json)
    _judge_failures(report, max_failures, allowed)


@app.command()
def merge(
    dest: Annotated[str, typer.Argument(help="Where the parts were built.")],
    max_failures: MaxFailures = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the index of a build that was made in parts (`build --part I/N`)."""
    from vmae_data.format import FAILURES
    from vmae_data.merge import merge_parts
    from vmae_data.store import local_path

    allowed = _allowed_failures(max_failures)
    folder = local_path(dest)
    report = merge_parts(folder)
    _tell_build(report, folder, folder / FAILURES, quiet=quiet, as_json=as_json)
    _judge_failures(report, max_failures, allowed)


@app.command()
def verify(
    dest: Annotated[str, typer.Argument(help="A folder of shards.")],
    workers: Annotated[int | None, typer.Option(min=1, help="Shards checked at a time; left out: one a core.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check every sum, key and count, and decode every video. Exit with 1 where anything is wrong."""
    from vmae_data.check.verify import verify_shards
    from vmae_data.store import local_path

    report = verify_shards(local_path(dest), workers=workers or _cores(), style=progress_style(quiet, as_json))
    for problem in report.problems:
        if as_json:
            print_json({"file": problem.file, "problem": problem.found})
        else:
            print(f"{problem.file}: {problem.found}")
    if report.problems:
        raise VmaeError(
            f"{dest}: {_counted(len(report.problems), 'problem')} in {_counted(report.shards, 'shard')};"
            " remove shard-NNNNNN.json of what they name and build again"
        )
    if not quiet and not as_json:
        print(
            f"{dest}: {_counted(report.samples, 'sample')} in {_counted(report.shards, 'shard')}, all sums right, every frame decodes"
        )


@app.command()
def inspect(
    dest: Annotated[str, typer.Argument(help="A folder of shards.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with pictures.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a data set holds."""
    from vmae_data.check.inspect import inspect_shards, print_table, write_page
    from vmae_data.store import local_path

    facts = inspect_shards(local_path(dest))
    if html is not None:
        write_page(facts, html)
        print(html)
    elif as_json:
        print_json(facts.as_dict())
    else:
        print_table(facts)


@app.command()
def audit(
    dest: Annotated[
        list[str], typer.Argument(help="Folders of shards. Of two copies the one named later is excluded.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a row a sample: FILE.parquet or FILE.csv.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page that shows the worst.")] = None,
    mirrored: Annotated[bool, typer.Option("--mirrored", help="Find mirrored copies too.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a threshold; docs/audit.md lists them."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Left out: one a core.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Find static, black, frozen, blurred videos, duplicates, and leaks between data sets."""
    from vmae_data.check.audit import AuditSpec, audit_shards, check_table_name, print_counts, write_table
    from vmae_data.check.audit_page import write_audit_page
    from vmae_data.recipes import load_recipe
    from vmae_data.store import local_path

    flip = ["duplicates.mirrored=true"] if mirrored else []
    spec = load_recipe("vmae_data", None, AuditSpec, [*(settings or ()), *flip])
    if out is not None:
        check_table_name(out)
    folders = [str(local_path(one)) for one in dest]
    audited = audit_shards(folders, spec, workers=workers or _cores(), style=progress_style(quiet, as_json))
    if out is not None:
        write_table(audited.judged.rows, out)
    if html is not None:
        write_audit_page(audited.data_sets, audited.judged, spec, html)
    if as_json:
        for row in audited.judged.rows:
            print_json(row._asdict())
    elif not quiet:
        print_counts(audited.judged)
        for path in (out, html):
            if path is not None:
                print(path)


@app.command()
def demo(
    dest: Annotated[Path, typer.Argument(help="Where the videos go: DEST/CLASS/*.mp4.")],
    videos: Annotated[int, typer.Option(min=1, help="How many videos.")] = 800,
    seed: Annotated[int, typer.Option(min=0, help="Other seeds give other scenes.")] = 0,
    broken: Annotated[bool, typer.Option("--broken", help="Add a few damaged files.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Left out: one a core.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a small labelled motion data set: real mp4 files in which only motion tells the class."""
    from vmae_data.demo import broken_count, write_demo
    from vmae_data.progress import meter

    total = videos + (broken_count() if broken else 0)
    with meter("demo videos", total, progress_style(quiet, as_json)) as shown:
        write_demo(
            dest,
            num_videos=videos,
            seed=seed,
            broken=broken,
            on_done=lambda done: shown.advance(done - shown.done),
            workers=workers or _cores(),
        )
    if as_json:
        print_json({"dest": str(dest), "videos": videos})
    elif not quiet:
        print(f"{dest}: {videos} videos in 8 classes")


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this recipe, resolved.")] = None,
    settings: Settings = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the build recipes, or show one with every value."""
    from vmae_data.prepare.plan import BuildSpec

    show_recipes("vmae_data", name, lambda _name: BuildSpec, settings, as_json)


@app.command()
def doctor(
    dest: Annotated[str | None, typer.Argument(help="Also try this destination; it is not made.")] = None,
    ffmpeg: Annotated[str | None, typer.Option(help="The ffmpeg to try; left out: the one that was installed.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what works here: ffmpeg, codecs, packages, disks. Exit with 1 when a build can't work."""
    from vmae_data.check.doctor import examine
    from vmae_data.store import local_path

    show_checks(list(examine(local_path(dest) if dest else None, ffmpeg)), as_json)


def _show_remarks(spec: BuildSpec, quiet: bool) -> None:
    for remark in () if quiet else spec.remarks():
        print(f"remark: {remark}", file=sys.stderr)


def _tell_build(report: BuildReport, folder: Path, failures: Path, *, quiet: bool, as_json: bool) -> None:
    if as_json:
        print_json({"dest": str(folder), **_build_facts(report)})
    elif not quiet:
        _show_build(folder, report, failures)


def _build_facts(report: BuildReport) -> dict[str, Any]:
    return {
        "samples": report.made.samples,
        "shards": report.made.shards,
        "bytes": report.made.bytes,
        "source_bytes": report.index.source_bytes if report.index else None,
        "failures": report.reasons,
        "unlisted": report.unlisted,
        "left_out": report.left_out,
        "unmatched": report.unmatched,
        "encoded": report.encoded,
        "read_bytes": report.read_bytes,
        "seconds": round(report.seconds, 3),
    }


def _show_build(folder: Path, report: BuildReport, failures: Path) -> None:
    """The data set and this run as a table; the last line says how many sources failed."""
    from vmae_data.console import show_facts, size_words, time_words

    made, index = report.made, report.index
    classes = f" in {len(index.classes)} classes" if index and index.classes else ""
    whole = index.source_bytes if index else None
    rows = [("samples", f"{made.samples}{classes}"), ("shards", f"{made.shards}, {size_words(made.bytes)}")]
    if whole:
        rows.append(("sources", f"{size_words(whole)}; the shards are {100 * made.bytes / whole:.3g} % of it"))
    rows += [(f"failed: {reason}", str(count)) for reason, count in report.reasons.items()]
    rows.append(("time", time_words(report.seconds)))
    if report.encoded:
        per_second = 1 / max(report.seconds, 1e-9)
        rows.append(("videos", f"{report.encoded} in this run, {report.encoded * per_second:.1f}/s"))
        rows.append(("read", f"{report.read_bytes * per_second / 1e6:.1f} MB/s of sources"))
    else:
        rows.append(("videos", "all were done before this run"))
    show_facts(str(folder), rows)
    failed = f"{report.failed} failed, listed in {failures}" if report.failed else "none failed"
    left_out = f", {report.left_out} left out" if report.left_out else ""
    print(f"{folder}: {made.sources - report.failed} of {made.sources} videos; {failed}{left_out}")


def _judge_failures(report: BuildReport, max_failures: str | None, allowed: Any) -> None:
    total = report.made.sources
    if allowed is not None and report.failed > allowed(total):
        raise VmaeError(f"{report.failed} of {total} sources failed, more than --max-failures {max_failures} allows")


def _part(text: str | None) -> Part | None:
    from vmae_data.prepare.plan import Part

    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if found is None or not int(found[1]) < int(found[2]):
        raise MisuseError(f"--part {text}: expected I/N with I from 0 to N-1, such as 0/3")
    return Part(int(found[1]), int(found[2]))


def _allowed_failures(text: str | None) -> Any:
    if text is None:
        return None
    number = text.removesuffix("%")
    try:
        value = float(number)
        if not value >= 0:
            raise ValueError
    except ValueError:
        raise MisuseError(f"--max-failures {text}: expected a number, such as 10, or a share, such as 1%") from None
    return (lambda total: total * value / 100) if text.endswith("%") else (lambda total: value)


def _name_of(source: Path) -> str:
    """A folder's name as it is, a listing's without its ending."""
    return source.resolve().name if source.is_dir() else source.stem


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def main() -> NoReturn:
    run_app(app, "vmae-shard")


if __name__ == "__main__":
    main()
