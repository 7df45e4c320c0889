"""An opened video → the spans of time to predict, and the frames of the clips in each. Numbers only, no I/O.

V views of a window, T frames of a clip.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae_data.arguments import check_number
from vmae_data.encode.open_source import OpenedSource
from vmae_data.errors import MisuseError
from vmae_data.format import Rational, series_of
from vmae_data.read.table import SampleView
from vmae_data.rng import Rng
from vmae_train.clips.frame_sampling import ClipSpec, Spacing, view_sampler

__all__ = ["VideoLength", "Window", "WindowSpec", "frame_spec", "frame_windows", "plan_windows", "window_spans"]

MIN_SECONDS, MAX_SECONDS = 0.01, 1e6
MAX_FRAMES = 1 << 20
FRAME_WINDOW, FRAME_STRIDE = 16, 4  # of temporal localisation
ROUNDING = 1e-6  # seconds: less than that is no window of its own


class WindowSpec(NamedTuple):
    """Windows of `seconds`, one each `stride` seconds; or of `frames`, one each `stride` source frames.

    Without a length the whole video is one window.
    """

    seconds: float | None = None
    stride: float | None = None  # default: the length
    frames: int | None = None

    @property
    def is_several(self) -> bool:
        """Whether a video may have more than one window."""
        return self.seconds is not None or self.frames is not None

    @property
    def frame_stride(self) -> int:
        """Source frames from one window of `frames` to the next."""
        assert self.frames is not None
        return int(self.stride or self.frames)

    def record(self) -> dict[str, float | None]:
        """Length and stride, for the record of a journal."""
        return {"window": self.frames or self.seconds, "stride": self.stride}

    def check(self, num_frames: int, named: str = "{} = {}") -> WindowSpec:
        """Raises MisuseError for lengths that can't be used. `num_frames`: of the model's clips.

        `named`: how the caller writes the argument `window` with a value.
        """
        if self.frames is not None:
            if self.frames % num_frames or not num_frames <= self.frames <= MAX_FRAMES:
                raise MisuseError(
                    f"{named.format('window', self.frames)}: the model's clips have {num_frames} frames. "
                    f"Set a multiple of {num_frames}"
                )
            return self
        if self.seconds is None and self.stride is not None:
            raise MisuseError(
                f"{named.format('stride', self.stride)} is the distance of windows. "
                f"Set {named.format('window', 'SECONDS')} too"
            )
        for name, value in (("window", self.seconds), ("stride", self.stride)):
            if value is None:
                continue
            check_number(name, value)
            if not MIN_SECONDS <= value <= MAX_SECONDS:
                text = named.format(name, f"{value:g}")
                raise MisuseError(f"{text}: expected {MIN_SECONDS:g} to {MAX_SECONDS:g} seconds")
        return self


class VideoLength(NamedTuple):
    """The frames of a video that a build keeps with stride 1, and the seconds from the first to the end of the last."""

    frames: int
    seconds: float


class Window(NamedTuple):
    """A span of a video in seconds from its first frame, and its clips."""

    start: float
    end: float
    frames: tuple[int, ...]  # source frames to decode, ascending
    index_VT: NDArray[np.int64]  # positions in `frames`


def frame_spec(window: float | None, stride: float | None) -> WindowSpec:
    """Windows counted in source frames [default: 16, one each 4]. Raises MisuseError unless they are integers."""
    for option, value in (("--window", window), ("--stride", stride)):
        if value is not None and not (1 <= value <= MAX_FRAMES and value == round(value)):
            raise MisuseError(
                f"{option} {value:g}: a layout counts source frames. Set an integer from 1 to {MAX_FRAMES}"
            )
    return WindowSpec(None, int(stride or FRAME_STRIDE), int(window or FRAME_WINDOW))


def window_spans(duration: float, spec: WindowSpec) -> list[tuple[float, float]]:
    """The windows start at multiples of the stride, until one reaches the end. The last one may be shorter."""
    if spec.seconds is None or spec.seconds >= duration:
        return [(0.0, duration)]
    stride, last = spec.stride or spec.seconds, duration - ROUNDING
    spans = [(0.0, spec.seconds)]
    while spans[-1][1] < last and (start := len(spans) * stride) < last:
        spans.append((start, min(start + spec.seconds, duration)))
    return spans


def frame_windows(frames: int, spec: WindowSpec) -> list[tuple[int, int]]:
    """The first frame of each window, and the one after its last. All windows lie in the video.

    A video that is shorter than a window has one, of all its frames.
    """
    assert spec.frames is not None
    starts = range(0, max(1, frames - spec.frames + 1), spec.frame_stride)
    return [(start, min(start + spec.frames, frames)) for start in starts]


def plan_windows(
    video: OpenedSource, clip: ClipSpec, spec: WindowSpec, *, num_frames: int, num_clips: int
) -> list[Window]:
    """The clips of each window are those that an evaluation takes of a segment with the window's frames.

    The whole video is taken as a sample of shards with stride 1, or of the clip's rate. `clip` states one of them.
    """
    kept = video.kept_frames(clip.rate)
    seconds = video.seconds()
    starts = [seconds[frame] for frame in kept]
    if clip.rate is None:
        spacing, rate = Spacing(stride=1), float(video.info.frame_rate)
    else:
        spacing, rate = Spacing(None, Rational(*clip.rate.as_integer_ratio())), clip.rate
    sampler = view_sampler(clip, spacing, num_frames, num_clips)
    windows = []
    for start, end, part in _parts(kept, starts, seconds[-1], spec):
        view = SampleView(0, "", len(part), series_of(part), len(video.times), rate, (len(part),))
        frames = sampler(view, Rng(seed=0, epoch=0, sample=0))
        windows.append(Window(start, end, tuple(part[position] for position in frames.decode), frames.index_VT))
    return windows


def _parts(
    kept: Sequence[int], starts: Sequence[float], duration: float, spec: WindowSpec
) -> Iterator[tuple[float, float, tuple[int, ...]]]:
    """Start, end and frames of each window. `starts`: when each of the `kept` frames is displayed."""
    if spec.frames is not None:
        for first, stop in frame_windows(len(kept), spec):
            yield starts[first], starts[stop] if stop < len(starts) else duration, tuple(kept[first:stop])
        return
    for start, end in window_spans(duration, spec):
        first, stop = bisect_left(starts, start), bisect_left(starts, end)
        # A window between two frames shows the earlier one.
        yield start, end, tuple(kept[first:stop] or kept[max(0, first - 1) : max(1, first)])
