"""What a build or a merge ended with, as it is told; and when that is too many failures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmae_data.console import print_json, show_facts, size_words, time_words
from vmae_data.errors import MisuseError, VmaeError

if TYPE_CHECKING:
    from vmae_data.shards.merge import BuildReport
    from vmae_data.storage import StoragePath

__all__ = ["allowed_failures", "judge_failures", "tell_build"]


def tell_build(report: BuildReport, folder: StoragePath, failures: StoragePath, *, quiet: bool, as_json: bool) -> None:
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


def _show_build(folder: StoragePath, report: BuildReport, failures: StoragePath) -> None:
    """The data set and this run as a table; the last line says how many sources failed."""
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


def judge_failures(report: BuildReport, max_failures: str | None, allowed: Any) -> None:
    total = report.made.sources
    if allowed is not None and report.failed > allowed(total):
        raise VmaeError(f"{report.failed} of {total} sources failed, more than --max-failures {max_failures} allows")


def allowed_failures(text: str | None) -> Any:
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
