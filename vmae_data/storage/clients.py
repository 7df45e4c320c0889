"""The open store clients of this process. obstore does not survive a fork: each process opens its own, when first used."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple

from vmae_data.errors import MisuseError
from vmae_data.storage.paths import RemotePath, StoragePath
from vmae_data.storage.store_options import NO_OTHER_HOST, VARIABLE, Access, access_of, missing_key_file

__all__ = ["LONGEST_WAIT", "Client", "client_of", "forget_client", "open_client", "path_digest"]

LONGEST_WAIT = 15.0  # seconds between two tries
UPLOAD_TRIES = 8  # of each part
UPLOAD_PATIENCE = 15  # times the silence that ends a read: for a request of an upload, sent and answered
# What may change where a store is, and who we are. Other clients of this process keep what they were opened with.
_ENVIRONMENT = re.compile(
    r"(AWS|AZURE|AZURITE|GOOGLE|IDENTITY|MSI)_\w+|(HTTPS?|ALL|NO)_PROXY|REQUESTS_CA_BUNDLE|HOME", re.IGNORECASE
)


class Client(NamedTuple):
    """A store, opened twice: `retry.py` repeats reads, and reports why they fail; obstore repeats the parts of an
    upload, because it knows which have arrived.
    """

    reader: Any
    writer: Any
    access: Access


_Key = tuple[int, str, tuple[tuple[str, str], ...]]
_clients: dict[_Key, Client] = {}
_lock = threading.Lock()


def client_of(path: RemotePath) -> Client:
    """The client for the store of a path, opened when first used."""
    key = _key(path)
    with _lock:
        if key not in _clients:
            _clients[key] = open_client(path)
        return _clients[key]


def forget_client(path: RemotePath) -> None:
    """Open the store again next time: its credentials may have been renewed."""
    with _lock:
        _clients.pop(_key(path), None)


def _key(path: RemotePath) -> _Key:
    settings = ((name, os.environ.get(name, "")) for name in os.environ if _may_matter(name))
    return os.getpid(), path.root, tuple(sorted(settings))


@cache
def _may_matter(variable: str) -> bool:
    return variable == VARIABLE or _ENVIRONMENT.fullmatch(variable) is not None


def path_digest(path: StoragePath) -> str:
    """A name for what this machine keeps of a path. Buckets of one name on two servers, or of two accounts, differ."""
    text = str(path)
    if isinstance(path, RemotePath) and not path.is_web:
        access = access_of(path.scheme, text)
        accounts = [value for key, value in access.config.items() if key.endswith("account_name")]
        server = access.server if path.scheme == "az" else access.endpoint
        text = " ".join([server.rstrip("/").lower(), *accounts, text]) if server else text
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def open_client(path: RemotePath) -> Client:
    """Open the store of a path. Raises MisuseError for options that it does not accept."""
    from obstore import exceptions
    from obstore import store as stores

    from vmae_data.storage.web import WebStore

    access = access_of(path.scheme, str(path))
    config: Any = access.config or None
    client = _only_host(access) if access.has_token else access.client
    limit = timedelta(seconds=access.give_up)
    backoff = {"init_backoff": timedelta(seconds=0.5), "max_backoff": timedelta(seconds=LONGEST_WAIT)}
    # While a part is uploaded nothing is read, so this bounds all of its request. A link may be slow.
    slow = {**client, "read_timeout": UPLOAD_PATIENCE * access.client["read_timeout"]}

    def twice(make: Callable[..., Any], target: str, **options: Any) -> Client:
        reading = {"max_retries": 0, "retry_timeout": limit}
        writing = {"max_retries": UPLOAD_TRIES, "retry_timeout": limit, "backoff": backoff}
        return Client(
            make(target, **options, client_options=client, retry_config=reading),
            make(target, **options, client_options=slow, retry_config=writing),
            access,
        )

    try:
        if path.scheme == "s3":
            return twice(stores.S3Store, path.container, config=config)
        if path.scheme == "gs":
            return twice(stores.GCSStore, path.container, config=config)
        if path.scheme == "az":
            return twice(stores.AzureStore, path.container, config=config)
        for option in access.config:  # options of a bucket may be meant for another path of the same command
            if not _is_bucket_option(option):
                raise MisuseError(f"--storage-option {option}: unknown for every store. See docs/storage.md")
        store = twice(stores.HTTPStore.from_url, path.root)
        return store._replace(reader=WebStore(path.root, client)) if "default_headers" in client else store
    except (exceptions.BaseError, ValueError, TypeError) as error:
        if path.scheme == "gs" and (missing := missing_key_file(access.config)):
            raise MisuseError(f"{path}: {missing}") from None
        key = re.search(r"[Cc]onfiguration key[^'\"]*['\"]([a-z0-9_.]+)['\"]", str(error))
        what = f"--storage-option {key[1]}: unknown for" if key else "options that can't be used for"
        raise MisuseError(f"{what} {path.root}. See docs/storage.md") from None


def _only_host(access: Access) -> dict[str, Any]:
    """Client options that reach the endpoint's host and no other: obstore follows redirects with tokens.

    All ports of the host are reached: obstore 0.12 takes exclusions without a port, and can't refuse redirects.
    Not with a proxy of the user's, and not without an endpoint: Amazon and Microsoft redirect to themselves only.
    """
    import urllib.parse
    import urllib.request

    host = urllib.parse.urlsplit(access.endpoint).hostname
    if host is None or "proxy_url" in access.client or urllib.request.getproxies():
        return access.client
    return {**access.client, "proxy_url": f"http://{NO_OTHER_HOST}", "proxy_excludes": host}


def _is_bucket_option(key: str) -> bool:
    """Whether S3, GCS or Azure has such an option, whatever its value."""
    from obstore import exceptions
    from obstore import store as stores

    makers: tuple[Callable[..., Any], ...] = (stores.S3Store, stores.GCSStore, stores.AzureStore)
    for make in makers:
        try:
            make("any", config={key: ""})
        except exceptions.UnknownConfigurationKeyError:
            continue
        except (exceptions.BaseError, ValueError, TypeError):
            return True  # the value, or another missing option, is refused
        return True
    return False
