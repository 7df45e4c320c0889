"""The keys of a build recipe, validated when the record is made."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, NamedTuple

import msgspec
from msgspec.structs import force_setattr

from vmae_data.format import Rational
from vmae_data.recipes import check_bounds
from vmae_data.sources.listing import Columns

__all__ = ["BuildSpec", "Profile", "Thinning"]

Profile = Literal["h264", "mpeg4", "mjpeg", "copy"]


class Thinning(NamedTuple):
    """Which frames a build keeps: every `stride`-th, or `rate` per second (then stride is 0)."""

    stride: int
    rate: Rational | None = None
    phases: int = 1
    longest_seconds: float | None = None

    @property
    def is_plain_stride(self) -> bool:
        """Whether one phase keeps every `stride`-th frame of unsegmented videos: no frame times are needed."""
        return self.rate is None and self.phases == 1 and self.longest_seconds is None


class BuildSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of a build recipe. Together with the sources they decide the content of the shards."""

    short_side: int = 256  # pixels of the shorter side; videos are never scaled up
    stride: int | None = None  # in source frames; 4 if neither `stride` nor `rate` is set
    rate: float | None = None  # kept frames per second, for sources of mixed or variable frame rate
    phases: int = 1  # temporal phases kept of each video, at most `stride`
    longest_seconds: float | None = None  # longer videos are cut into segments of at most this length
    profile: Profile = "h264"  # codec profile
    crf: int = 23  # of h264
    qscale: int = 3  # of mpeg4 and mjpeg
    gop: int = 16  # frames between key frames
    samples_per_shard: int = 500  # 500 make 100 to 300 MB
    seed: int = 0  # of the order of the sources
    keep_truncated: bool = False  # also keep sources that are truncated or damaged
    size_changes: Literal["scale", "refuse"] = "scale"  # of the pictures of a source: to the first one's size
    may_flip: bool = True  # false if mirroring changes the class
    columns: Columns | None = None  # of a listing; None: the known names

    def __post_init__(self) -> None:
        if not 16 <= self.short_side <= 8192 or self.short_side % 2:
            raise ValueError(f"short_side = {self.short_side}: expected an even number, 16 to 8192")
        self._check_time()
        check_bounds(self, crf=(0, 51), qscale=(1, 31), gop=(1, 600), samples_per_shard=(1, 100_000))
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed = {self.seed}: expected 0 or a positive number below 2^63")

    def _check_time(self) -> None:
        if self.stride is not None and self.rate is not None:
            raise ValueError(f"stride = {self.stride}, rate = {self.rate}: set exactly one of the two")
        if self.rate is None and self.stride is None:
            force_setattr(self, "stride", 4)
        if self.stride is not None and not 1 <= self.stride <= 1000:
            raise ValueError(f"stride = {self.stride}: expected 1 to 1000")
        if self.rate is not None and not 0.01 <= self.rate <= 1000:
            raise ValueError(f"rate = {self.rate}: expected 0.01 to 1000 frames per second")
        if self.longest_seconds is not None and not 0.01 <= self.longest_seconds <= 1e9:
            raise ValueError(f"longest_seconds = {self.longest_seconds}: expected seconds, 0.01 or more, such as 10")
        max_phases = self.stride or 16
        if not 1 <= self.phases <= max_phases:
            raise ValueError(f"phases = {self.phases}: expected 1 to {max_phases}, the stride")
        if self.profile == "copy" and self.thinning != Thinning(1):
            raise ValueError(
                'profile = "copy" keeps every frame. Set stride = 1, and remove rate, phases and longest_seconds'
            )

    @property
    def thinning(self) -> Thinning:
        """The keys about time. The rate is exact as the recipe writes it: 6.25 is 25/4."""
        exact = None if self.rate is None else Fraction(repr(self.rate))
        rate = None if exact is None else Rational(exact.numerator, exact.denominator)
        return Thinning(self.stride or 0, rate, self.phases, self.longest_seconds)

    def notes(self) -> list[str]:
        """Notes to print before the build starts."""
        if not 256 <= self.short_side <= 320:
            return [f"short_side = {self.short_side} is outside 256 to 320, the sizes that VideoMAE's recipes expect"]
        return []
