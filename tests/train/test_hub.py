"""Shards and models behind a server that answers as the Hugging Face Hub does: each file is a redirect to a signed URL elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.command import call_command
from tests.scripted_server import Answer, Request, ScriptedServer, redirect_to, scripted_server
from vmae_data.read.dataset import Shards
from vmae_data.storage import set_options
from vmae_data.storage.store_options import VARIABLE
from vmae_train import load_model
from vmae_train.checkpoints.native import save_model
from vmae_train.models.geometry import ModelSpec
from vmae_train.models.heads import Classifier

FOLDER = "/me/repository/resolve/main/train/"
TOKEN = "header.Authorization=Bearer hunter2"


@contextlib.contextmanager
def _hub(folder: Path) -> Iterator[tuple[ScriptedServer, ScriptedServer]]:
    """The Hub with a private repository, which asks for a token, and the host of its files."""

    def stored(request: Request) -> Answer:
        path, _, query = request.path.partition("?")
        assert query == "X-Signature=abc"
        data = (folder / path.removeprefix("/blobs/")).read_bytes()
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
            if name == request.path or not (folder / name).is_file():
                return Answer(404)
            return redirect_to(f"{files.url}/blobs/{name}?X-Signature=abc")._replace(status=302)

        with scripted_server(resolve) as server:
            yield server, files


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Options of stores, which are in the environment, and copies of remote files."""
    monkeypatch.setenv(VARIABLE, "{}")
    monkeypatch.setenv("VMAE_CACHE", str(tmp_path / "node"))


def test_private_shards_on_the_hub_are_read_by_range_with_a_token_that_only_the_hub_gets(demo_shards: Path) -> None:
    set_options([TOKEN])
    with _hub(demo_shards) as (server, files):
        shards, local = Shards.open(server.url + FOLDER), Shards.open(str(demo_shards))
        for number in (0, len(local) - 1):
            assert shards.sample(number).data == local.sample(number).data
        assert any("range" in request.headers for request in files.requests)
        assert "hunter2" in server.seen() and "hunter2" not in files.seen()


def test_verify_reads_shards_on_the_hub(demo_shards: Path) -> None:
    with _hub(demo_shards) as (server, _):
        done = call_command("vmae_data", "verify", server.url + FOLDER, "--storage-option", TOKEN)
    assert "hunter2" not in done.stdout + done.stderr


def test_a_native_model_is_loaded_from_the_hub(tmp_path: Path) -> None:
    model = Classifier(ModelSpec(size="tiny", depth=1).geometry(), ("a", "b"), seed=0)
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", model)
    set_options([TOKEN])
    with _hub(tmp_path / "model") as (server, files):
        loaded = load_model(server.url + FOLDER.rstrip("/"))
        assert "hunter2" not in files.seen()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
