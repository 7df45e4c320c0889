"""`vmae-shard doctor`: this machine → what works for a build, and what to do about the rest."""

from __future__ import annotations

from typing import Annotated

from vmae_data.console import Debug, Json, StorageOptions, argument, option, print_checks, progress_style


def doctor(
    dest: Annotated[
        str | None,
        argument("DEST", "Check this destination too, a path or a URL. It is not created.", "the working directory"),
    ] = None,
    ffmpeg: Annotated[str | None, option("FILE", "Check this ffmpeg.", "VMAE_FFMPEG, else the installed one")] = None,
    storage: StorageOptions = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check ffmpeg, codecs, packages, disks and storage on this machine, and what a training finds.

    The exit status is 1 if a build can't work.

    Examples:
        vmae-shard doctor
        vmae-shard doctor s3://bucket/shards/k400
    """
    from vmae_data.doctor.doctor import examine
    from vmae_data.progress import announce
    from vmae_data.storage import storage_path

    announce("checking this machine", progress_style(False, as_json))
    print_checks(list(examine(storage_path(dest) if dest else None, ffmpeg)), as_json)
