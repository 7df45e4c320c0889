"""Credentials reach the store and nothing else: no error, log, record, page or file of a command holds them."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builds import SmallBuild, start_command
from tests.s3_server import S3Bucket
from tools.soak.faults.network import Fault, Faults, Kind
from tools.soak.faults.proxy import proxy_thread
from vmae_data.format import INDEX
from vmae_data.storage.store_options import VARIABLE

pytestmark = pytest.mark.processes

BOTH = ("GET", "HEAD", "PUT", "POST")


class Commands:
    """Runs commands in processes of their own, and keeps all that they and their children print in files."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch, self.count = folder, monkeypatch, 0

    def __call__(self, *words: str | Path, status: int = 0, **environment: str) -> None:
        self.count += 1
        out = self.folder / f"printed-{self.count}.txt"
        with self.monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            process = start_command(list(map(str, words)), out)
        process.join(240)
        assert process.exitcode == status, out.read_text()


def _files(folder: Path) -> Iterator[bytes]:
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file():
                yield path.read_bytes()


@pytest.mark.slow
def test_no_secret_is_printed_or_written(
    small_build: SmallBuild, s3_bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = s3_bucket.store()
    for path in small_build.videos.rglob("*.*"):
        store.put(f"videos/{path.relative_to(small_build.videos)}", path)
    wrong, token = f"wrong-{secrets.token_hex(16)}", f"token-{secrets.token_hex(16)}"
    for name in [name for name in os.environ if name.startswith(("AWS_", "VMAE_"))]:
        monkeypatch.delenv(name)
    for name, value in {
        **s3_bucket.environment,
        "VMAE_CACHE": str(tmp_path / "node"),
        "TMPDIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    run, settings = Commands(tmp_path, monkeypatch), small_build.settings
    url, give_up = s3_bucket.url, ("--storage-option", "give_up=2")
    with proxy_thread(s3_bucket.server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        run("build", f"{url}/videos", f"{url}/set", *settings, "--json")
        run("inspect", f"{url}/set", "--html", tmp_path / "page.html")
        run("audit", f"{url}/set", "--html", tmp_path / "audit.html", "--out", tmp_path / "audit.csv")
        run("verify", f"{url}/set")
        run("doctor", f"{url}/set", "--storage-option", f"secret_access_key={s3_bucket.server.secret}")
        run("doctor", "--storage-option", f"proxy_url=http://name:{token}@host:1")
        assert INDEX in {item["path"].rpartition("/")[2] for page in store.list("set") for item in page}
        commands: tuple[tuple[str | Path, ...], ...] = (
            ("build", small_build.videos, f"{url}/new", *settings),
            ("build", f"{url}/videos", tmp_path / "shards", *settings),
            ("verify", f"{url}/set"),
        )
        for words in commands:
            run(*words, status=1, AWS_SECRET_ACCESS_KEY=wrong)
            run(*words, "--debug", status=1, AWS_SESSION_TOKEN=token)
            run(*words, "--debug", "--storage-option", f"secret_access_key={wrong}", status=1)
            for fault in (Fault(kind=Kind.EXPIRED), Fault(kind=Kind.STATUS, status=503)):
                proxy.change(Faults(faults=(fault,), methods=BOTH))
                run(*words, "--debug", *give_up, status=1, AWS_SESSION_TOKEN=token)
                proxy.change(Faults())
        run("doctor", f"{url}/set", "--storage-option", f"session_token={token}", status=1)
        run("verify", f"s3://{wrong}@host/set", status=2)
        run("verify", f"{proxy.url}/set?token={token}", status=2)
    printed = list(tmp_path.glob("printed-*.txt"))
    assert len(printed) == 24 and all(path.stat().st_size for path in printed)
    objects = [bytes(store.get(item["path"]).bytes()) for page in store.list() for item in page]
    written = objects + list(_files(tmp_path))
    assert len(written) > 45
    for secret in (s3_bucket.server.secret, wrong, token, "X-Amz-Signature", VARIABLE):
        assert not [text for text in written if secret.encode() in text], secret
