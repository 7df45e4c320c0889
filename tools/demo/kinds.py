"""Frames of both kinds of demo videos → docs/pictures/demo-kinds.png. Needs scikit-image.

    python -m tools.demo.kinds docs/pictures/demo-kinds.png

The photographs in the picture are CC0, as `vmae_data/demo/pictures.py` says.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image

from vmae_data.demo.rich import rich_frames, rich_of
from vmae_data.demo.scenes import Kind, Scene, frames_of, plan_scenes
from vmae_data.storage import commit_bytes

CLASSES = ("pan-down", "rotate-clockwise", "zoom-in")  # a row of each kind
FRAMES, STEP = 7, 4  # pictures in a row, frames from one to the next
SIZE, GAP = (80, 60), 3
COLOURS = 96  # a palette: the file has less than 100 kB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = [
        _row(scene._replace(width=SIZE[0], height=SIZE[1]))
        for kind in Kind
        for name in CLASSES
        for scene in plan_scenes(8, options.seed, kind=kind)
        if scene.class_name == name
    ]
    width = FRAMES * (SIZE[0] + GAP) - GAP
    picture = Image.new("RGB", (width, len(rows) * (SIZE[1] + GAP) + GAP), "white")  # a gap more between the kinds
    for number, row in enumerate(rows):
        top = number * (SIZE[1] + GAP) + (2 * GAP if number >= len(CLASSES) else 0)
        for column, frame in enumerate(row):
            picture.paste(frame, (column * (SIZE[0] + GAP), top))
    file = io.BytesIO()
    picture.quantize(COLOURS).save(file, "PNG", optimize=True)
    commit_bytes(options.dest, file.getvalue())
    print(options.dest, len(file.getvalue()), "bytes")


def _row(scene: Scene) -> list[Image.Image]:
    frames = [*(rich_frames(scene, rich_of(scene)) if scene.kind is Kind.RICH else frames_of(scene))]
    return [Image.fromarray(np.asarray(frame)) for frame in frames[: FRAMES * STEP : STEP]]


if __name__ == "__main__":
    main()
