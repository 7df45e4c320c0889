"""The open stores of this process. obstore does not survive a fork: a store is opened in the process that uses it, when first used."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

from vmae_data.errors import MisuseError
from vmae_data.storage.options import VARIABLE, Access, access_of, missing_key_file
from vmae_data.storage.paths import RemotePath

__all__ = ["CLIENTS", "LONGEST_WAIT", "Opened"]

LONGEST_WAIT = 15.0  # seconds between two tries
UPLOAD_TRIES = 8  # of each part
UPLOAD_PATIENCE = 15  # times the silence that ends a read


class Opened(NamedTuple):
    """A store, opened twice: what is read is asked for again by us, who can say why; the parts of an upload
    are sent again by the client, which knows what has come through.
    """

    reader: Any
    writer: Any
    access: Access


class _Clients:
    """The open stores of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: dict[tuple[int, str, str], Opened] = {}

    def get(self, place: RemotePath) -> Opened:
        with self._lock:
            key = _key(place)
            if key not in self._opened:
                self._opened[key] = open_store(place)
            return self._opened[key]

    def forget(self, place: RemotePath) -> None:
        """Open it again next time: its credentials may have been renewed."""
        with self._lock:
            self._opened.pop(_key(place), None)


def _key(place: RemotePath) -> tuple[int, str, str]:
    return os.getpid(), place.root, os.environ.get(VARIABLE, "")


def open_store(place: RemotePath) -> Opened:
    from obstore import exceptions
    from obstore import store as stores

    access = access_of(place.scheme, str(place))
    config: Any = access.config or None

    limit = timedelta(seconds=access.give_up)
    patient = {"init_backoff": timedelta(seconds=0.5), "max_backoff": timedelta(seconds=LONGEST_WAIT)}
    # While a part of an upload is on its way nothing is read, and a link may be slow.
    slow = {**access.client, "read_timeout": UPLOAD_PATIENCE * access.client["read_timeout"]}

    def twice(make: Callable[..., Any], *where: Any, **given: Any) -> Opened:
        reading = {"max_retries": 0, "retry_timeout": limit}
        writing = {"max_retries": UPLOAD_TRIES, "retry_timeout": limit, "backoff": patient}
        return Opened(
            make(*where, **given, client_options=access.client, retry_config=reading),
            make(*where, **given, client_options=slow, retry_config=writing),
            access,
        )

    try:
        if place.scheme == "s3":
            return twice(stores.S3Store, place.container, config=config)
        if place.scheme == "gs":
            return twice(stores.GCSStore, place.container, config=config)
        if place.scheme == "az":
            return twice(stores.AzureStore, place.container, config=config)
        for option in access.config:  # for another place of the same command, perhaps
            if not _is_of_a_cloud(option):
                raise MisuseError(f"--storage-option {option}: not known for any store; see docs/storage.md")
        return twice(stores.HTTPStore.from_url, place.root)
    except (exceptions.BaseError, ValueError, TypeError) as error:
        if place.scheme == "gs" and (missing := missing_key_file(access.config)):
            raise MisuseError(f"{place}: {missing}") from None
        key = re.search(r"[Cc]onfiguration key[^'\"]*['\"]([a-z0-9_.]+)['\"]", str(error))
        what = f"--storage-option {key[1]}: not known for" if key else "options that can't be used for"
        raise MisuseError(f"{what} {place.root}; see docs/storage.md") from None


def _is_of_a_cloud(key: str) -> bool:
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
            return True  # of the value, or of what else it takes
        return True
    return False


CLIENTS = _Clients()
