"""Several trainings, one after the other, by the processes of one torchrun: a start of processes takes seconds.

    torchrun … -m tests.train.many_trainings FILE

FILE is a JSON list of `Training`. An error of a training is written to OUT.error.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import msgspec

from vmae_data.errors import ReportedElsewhere, VmaeError
from vmae_data.processes import exit_process
from vmae_data.progress import ProgressStyle
from vmae_data.recipes import load_recipe
from vmae_train.distributed import Distributed, init_distributed
from vmae_train.finetune import FinetuneSpec, finetune
from vmae_train.pretrain import PretrainSpec, pretrain


class Training(msgspec.Struct, frozen=True, kw_only=True):
    data: str
    out: str
    settings: tuple[str, ...]
    finetune: bool = False
    resumes: str | None = None  # a finished run: go on from its last checkpoint but one


def train(training: Training, distributed: Distributed) -> None:
    with distributed.all_or_none():
        if training.resumes is not None and distributed.is_main:
            shutil.copytree(training.resumes, training.out)
            shutil.rmtree(max(Path(training.out).glob("checkpoints/step-*")))
            (Path(training.out) / "evaluation.json").unlink(missing_ok=True)
    where = {"data": [training.data], "out": training.out, "device": "cpu", "distributed": distributed}
    if training.finetune:
        spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, training.settings)
        finetune(spec, validation=training.data, style=ProgressStyle.QUIET, **where)
    else:
        spec = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, training.settings)
        pretrain(spec, style=ProgressStyle.QUIET, **where)


def main() -> None:
    trainings = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=list[Training])
    with init_distributed("cpu") as distributed:
        for training in trainings:
            try:
                train(training, distributed)
            except ReportedElsewhere:
                pass
            except VmaeError as error:
                Path(f"{training.out}.error").write_text(str(error))


if __name__ == "__main__":
    main()
    exit_process(0)
