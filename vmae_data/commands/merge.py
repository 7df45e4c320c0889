"""`vmae-shard merge`: shards that were built in parts → one data set."""

from __future__ import annotations

from typing import Annotated

from vmae_data.commands.options import MaxFailures, Staging, failure_limit
from vmae_data.commands.output import build_json, check_failures, print_build
from vmae_data.console import Debug, Json, Quiet, StorageOptions, argument, print_json, progress_style
from vmae_data.errors import MisuseError, resumable


def merge(
    dest: Annotated[str, argument("DEST", "Merge the parts in this folder, a path or a URL.")],
    max_failures: MaxFailures = None,
    staging: Staging = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the index of shards that were built in parts (`build --part I/N`).

    Examples:
        vmae-shard build videos shards/k400 --recipe k400 --part 0/2
        vmae-shard build videos shards/k400 --recipe k400 --part 1/2
        vmae-shard merge shards/k400
    """
    from vmae_data.format import FAILURES
    from vmae_data.progress import announce
    from vmae_data.shards.merge import merge_parts
    from vmae_data.storage import exists, storage_path

    limit = failure_limit(max_failures)
    folder = storage_path(dest)
    if exists(folder):
        raise MisuseError(f"{dest}: is a file. Name the folder of the parts")
    announce("merging the parts", progress_style(quiet, as_json))
    with resumable(lambda: f"The shards in {folder} are kept"):
        report = merge_parts(folder, staging)
    if as_json:
        print_json(build_json(report, folder))
    elif not quiet:
        print_build(report, folder, folder / FAILURES)
    check_failures(report, max_failures, limit)
