"""Azure Blob Storage on loopback: Azurite, if the npm package `azurite` is installed."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import functools
import hashlib
import hmac
import secrets
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from obstore.store import AzureStore

from tests.loopback import STARTS, free_ports, never_started, running

_VERSION = "2021-08-06"


class AzureServer(NamedTuple):
    """A running server and its one account."""

    endpoint: str  # with the account, as in emulators: http://127.0.0.1:PORT/ACCOUNT
    account: str
    key: str

    def container(self, name: str) -> AzureContainer:
        """Make a container, 3 to 63 of [a-z0-9-]."""
        self._request("PUT", f"/{name}", "restype:container")
        return AzureContainer(self, name)

    def _request(self, method: str, path: str, query: str) -> None:
        # The storage client can't make containers, so this one request is signed here.
        date = email.utils.formatdate(usegmt=True)
        text = f"{method}{12 * chr(10)}x-ms-date:{date}\nx-ms-version:{_VERSION}\n"
        text += f"/{self.account}/{self.account}{path}\n{query}"
        signature = base64.b64encode(hmac.digest(base64.b64decode(self.key), text.encode(), hashlib.sha256)).decode()
        fields = {"x-ms-date": date, "x-ms-version": _VERSION, "Content-Type": ""}
        fields["Authorization"] = f"SharedKey {self.account}:{signature}"
        address = f"{self.endpoint}{path}?{query.replace(':', '=')}"
        urllib.request.urlopen(urllib.request.Request(address, b"", fields, method=method), timeout=10).close()


class AzureContainer(NamedTuple):
    """The container of one test."""

    server: AzureServer
    name: str

    @property
    def url(self) -> str:
        return f"az://{self.name}"

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of obstore's AzureStore besides the container."""
        return {
            "account_name": self.server.account,
            "account_key": self.server.key,
            "endpoint": self.server.endpoint,
            "client_options": {"allow_http": True},
        }

    @property
    def environment(self) -> dict[str, str]:
        """The same as environment variables for a command."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": self.server.account,
            "AZURE_STORAGE_ACCOUNT_KEY": self.server.key,
            "AZURE_STORAGE_ENDPOINT": self.server.endpoint,
            "AZURE_ALLOW_HTTP": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def store(self, **more: Any) -> AzureStore:
        return AzureStore(self.name, **{**self.options, **more})


def azurite() -> str | None:
    """The program, if it is installed."""
    return shutil.which("azurite-blob")


@contextlib.contextmanager
def azure_server(program: str, folder: Path) -> Iterator[AzureServer]:
    """A server that keeps its data in `folder`. It ends when this process ends for any reason."""
    account, key = "testaccount", base64.b64encode(secrets.token_bytes(64)).decode()
    for _ in range(STARTS):
        (port,) = free_ports(1)
        command = [program, "--silent", "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder)]
        command += ["--skipApiVersionCheck", "--disableTelemetry"]
        server = AzureServer(f"http://127.0.0.1:{port}/{account}", account, key)
        answers = functools.partial(_make_container, server)
        with running(command, folder, answers, {"AZURITE_ACCOUNTS": f"{account}:{key}"}) as in_time:
            if in_time:
                yield server
                return
    raise never_started("Azurite", folder)


def _make_container(server: AzureServer) -> None:
    server.container("ready")
