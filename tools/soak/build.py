"""Hundreds of damaged sources, and a build that is killed, starved and hung, each with its expected outcome.

    python -m tools.soak.build [--kills 100] [--seed 0] [--only listings|damages|faults] [--write-docs]

Prints a line for each case and a summary. Exit status 1 if any outcome differs. --write-docs writes docs/damages.md
from the tables and builds nothing.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tools.soak.damages.check import check_all, make_all
from tools.soak.damages.clips import Bench
from tools.soak.damages.records import Damage
from tools.soak.damages.table import DAMAGES, docs_page
from tools.soak.faults.fault_run import Result, Workspace, command, left_over, run
from tools.soak.faults.table import FAULTS
from tools.soak.listings import check_listings
from vmae_data.demo.videos import write_demo

_DOCS = Path(__file__).parents[2] / "docs" / "damages.md"
# The largest real frame of the table, 8K, needs about 600 MB with x264. A false header must not cost more.
_MOST_MEMORY = 2 << 30
_MOST_SECONDS = 900


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("listings", "damages", "faults"))
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args()
    if options.write_docs:
        _DOCS.write_text(docs_page())
        print(_DOCS)
        return
    differing = 0
    with tempfile.TemporaryDirectory() as name:
        parts = {
            "listings": lambda: check_listings(Path(name) / "listings"),
            "damages": lambda: damages(Path(name)),
            "faults": lambda: faults(Path(name), options.kills, options.seed),
        }
        for part, results in parts.items():
            if options.only not in (None, part):
                continue
            total = wrong = 0
            for result in results():
                total += 1
                wrong += not result.as_expected
                show(result)
            print(f"{part}: {total - wrong} of {total} as expected", flush=True)
            differing += wrong
    print("soak: all as expected" if not differing else f"soak: {differing} DIFFER")
    sys.exit(1 if differing else 0)


def show(result: Result) -> None:
    mark = "ok    " if result.as_expected else "DIFFER"
    found = result.found if len(result.found) < 300 or not result.as_expected else f"{result.found[:300]}…"
    print(
        f"{mark} {result.name}: {found}" + ("" if result.as_expected else f" — expected: {result.expected}"), flush=True
    )


def damages(folder: Path) -> Iterator[Result]:
    """Every damage of the table, in one build for each recipe."""
    for number, recipe in enumerate(dict.fromkeys(damage.recipe for damage in DAMAGES)):
        chosen = [damage for damage in DAMAGES if damage.recipe == recipe]
        print(f"{', '.join(recipe)}: making {len(chosen)} sources …", flush=True)
        make_all(chosen, Bench(folder / "bench"), folder / f"damages-{number}")
        print("building …", flush=True)
        yield from _build_and_check(chosen, folder / f"damages-{number}", folder / f"shards-{number}", recipe)


def _build_and_check(damages: list[Damage], videos: Path, dest: Path, recipe: tuple[str, ...]) -> Iterator[Result]:
    settings = [word for text in recipe for word in ("--set", text)]
    started_at = time.monotonic()
    ended = run([*command(videos, dest, "--set", "samples_per_shard=40"), *settings])
    seconds = time.monotonic() - started_at
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    yield Result("the build ends", f"status {ended.status} {ended.words}", "status 0 ", ended.status == 0)
    if ended.status == 0:
        for finding in check_all(damages, videos, dest):
            expected = "; or ".join(outcome.text() for outcome in finding.damage.expected)
            yield Result(f"{finding.damage.group}: {finding.damage.name}", finding.found, expected, finding.as_expected)
    yield Result("largest process", f"{memory >> 20} MB", f"at most {_MOST_MEMORY >> 20} MB", memory < _MOST_MEMORY)
    yield Result("time", f"{seconds:.0f} s", f"at most {_MOST_SECONDS} s", seconds < _MOST_SECONDS)
    remaining = left_over()
    yield Result("processes left over", str(remaining), "none", not remaining)
    verified = subprocess.run(
        [sys.executable, "-m", "vmae_data.cli", "verify", str(dest)], capture_output=True, text=True, check=False
    )
    yield Result(
        "verify", verified.stdout.strip()[-200:], "all checksums match, every frame decodes", verified.returncode == 0
    )


def faults(folder: Path, kills: int, seed: int) -> Iterator[Result]:
    """A small build of good and broken demo videos, with every fault of the table."""
    videos, undisturbed = folder / "videos", folder / "undisturbed"
    write_demo(videos, num_videos=24, seed=5, broken=True, workers=2)
    started_at = time.monotonic()
    ended = run(command(videos, undisturbed))
    seconds = time.monotonic() - started_at
    yield Result("the undisturbed build", f"status {ended.status}, {seconds:.1f} s", "status 0", ended.status == 0)
    workspace = Workspace(folder, videos, undisturbed, seconds, kills, seed)
    for fault in FAULTS:
        yield from fault.run(workspace)


if __name__ == "__main__":
    main()
