"""Shards behind a server that answers as the Hugging Face Hub does: each file is a redirect to a signed URL elsewhere."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import call_command
from tests.scripted_server import Answer, Request, ScriptedServer, redirect_to, scripted_server
from vmae_data.read.dataset import Shards
from vmae_data.storage import set_options

FOLDER = "/datasets/me/shards/resolve/main/train/"


@pytest.fixture
def hub(demo_shards: Path) -> Iterator[tuple[ScriptedServer, ScriptedServer]]:
    """The Hub, and the host of its files; a private repository asks for a token."""

    def stored(request: Request) -> Answer:
        path, _, query = request.path.partition("?")
        assert query == "X-Signature=abc"
        data = (demo_shards / path.removeprefix("/blobs/")).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Last-Modified": "Tue, 01 Dec 2020 10:00:00 GMT"}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if part is None:
            return Answer(body=data, headers=headers)
        start, stop = int(part[1]), min(len(data), int(part[2] or len(data)) + 1)
        return Answer(206, data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

    with scripted_server(stored) as files:

        def resolve(request: Request) -> Answer:
            name = request.path.removeprefix(FOLDER)
            if request.headers.get("authorization") != "Bearer hunter2":
                return Answer(401)
            if name == request.path or not (demo_shards / name).is_file():
                return Answer(404)
            return redirect_to(f"{files.url}/blobs/{name}?X-Signature=abc")._replace(status=302)

        with scripted_server(resolve) as server:
            yield server, files


def test_private_shards_on_the_hub_are_read_by_range_with_a_token_that_only_the_hub_gets(
    hub: tuple[ScriptedServer, ScriptedServer], demo_shards: Path
) -> None:
    server, files = hub
    set_options(["header.Authorization=Bearer hunter2"])
    shards, local = Shards.open(server.url + FOLDER), Shards.open(str(demo_shards))
    for number in (0, len(local) - 1):
        assert shards.sample(number).data == local.sample(number).data
    assert any("range" in request.headers for request in files.requests)
    assert "hunter2" in server.seen() and "hunter2" not in files.seen()


def test_verify_reads_shards_on_the_hub(hub: tuple[ScriptedServer, ScriptedServer]) -> None:
    done = call_command(
        "vmae_data", "verify", hub[0].url + FOLDER, "--storage-option", "header.Authorization=Bearer hunter2"
    )
    assert "hunter2" not in done.stdout + done.stderr
