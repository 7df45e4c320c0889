"""A batch → one fingerprint per clip: two trainings that see the same clips give the same fingerprints.

A global batch compares equal, however it is split into processes and micro-batches.
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
from vmae_train.clips.mask import TokenMask

__all__ = ["ClipFingerprint", "fingerprints"]


class ClipFingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """Key and frames of a clip, and the first digits of sha256 checksums of its tensors.

    `crop` is bit-identical only for micro-batches of equal size: matrix products of other sizes round differently.
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
    batch: Batch, mixture: Mixture, samplers: tuple[Sampler, ...], augment: Augment, mask: TokenMask
) -> list[ClipFingerprint]:
    """The clips of a micro-batch in order, without padding positions."""
    planes = planes_of_views(batch.planes, batch.index_BVT)
    boxes = augment.sample_boxes(planes.size_B2, batch.rng, batch.may_flip_B)
    crops = augment(planes, boxes, augment.sample_policy(batch.rng))
    box = [getattr(boxes, name).tolist() for name in ("top_B", "left_B", "height_B", "width_B", "flip_B")]
    clips = []
    for position, (sample, epoch) in enumerate(zip(batch.request.samples, batch.request.epochs, strict=True)):
        if sample == PADDING:
            continue
        part, row = mixture.locate(sample)
        view = mixture.sets[part].view(row)
        chosen = samplers[part](view, Rng(batch.rng.seed, epoch, mixture.sample_number(sample)))
        kept = expand_series(view.kept)[np.asarray(chosen.decode)[chosen.index_VT[0]]]
        height, width = planes.size_B2[position].tolist()
        clips.append(
            ClipFingerprint(
                key=mixture.key(sample),
                epoch=epoch,
                label=int(batch.label_B[position]),
                weight=float(batch.weight_B[position]),
                frames=tuple(int(n) for n in kept),
                planes=_checksum(
                    planes.y_BTHW[position, :, :height, :width],
                    planes.u_BTHW[position, :, : height // 2, : width // 2],
                    planes.v_BTHW[position, :, : height // 2, : width // 2],
                ),
                box=tuple(float(values[position]) for values in box),
                mask=_checksum(mask.masked_BM[position], mask.predicted_BK[position]),
                crop=_checksum(crops[position]),
            )
        )
    return clips


def _checksum(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        values: Any = tensor.detach().cpu().contiguous().numpy()
        digest.update(values)
    return digest.hexdigest()[:16]
