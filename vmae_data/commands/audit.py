"""`vmae-shard audit`: shards → samples to exclude, as counts, a table or a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vmae_data.commands.options import Workers
from vmae_data.console import (
    Debug,
    Json,
    Quiet,
    StorageOptions,
    argument,
    flag,
    num_cores,
    option,
    path_option,
    print_json,
    progress_style,
)


def audit(
    dest: Annotated[
        list[str], argument("DEST", "Audit these shards, paths or URLs. Of two copies, the later one is excluded.")
    ],
    out: Annotated[
        Path | None, path_option("FILE", "Write a row per sample (.parquet or .csv) for `build --exclude`.", "no file")
    ] = None,
    html: Annotated[
        Path | None, path_option("FILE", "Write an HTML page that plays copies and the worst samples.", "no file")
    ] = None,
    mirrored: Annotated[bool, flag("--mirrored", "Also find mirrored copies.", "unmirrored copies only")] = False,
    settings: Annotated[
        list[str] | None,
        option("KEY=VALUE", "Change one threshold. Repeatable.", "the thresholds in docs/audit.md", "--set"),
    ] = None,
    workers: Workers = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Find static, black, frozen and blurred videos, duplicates, and leaks between data sets.

    Examples:
        vmae-shard audit shards/train --html audit.html
        vmae-shard audit shards/val shards/train --out audit.parquet
    """
    from vmae_data.audit.audit import AuditSpec, audit_shards, check_table_name, print_counts, write_table
    from vmae_data.audit.audit_page import write_audit_page
    from vmae_data.progress import announce
    from vmae_data.recipes import load_recipe
    from vmae_data.storage import storage_path, writable_paths

    flip = ["duplicates.mirrored=true"] if mirrored else []
    spec = load_recipe("vmae_data", None, AuditSpec, [*(settings or ()), *flip])
    paths = writable_paths({"--out": out, "--html": html})
    table, page = paths.get("--out"), paths.get("--html")
    if table is not None:
        check_table_name(table)
    folders = [str(storage_path(one)) for one in dest]
    style = progress_style(quiet, as_json)
    announce("auditing the shards", style)
    report = audit_shards(folders, spec, workers=workers or num_cores(), style=style)
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
