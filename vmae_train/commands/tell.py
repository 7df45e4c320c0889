"""What a command ended with, as it is told: scores, unreadable videos, a dry run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from vmae_data.console import counted, print_json, show_facts

__all__ = ["print_dry_run", "tell", "tell_scores", "tell_unreadable"]


def tell(quiet: bool, as_json: bool, values: dict[str, Any], words: str) -> None:
    from vmae_data.html import printable

    if as_json:
        print_json(values)
    elif not quiet:
        print(printable(words))


def tell_scores(scores: Any, quiet: bool, as_json: bool) -> None:
    import msgspec

    words = [str(scores.headline)]
    if scores.headline.key == "top1":
        words += [f"top-5 {scores.top5:.2f} %"] if scores.top5 is not None else []
        words.append(f"mean of classes {scores.mean_class:.2f} %")
    elif scores.headline.key == "mae":
        words.append(f"RMSE {scores.rmse:.4g}")
    words += [f"{scores.videos} videos", f"{scores.views} views" + (f" ({scores.control})" if scores.control else "")]
    tell(quiet, as_json, msgspec.to_builtins(scores), ", ".join(words))


def tell_unreadable(unreadable: dict[str, str]) -> None:
    from vmae_data.html import printable

    for key, why in unreadable.items():
        print(f"left out, unreadable: {printable(key)}: {printable(why)}", file=sys.stderr)


def print_dry_run(run: Callable[..., object], spec: object, quiet: bool, as_json: bool, **where: Any) -> None:
    """Tell what two steps of a training showed; by the main process."""
    from datetime import timedelta

    from vmae_train.training.dry_run import dry_run_report

    found = dry_run_report(run, spec, **where)
    if not where["world"].is_main:
        return
    if as_json:
        diagnostics = [caution._asdict() for caution in found.diagnostics]
        print_json(
            {**found._asdict(), "total_seconds": found.total_seconds, "disk_mb": found.disk_mb, "cautions": diagnostics}
        )
    elif not quiet:
        waits = found.wait_seconds / found.step_seconds if found.step_seconds else 0.0
        rows = {
            "steps": f"{found.steps} of {counted(found.batch, 'video')}, {counted(found.epochs, 'epoch')}",
            "time": f"{timedelta(seconds=round(found.total_seconds))} (h:mm:ss), from the second step ({found.step_seconds:.4g} s); "
            f"{waits:.0%} of it waiting for data (limits: {found.limits}); evaluation and checkpoints not counted",
            "memory": f"{found.memory_mb:.0f} MB at the peak, of {'this process' if found.device == 'cpu' else found.device}",
            "disk": f"{found.disk_mb:.1f} MB: {counted(found.checkpoints, 'checkpoint')} of {found.checkpoint_mb:.1f} MB, "
            "and one more while it is written",
            "loss": f"{found.loss:.4f}",
        }
        show_facts("dry run: nothing was written", rows.items())
    for caution in found.diagnostics:
        print(f"warning: {caution.text}", file=sys.stderr)
