"""Build shards/example: 16 motion videos, a few hundred kB, the same bytes every time. `make example` runs it."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from tools.data_sets import demo_shards

DEST = Path("shards/example")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    shutil.rmtree(DEST, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        demo_shards(Path(folder), videos=16, seed=7, settings=["samples_per_shard=8"], dest=DEST)
    print(DEST, sum(path.stat().st_size for path in DEST.iterdir()), "bytes")


if __name__ == "__main__":
    main()
