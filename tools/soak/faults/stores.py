"""A store that answers slowly or sends its readers elsewhere."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.listed_bucket import OPTIONS, listed_bucket
from tests.scripted_server import FACTS, Answer, Request, redirect_to, scripted_server
from tools.soak.faults.fault_run import Result, Workspace, command, finished, run, start
from vmae_data.names import key_of

__all__ = ["folder_markers", "redirects", "server_numbers", "slow_answers"]

SECRET = "hunter2"
SECONDS = 10


def slow_answers(workspace: Workspace) -> Iterator[Result]:
    """Two bytes a second: of the index, the table, the shards; then SIGTERM, or nothing until the time limit."""
    for slow in ("index.json", "samples.arrow", ".tar"):
        for is_stopped in (True, False):
            with scripted_server(lambda request, slow=slow: _file(workspace.undisturbed, request, slow)) as server:
                limits = ["give_up=4", "read_timeout=1", "connect_timeout=1"] if not is_stopped else []
                process = start(_verify(server.url, *limits), VMAE_CACHE=str(workspace.dest("cache")))
                while process.poll() is None and not any(slow in r.path and r.method == "GET" for r in server.requests):
                    time.sleep(0.05)
                started_at = time.monotonic()
                if is_stopped:
                    process.send_signal(signal.SIGTERM)
                _, stderr = process.communicate(timeout=600)
            seconds, lines = time.monotonic() - started_at, stderr.strip().splitlines()
            words = "stopped" if is_stopped else "no answer"
            right = process.returncode == (143 if is_stopped else 1) and words in lines[-1] and seconds < 6 * SECONDS
            expected = f"status {143 if is_stopped else 1}, “{words}”, within seconds"
            found = expected if right else f"status {process.returncode} after {seconds:.0f} s: {stderr[-300:]}"
            yield Result(f"{slow} trickles{', SIGTERM' if is_stopped else ''}", found, expected, right)


def redirects(workspace: Workspace) -> Iterator[Result]:
    """Each kind of redirect to another port, of a web server with a header. The data set is there, without the header."""
    for status in (301, 302, 303, 307, 308):
        with scripted_server(lambda request: _file(workspace.undisturbed, request)) as other:
            where = other.url
            with scripted_server(
                lambda request, status=status, where=where: redirect_to(where + request.path)._replace(status=status)
            ) as server:
                words = _verify(server.url, f"header.X-Api-Key={SECRET}", f"header.Authorization={SECRET}")
                ended = run(words, VMAE_CACHE=str(workspace.dest("cache")))
                right = ended.status == 0 and SECRET in server.seen() and SECRET not in other.seen()
        expected = "status 0, the other server got no header"
        found = expected if right else f"{ended}, header at the other server: {SECRET in other.seen()}"
        yield Result(f"redirect {status} to another server", found, expected, right)


# What a server may state of a file of 3 bytes.
_NUMBERS = (
    {"Content-Length": "9" * 30},
    {"Content-Length": str(1 << 62)},
    {"Content-Length": "-5"},
    {"Content-Range": "bytes 0-9999999999999999999/99999999999999999999"},
    {"Content-Range": "bytes 5-1/3"},
    {"Retry-After": "9" * 5000},
    {"Retry-After": "-1"},
)


def server_numbers(workspace: Workspace) -> Iterator[Result]:
    """Each number without sense, in the answers for each kind of file."""
    for file in ("index.json", "samples.arrow", ".tar"):
        for stated in _NUMBERS:
            with scripted_server(
                lambda request, file=file, stated=stated: _stating(workspace, request, file, stated)
            ) as server:
                limits = ("give_up=4", "read_timeout=1", "connect_timeout=1")
                started_at = time.monotonic()
                ended = run(_verify(server.url, *limits), VMAE_CACHE=str(workspace.dest("cache")))
            seconds = time.monotonic() - started_at
            one_line = len(ended.words.strip().splitlines()) == 1 and "Traceback" not in ended.words
            # A range that nobody asked for, or a wait with a success, is ignored.
            right = seconds < 6 * SECONDS and (ended.status == 0 or (ended.status == 1 and one_line))
            name, value = next(iter(stated.items()))
            expected = "status 1 and one line, or intact, within seconds"
            found = (
                f"status {ended.status}"
                if right
                else f"status {ended.status} after {seconds:.0f} s: {ended.words[-300:]}"
            )
            yield Result(f"{file}: {name} {value[:12]}", found, expected, right)


def _stating(workspace: Workspace, request: Request, file: str, stated: dict[str, str]) -> Answer:
    answer = _file(workspace.undisturbed, request)
    if file not in request.path:
        return answer
    status = 503 if "Retry-After" in stated else 206 if "Content-Range" in stated else answer.status
    return Answer(status, answer.body[:3], {**answer.headers, **stated})


# Objects without bytes, by which programs state that there is a folder: below a data set, and below a folder of videos.
_MARKERS: dict[str, tuple[str, ...]] = {
    "consoles: folder/": ("set/", "set/shards/", "videos/", "videos/new/"),
    "consoles, nested": ("set/a/", "set/a/b/", "set/a/b/c/", "videos/a/b/", "videos/new/c/"),
    "consoles, nested, without those above": ("set/a/b/c/d/", "videos/a/b/c/"),
    "Hadoop: folder_$folder$": ("set_$folder$", "set/shards_$folder$", "videos_$folder$", "videos/new_$folder$"),
    "Hadoop, nested": ("set/a_$folder$", "set/a/b_$folder$", "videos/new/c_$folder$"),
    "both": ("set/a/", "set/a_$folder$", "videos/new/", "videos/new_$folder$"),
    "a folder without a slash": ("set/a", "set/a/", "videos/new", "videos/new/"),
}


def folder_markers(workspace: Workspace) -> Iterator[Result]:
    """`verify` and `build` see what the server was given, without its markers. An object with bytes is no marker."""
    shards = {f"set/{path.name}": path.read_bytes() for path in workspace.undisturbed.iterdir()}
    good = sorted(workspace.videos.glob("*/scene-*.mp4"))[:3]
    videos = {f"videos/{path.parent.name}/{path.name}": path.read_bytes() for path in good}
    keys = {key_of(name.removeprefix("videos/").encode()) for name in videos}
    for form, names in _MARKERS.items():
        dest = workspace.dest("markers")
        with listed_bucket(shards | videos | dict.fromkeys(names, b""), "application/x-directory") as server:
            options = (*OPTIONS, f"endpoint={server.url}")
            cache = str(workspace.dest("cache"))
            verified = run(_verify("s3://bucket/set", *options), VMAE_CACHE=cache)
            words = [word for option in options for word in ("--storage-option", option)]
            build = [word if word != "VIDEOS" else "s3://bucket/videos" for word in command(Path("VIDEOS"), dest)]
            ended = run([*build, *words], VMAE_CACHE=cache)
        right = verified.status == ended.status == 0 and finished(dest) == keys
        expected = f"verify finds nothing, {len(keys)} sources are built"
        found = expected if right else f"verify: {verified}; build: {ended}, {finished(dest)}"
        yield Result(f"markers of {form}", found, expected, right)
    for name in ("set/other", "set/other_$folder$"):
        with listed_bucket(shards | {name: b"x"}) as server:
            ended = run(_verify("s3://bucket/set", *OPTIONS, f"endpoint={server.url}"))
        right, expected = ended.status == 1 and "1 problem in" in ended.words, "verify finds 1 problem"
        yield Result(f"an object with bytes, {name}", expected if right else str(ended), expected, right)


def _verify(url: str, *options: str) -> list[str]:
    words = [word for option in options for word in ("--storage-option", option)]
    return [sys.executable, "-m", "vmae_data.cli", "verify", url, "--quiet", *words]


def _file(folder: Path, request: Request, slow: str = "\0") -> Answer:
    path = folder / request.path.lstrip("/")
    if not path.is_file():
        return Answer(404)
    data, status, facts = path.read_bytes(), 200, dict(FACTS)
    if "range" in request.headers:
        first, last = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
        facts["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
        data, status = data[first : last + 1], 206
    return Answer(status, data, facts, seconds_a_byte=0.5 if slow in path.name else 0.0)
