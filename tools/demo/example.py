"""Make shards/example again: 16 motion videos, a few hundred kB, the same bytes each time."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from vmae_data.build import build_shards
from vmae_data.demo.videos import write_demo
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.recipes import load_recipe


def main() -> None:
    dest = Path("shards/example")
    shutil.rmtree(dest, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        videos = Path(folder) / "motion"
        write_demo(videos, num_videos=16, seed=7, workers=2)
        build_shards(str(videos), dest, load_recipe("vmae_data", "demo", BuildSpec, ["samples_per_shard=8"]), workers=2)
    print(dest, sum(path.stat().st_size for path in dest.iterdir()), "bytes")


if __name__ == "__main__":
    main()
