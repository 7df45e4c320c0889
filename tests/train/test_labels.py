from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command import call_command
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.progress import ProgressStyle


@pytest.mark.parametrize(("label", "kind"), [(["a", "b"], "several classes a video"), ([0.5], "values for regression")])
def test_finetuning_refuses_validation_labels_of_another_kind(
    demo_videos: Path, demo_shards: Path, demo_spec: BuildSpec, tmp_path: Path, label: object, kind: str
) -> None:
    name = next(str(p.relative_to(demo_videos)) for p in sorted(demo_videos.glob("*/*.mp4")) if "broken" not in p.name)
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": name, "label": label}))
    build_shards(
        str(demo_videos),
        tmp_path / "odd",
        demo_spec,
        workers=1,
        annotations=str(tmp_path / "list.jsonl"),
        style=ProgressStyle.QUIET,
    )
    arguments: list[str | Path] = [
        "vmae_train",
        "finetune",
        "--recipe",
        "finetune/demo",
        "--out",
        tmp_path / "run",
        "--quiet",
    ]
    arguments += ["--set", "train.batch=1", "--set", "train.micro_batch=1"]
    for data, val in ((tmp_path / "odd", demo_shards), (demo_shards, tmp_path / "odd")):
        done = call_command(*arguments, "--data", data, "--val", val, status=2)
        assert f"{val}: its labels are " in done.stderr and kind in done.stderr
        assert done.stderr.count("\n") == 1
