"""What a batch holds, as sums: two trainings that see the same clips give the same fingerprints.

One record a clip, so that a global batch compares whatever processes and micro-batches it was cut into.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import numpy as np
from torch import Tensor

from vmae_data.format import expand_series
from vmae_data.read.batches import PADDING
from vmae_data.read.mixture import Mixture
from vmae_data.read.stream import Sampler
from vmae_data.rng import Rng
from vmae_train.clips.augment import Augment
from vmae_train.clips.colour import planes_of_views
from vmae_train.clips.loader import Batch
from vmae_train.clips.mask import TubeMask

__all__ = ["ClipFingerprint", "fingerprints"]


class ClipFingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """A clip: which it is in words, the rest as the beginnings of sha256 sums.

    `crop` is equal to the bit only where micro-batches are of equal size: matrix products of other sizes round otherwise.
    """

    key: str
    epoch: int
    label: int
    weight: float
    frames: tuple[int, ...]  # source frames, in the order of the clip
    planes: str
    box: tuple[float, ...]  # top, left, height, width, flip
    mask: str
    crop: str


def fingerprints(
    batch: Batch, mix: Mixture, samplers: tuple[Sampler, ...], augment: Augment, mask: TubeMask
) -> list[ClipFingerprint]:
    """The clips of a micro-batch in order; empty places are left out."""
    planes = planes_of_views(batch.planes, batch.index_BVT)
    boxes = augment.draw(planes.size_B2, batch.rng, batch.may_flip_B)
    crops = augment(planes, boxes, augment.draw_policy(batch.rng))
    box = [getattr(boxes, name).tolist() for name in ("top_B", "left_B", "height_B", "width_B", "flip_B")]
    found = []
    for place, (sample, epoch) in enumerate(zip(batch.request.samples, batch.request.epochs, strict=True)):
        if sample == PADDING:
            continue
        part, row = mix.locate(sample)
        view = mix.sets[part].view(row)
        chosen = samplers[part](view, Rng(batch.rng.seed, epoch, mix.sample_number(sample)))
        kept = expand_series(view.kept)[np.asarray(chosen.decode)[chosen.index_VT[0]]]
        height, width = planes.size_B2[place].tolist()
        found.append(
            ClipFingerprint(
                key=mix.key(sample),
                epoch=epoch,
                label=int(batch.label_B[place]),
                weight=float(batch.weight_B[place]),
                frames=tuple(int(n) for n in kept),
                planes=_sum(
                    planes.y_BTHW[place, :, :height, :width],
                    planes.u_BTHW[place, :, : height // 2, : width // 2],
                    planes.v_BTHW[place, :, : height // 2, : width // 2],
                ),
                box=tuple(float(values[place]) for values in box),
                mask=_sum(mask.masked_BM[place], mask.predicted_BK[place]),
                crop=_sum(crops[place]),
            )
        )
    return found


def _sum(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        values: Any = tensor.detach().cpu().contiguous().numpy()
        digest.update(values)
    return digest.hexdigest()[:16]
