"""`vmae-shard inspect`: shards → a summary as a table, JSON or a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vmae_data.commands.options import Dest
from vmae_data.console import Debug, Json, Quiet, StorageOptions, path_option, print_json, progress_style


def inspect(
    dest: Dest,
    html: Annotated[
        Path | None, path_option("FILE", "Write an HTML page with videos and histograms.", "print a table")
    ] = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Summarise a data set: videos, classes, sizes, frame rates, failures.

    Examples:
        vmae-shard inspect shards/k400
        vmae-shard inspect shards/k400 --html k400.html
    """
    from vmae_data.inspect.inspect import inspect_shards, print_table
    from vmae_data.inspect.inspect_page import write_inspect_page
    from vmae_data.progress import announce
    from vmae_data.storage import writable_path

    page = None if html is None else writable_path(html, "--html")
    announce("reading the data set", progress_style(quiet, as_json))
    facts = inspect_shards(dest)
    if page is not None:
        write_inspect_page(facts, page)
        if not quiet:
            print(html)
    elif as_json:
        print_json(facts.as_dict())
    elif not quiet:
        print_table(facts)
