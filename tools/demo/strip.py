"""A pretraining run and some videos → the README's picture: rows of original, masked and reconstructed frames.

    python -m tools.demo.strip RUN SHARDS [--out docs/images/reconstruction.png] [--videos 1] [--seed 6] [--ratio 0.75]

The frames are those of `vmae-train reconstruct`. The file is at most 200 kB: it has 256 colours of its own.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vmae_data.read.dataset import Shards
from vmae_train.inference.reconstruct import Reconstruction, load_pretrained, mask_specs, reconstruct_shards
from vmae_train.runs.metadata import run_clip

MOST_BYTES = 200_000
FRAMES = 8  # shown of each video, evenly spaced
WIDTH = 1280  # of the picture
GAP, LABEL = 4, 120
PAPER, INK = (255, 255, 255), (29, 35, 43)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a pretraining run or a checkpoint of one")
    parser.add_argument("shards")
    parser.add_argument("--out", type=Path, default=Path("docs/images/reconstruction.png"))
    parser.add_argument("--videos", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="chooses the videos and the masks [default: 0]")
    parser.add_argument("--ratio", type=float, help="share of masked cubes [default: the run's]")
    options = parser.parse_args()
    model = load_pretrained(options.run, "cpu")
    clips, _ = reconstruct_shards(
        model,
        Shards.open(options.shards),
        clip=run_clip(options.run),
        videos=options.videos,
        masks=mask_specs(options.run, model.geometry, [options.ratio] if options.ratio is not None else []),
        seed=options.seed,
    )
    data = png(strip(clips))
    if len(data) > MOST_BYTES:
        raise SystemExit(f"{len(data)} bytes, more than {MOST_BYTES}. Show fewer videos with --videos")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(data)
    print(f"{options.out}: {len(data)} bytes; {'; '.join(clip.title for clip in clips)}")


def strip(clips: list[Reconstruction]) -> Image.Image:
    """Three labelled rows for each clip, FRAMES tiles wide."""
    tile = (WIDTH - LABEL) // FRAMES - GAP
    row = tile + GAP
    image = Image.new("RGB", (WIDTH, len(clips) * (3 * row + 2 * GAP) - 3 * GAP), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    for number, clip in enumerate(clips):
        top = number * (3 * row + 2 * GAP)
        masked = clip.masks[0]
        rows = (
            ("original", clip.original_THWC),
            ("masked", masked.masked_THWC),
            ("reconstruction", masked.predicted_THWC),
        )
        for line, (label, frames_THWC) in enumerate(rows):
            y = top + line * row
            draw.text((0, y + tile // 2), label, INK, font, anchor="lm")
            shown = np.linspace(0, len(frames_THWC) - 1, FRAMES).round().astype(int)
            for column, frame in enumerate(shown):
                smooth = Image.Resampling.LANCZOS if frames_THWC.shape[1] > tile else Image.Resampling.NEAREST
                picture = Image.fromarray(frames_THWC[frame]).resize((tile, tile), smooth)
                image.paste(picture, (LABEL + column * (tile + GAP), y))
    return image


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.quantize(256).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
