"""A pretraining recipe and its shards → fingerprints of the batches that its processes would see. Nothing is trained.

    torchrun --nproc-per-node 4 -m tools.soak.batches \\
        --recipe pretrain/demo --data shards/demo-train --out batches.jsonl [--first 0] [--end 10]

One line a step: the clips of the global batch in order. The lines are equal for any number of processes and workers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from vmae_data.processes import exit_process
from vmae_data.recipes import load_recipe
from vmae_train.clips.augment import Augment
from vmae_train.clips.fingerprint import ClipFingerprint, fingerprints
from vmae_train.clips.mask import batch_mask
from vmae_train.distributed import Distributed, choose_device, init_distributed
from vmae_train.pretrain import PretrainSpec, grid_of
from vmae_train.training.setup import set_up_training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--data", action="append", required=True, metavar="URL[:WEIGHT]")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--end", type=int, help="end before this step [default: the recipe's last step]")
    options = parser.parse_args()
    spec = load_recipe("vmae_train", options.recipe, PretrainSpec, options.set)
    with init_distributed("cpu") as distributed:
        by_step = own_clips(spec, options.data, options.first, options.end, distributed)
        # A global batch is the share of rank 0, then of rank 1, …
        shares_of_ranks = distributed.all_gather(by_step, list[list[ClipFingerprint]])
    if distributed.is_main:
        steps = [[clip for clips in shares for clip in clips] for shares in zip(*shares_of_ranks, strict=True)]
        options.out.write_bytes(b"".join(msgspec.json.encode(clips) + b"\n" for clips in steps))


def own_clips(
    spec: PretrainSpec, data: list[str], start: int, stop: int | None, distributed: Distributed
) -> list[list[ClipFingerprint]]:
    """The fingerprints of this process's share of each step."""
    setup = set_up_training(spec, data, distributed)
    if stop is not None:
        schedule = msgspec.structs.replace(setup.schedule, steps=stop)
        setup = setup._replace(schedule=schedule)
    where = choose_device("cpu", threads=spec.train.threads)
    augment, geometry = Augment(setup.augment), setup.geometry
    by_step: list[list[ClipFingerprint]] = [[] for _ in range(start, setup.steps)]
    with setup.loader(start, where) as loader:
        for batch in loader:
            boxes = augment.sample_boxes(batch.planes.size_B2, batch.rng, batch.may_flip_B)
            mask = batch_mask(spec.mask, batch.rng, grid_of(geometry), batch, boxes)
            found = fingerprints(batch, setup.mixture, setup.samplers, augment, mask)
            by_step[batch.request.step - start] += found
    return by_step


if __name__ == "__main__":
    main()
    exit_process(0)
