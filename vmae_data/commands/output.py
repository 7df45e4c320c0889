"""The result of a build or a merge: a table or JSON, and an error if too many sources failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vmae_data.amounts import format_bytes, format_seconds, plural
from vmae_data.console import print_rows
from vmae_data.errors import VmaeError

if TYPE_CHECKING:
    from vmae_data.shards.merge import BuildReport
    from vmae_data.storage import StoragePath

__all__ = ["build_json", "check_failures", "print_build"]


def build_json(report: BuildReport, folder: StoragePath) -> dict[str, Any]:
    """A build's result for --json."""
    return {
        "dest": str(folder),
        "samples": report.samples,
        "shards": report.shards,
        "bytes": report.bytes,
        "source_bytes": report.index.source_bytes if report.index else None,
        "failures": report.failures,
        "unlisted": report.unlisted,
        "left_out": report.excluded,
        "unmatched": report.unmatched,
        "appended": report.appended,
        "changed": list(report.changed),
        "removed": list(report.removed),
        "encoded": report.encoded,
        "read_bytes": report.read_bytes,
        "seconds": round(report.seconds, 3),
    }


def print_build(report: BuildReport, folder: StoragePath, failures: StoragePath) -> None:
    """Print the data set and this run; the last line counts the failed sources, which the file `failures` lists."""
    index = report.index
    classes = f" in {len(index.classes)} classes" if index and index.classes else ""
    rows = [("samples", f"{report.samples}{classes}"), ("shards", f"{report.shards}, {format_bytes(report.bytes)}")]
    if index and index.source_bytes:
        percent = 100 * report.bytes / index.source_bytes
        rows.append(("sources", f"{format_bytes(index.source_bytes)}; the shards have {percent:.3g} % of that"))
    rows += [(f"failed: {reason}", str(count)) for reason, count in report.failures.items()]
    rows.append(("time", format_seconds(report.seconds)))
    if report.appended:
        rows.append(("appended", plural(report.appended, "video")))
    if report.encoded:
        per_second = 1 / max(report.seconds, 1e-9)
        rows.append(("videos", f"{report.encoded} in this run, {report.encoded * per_second:.1f}/s"))
        rows.append(("read", f"{report.read_bytes * per_second / 1e6:.1f} MB/s of sources"))
    else:
        rows.append(("videos", "none in this run; all were done before"))
    print_rows(str(folder), rows)
    failed = f"{report.failed} failed, listed in {failures}" if report.failed else "none failed"
    excluded = f", {report.excluded} excluded" if report.excluded else ""
    print(f"{folder}: {report.sources - report.failed} of {report.sources} videos; {failed}{excluded}")


def check_failures(report: BuildReport, max_failures: str | None, limit: Callable[[int], float] | None) -> None:
    """Raises VmaeError if more sources failed than --max-failures allows."""
    total = report.sources
    if limit is not None and report.failed > limit(total):
        raise VmaeError(f"{report.failed} of {total} sources failed, more than --max-failures {max_failures}")
