"""`vmae-shard verify`, `inspect` and `audit`: what is in finished shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vmae_data.console import (
    Debug,
    Json,
    Quiet,
    StorageOptions,
    counted,
    local_argument,
    num_cores,
    print_json,
    progress_style,
)
from vmae_data.errors import VmaeError

__all__ = ["audit", "inspect", "verify"]


def verify(
    dest: Annotated[str, typer.Argument(help="A folder of shards, a path or a URL.")],
    workers: Annotated[int | None, typer.Option(min=1, help="Shards checked at a time; left out: one a core.")] = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check every sum, key and count, and decode every video. Exit with 1 where anything is wrong."""
    from vmae_data.storage import storage_path
    from vmae_data.verify.verify import verify_shards

    report = verify_shards(storage_path(dest), workers=workers or num_cores(), style=progress_style(quiet, as_json))
    for problem in report.problems:
        if as_json:
            print_json({"file": problem.file, "problem": problem.message})
        else:
            print(f"{problem.file}: {problem.message}")
    if report.problems:
        raise VmaeError(
            f"{dest}: {counted(len(report.problems), 'problem')} in {counted(report.shards, 'shard')};"
            " remove shard-NNNNNN.json of what they name and build again"
        )
    if not quiet and not as_json:
        print(
            f"{dest}: {counted(report.samples, 'sample')} in {counted(report.shards, 'shard')}, all sums right, every frame decodes"
        )


def inspect(
    dest: Annotated[str, typer.Argument(help="A folder of shards, a path or a URL.")],
    html: Annotated[
        Path | None, typer.Option(parser=local_argument, metavar="FILE", help="Write a page with pictures.")
    ] = None,
    storage: StorageOptions = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a data set holds."""
    from vmae_data.inspect.inspect import inspect_shards, print_table
    from vmae_data.inspect.inspect_page import write_inspect_page
    from vmae_data.storage import writable_path

    page = None if html is None else writable_path(html, "--html")
    facts = inspect_shards(dest)
    if page is not None:
        write_inspect_page(facts, page)
        print(html)
    elif as_json:
        print_json(facts.as_dict())
    else:
        print_table(facts)


def audit(
    dest: Annotated[
        list[str],
        typer.Argument(help="Folders of shards, paths or URLs. Of two copies the one named later is excluded."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(parser=local_argument, metavar="FILE", help="Write a row a sample: FILE.parquet or FILE.csv."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(parser=local_argument, metavar="FILE", help="Write a page that shows the worst.")
    ] = None,
    mirrored: Annotated[bool, typer.Option("--mirrored", help="Find mirrored copies too.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a threshold; docs/audit.md lists them."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Left out: one a core.")] = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Find static, black, frozen, blurred videos, duplicates, and leaks between data sets."""
    from vmae_data.audit.audit import AuditSpec, audit_shards, check_table_name, print_counts, write_table
    from vmae_data.audit.audit_page import write_audit_page
    from vmae_data.recipes import load_recipe
    from vmae_data.storage import storage_path, writable_paths

    flip = ["duplicates.mirrored=true"] if mirrored else []
    spec = load_recipe("vmae_data", None, AuditSpec, [*(settings or ()), *flip])
    places = writable_paths({"--out": out, "--html": html})
    table, page = places.get("--out"), places.get("--html")
    if table is not None:
        check_table_name(table)
    folders = [str(storage_path(one)) for one in dest]
    report = audit_shards(folders, spec, workers=workers or num_cores(), style=progress_style(quiet, as_json))
    if table is not None:
        write_table(report.rows, table)
    if page is not None:
        write_audit_page(report, spec, page)
    if as_json:
        for row in report.rows:
            print_json(row._asdict())
    elif not quiet:
        print_counts(report)
        for path in (out, html):
            if path is not None:
                print(path)
