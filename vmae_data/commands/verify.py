"""`vmae-shard verify`: shards → a list of problems."""

from __future__ import annotations

from vmae_data.amounts import plural
from vmae_data.commands.options import Dest, Workers
from vmae_data.console import Debug, Json, Quiet, StorageOptions, num_cores, print_json, progress_style
from vmae_data.errors import VmaeError


def verify(
    dest: Dest,
    workers: Workers = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check every checksum, key and count of a data set, and decode every video.

    The exit status is 1 if anything is wrong.

    Examples:
        vmae-shard verify shards/k400
        vmae-shard verify s3://bucket/shards/k400 --workers 8
    """
    from vmae_data.progress import announce
    from vmae_data.storage import storage_path
    from vmae_data.verify.verify import verify_shards

    style = progress_style(quiet, as_json)
    announce("verifying the shards", style)
    report = verify_shards(storage_path(dest), workers=workers or num_cores(), style=style)
    for problem in report.problems:
        if as_json:
            print_json({"file": problem.file, "problem": problem.message})
        else:
            print(f"{problem.file}: {problem.message}")
    if as_json:
        print_json({"samples": report.samples, "shards": report.shards, "problems": len(report.problems)})
    if report.problems:
        raise VmaeError(
            f"{dest}: {plural(len(report.problems), 'problem')} in {plural(report.shards, 'shard')}."
            " Remove shard-NNNNNN.json of each damaged shard, then run the same build again"
        )
    if not quiet and not as_json:
        counts = f"{plural(report.samples, 'sample')} in {plural(report.shards, 'shard')}"
        print(f"{dest}: {counts}; all checksums match and every frame decodes")
