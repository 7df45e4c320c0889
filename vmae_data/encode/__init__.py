"""One source video to encoded members: probe, thinning, ffmpeg, and the check of its result."""
