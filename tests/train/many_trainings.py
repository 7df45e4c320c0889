"""Several trainings, one after the other, by the processes of one torchrun: a start of processes takes seconds.

    torchrun … -m tests.train.many_trainings FILE

FILE is a JSON list of trainings: kind, data, out and settings.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vmae_data.progress import ProgressStyle
from vmae_data.recipes import load_recipe
from vmae_train.distributed import init_distributed
from vmae_train.finetune import FinetuneSpec, finetune
from vmae_train.pretrain import PretrainSpec, pretrain


def main() -> None:
    quiet = ProgressStyle.QUIET
    with init_distributed("cpu") as distributed:
        for run in json.loads(Path(sys.argv[1]).read_text()):
            where = {
                "data": [run["data"]],
                "out": run["out"],
                "device": "cpu",
                "style": quiet,
                "distributed": distributed,
            }
            if run["kind"] == "pretrain":
                pretrain(load_recipe("vmae_train", "pretrain/demo", PretrainSpec, run["settings"]), **where)
            else:
                spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, run["settings"])
                finetune(spec, validation=run["data"], **where)


if __name__ == "__main__":
    main()
