"""`vmae-train report`: a run → one HTML page."""

from __future__ import annotations

from typing import Annotated

from vmae_data.console import Debug, Json, Quiet, StorageOptions, argument, flag, option, progress_style
from vmae_train.console import need_torch, print_result


def report(
    run: Annotated[str, argument("RUN", "Read a pretraining or finetuning run, a path or a URL.")],
    out: Annotated[str, option("FILE|URL", "Write the page to this .html file.")],
    against: Annotated[
        list[str] | None, option("RUN", "Compare with another run of the same kind. Repeatable.", "no comparison")
    ] = None,
    no_pictures: Annotated[
        bool, flag("--no-pictures", "Leave out frames and reconstructions, which take longest.", "with pictures")
    ] = False,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write one HTML page about a run, or about several: data, curves, reconstructions, scores.

    The other runs are those of `--against`.

    Examples:
        vmae-train report runs/k400 --out k400.html
        vmae-train report runs/finetune --against runs/scratch --out compare.html
        vmae-train report runs/tube --against runs/frame --out masks.html
    """
    style = progress_style(quiet, as_json)
    need_torch(style)
    import msgspec

    from vmae_data.progress import announce
    from vmae_train.reports.run_page import write_report

    announce("drawing the page", style)
    runs = write_report(run, out, against=tuple(against or ()), pictures=not no_pictures, style=style)
    starts = [{"run": one.name, **msgspec.to_builtins(start)} for one in runs for start in one.starts]
    print_result(quiet, as_json, {"out": out, "starts": starts}, out)
