"""Credentials reach the store and nothing else: no error, log, record, page or file of a command holds them."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.command import command_line
from tests.s3_server import S3Bucket
from tools.soak.faults.network import Fault, Faults, Kind
from tools.soak.faults.proxy import proxy_thread
from vmae_data.format import INDEX
from vmae_data.storage.options import VARIABLE

SETTINGS = ["--recipe", "demo", "--set", "samples_per_shard=8"]
BOTH = ("GET", "HEAD", "PUT", "POST")


class Commands:
    """Commands as a person runs them; all that they print is kept."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.told: list[str] = []

    def __call__(self, *words: str | Path, status: int = 0, **more: str) -> str:
        done = subprocess.run(
            command_line("vmae_data", *words),
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        self.told += [done.stdout, done.stderr]
        assert done.returncode == status, done.stderr
        return done.stderr


def _files(folder: Path) -> Iterator[bytes]:
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file():
                yield path.read_bytes()


def test_no_secret_is_told_or_written(demo_videos: Path, s3_bucket: S3Bucket, tmp_path: Path) -> None:
    store = s3_bucket.store()
    for path in demo_videos.rglob("*.*"):
        store.put(f"videos/{path.relative_to(demo_videos)}", path)
    wrong, token = f"wrong-{secrets.token_hex(16)}", f"token-{secrets.token_hex(16)}"
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "VMAE_"))}
    own = {"VMAE_CACHE": str(tmp_path / "node"), "TMPDIR": str(tmp_path)}
    run = Commands({**plain, **s3_bucket.environment, **own})
    url, give_up = s3_bucket.url, ("--storage-option", "give_up=2")
    with proxy_thread(s3_bucket.server.endpoint) as proxy:
        run.environment["AWS_ENDPOINT_URL"] = proxy.url
        run("build", f"{url}/videos", f"{url}/set", *SETTINGS, "--json")
        run("inspect", f"{url}/set", "--html", tmp_path / "page.html")
        run("audit", f"{url}/set", "--html", tmp_path / "audit.html", "--out", tmp_path / "audit.csv")
        run("verify", f"{url}/set")
        run("doctor", f"{url}/set", "--storage-option", f"secret_access_key={s3_bucket.server.secret}")
        run("doctor", "--storage-option", f"proxy_url=http://name:{token}@host:1")
        assert INDEX in {item["path"].rpartition("/")[2] for page in store.list("set") for item in page}
        commands: tuple[tuple[str | Path, ...], ...] = (
            ("build", demo_videos, f"{url}/new", *SETTINGS),
            ("build", f"{url}/videos", tmp_path / "shards", *SETTINGS),
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
    objects = [bytes(store.get(item["path"]).bytes()) for page in store.list() for item in page]
    written = [text.encode() for text in run.told] + objects + list(_files(tmp_path))
    assert len(written) > 60
    for secret in (s3_bucket.server.secret, wrong, token, "X-Amz-Signature", VARIABLE):
        assert not [text for text in written if secret.encode() in text], secret
