"""The batches of a pretraining, as fingerprints: what its processes would see, without training.

    torchrun --nproc-per-node 4 -m tools.batches --recipe pretrain/demo --data shards/demo-train --out batches.jsonl [--first 0] [--end 10]

A line a step: the clips of the global batch in order. The same for any number of processes and workers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from vmae_data.recipes import load_recipe
from vmae_train.clips.augment import Augment
from vmae_train.clips.fingerprint import ClipFingerprint, fingerprints
from vmae_train.clips.mask import draw_mask
from vmae_train.pretrain import PretrainSpec, grid_of
from vmae_train.training.start import settle
from vmae_train.training.world import World, choose_device, open_world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--data", action="append", required=True, metavar="URL[:WEIGHT]")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--end", type=int, help="the step before which to end; left out: the recipe's last")
    given = parser.parse_args()
    spec = load_recipe("vmae_train", given.recipe, PretrainSpec, given.set)
    with open_world("cpu") as world:
        by_step = own_clips(spec, given.data, given.first, given.end, world)
        # A global batch is the share of the first process, then of the second, …
        everybody = world.gather_record(by_step, list[list[ClipFingerprint]])
    if world.is_main:
        steps = [[clip for clips in shares for clip in clips] for shares in zip(*everybody, strict=True)]
        given.out.write_bytes(b"".join(msgspec.json.encode(clips) + b"\n" for clips in steps))


def own_clips(
    spec: PretrainSpec, data: list[str], start: int, stop: int | None, world: World
) -> list[list[ClipFingerprint]]:
    """What this process sees of each step."""
    settled = settle(spec, data, world)
    if stop is not None:
        schedule = msgspec.structs.replace(settled.schedule, steps=stop)
        settled = settled._replace(schedule=schedule)
    where = choose_device("cpu", threads=spec.train.threads)
    augment, geometry = Augment(settled.augment), settled.geometry
    by_step: list[list[ClipFingerprint]] = [[] for _ in range(start, settled.steps)]
    with settled.loader(start, where) as loader:
        for batch in loader:
            mask = draw_mask(spec.mask, batch.draws, grid_of(geometry))
            found = fingerprints(batch, settled.mix, settled.samplers, augment, mask)
            by_step[batch.request.step - start] += found
    return by_step


if __name__ == "__main__":
    main()
