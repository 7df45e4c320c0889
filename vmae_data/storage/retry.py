"""A call to a store, again and again for a bounded time, and one line for what stays wrong.

Nothing here lets an obstore error's own text through: it may hold a signed URL.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

from vmae_data.errors import DataError, MisuseError, NotThereError, ReplacedError, StoreError, VmaeError
from vmae_data.storage.clients import CLIENTS, LONGEST_WAIT
from vmae_data.storage.options import Access
from vmae_data.storage.paths import RemotePath

__all__ = ["STOPPING", "Transient", "again", "status_of"]

Answer = TypeVar("Answer")
FIRST_WAIT = 0.2  # seconds
REFUSED_TRIES = 3  # credentials that were renewed meanwhile are read again
_STATUS = re.compile(
    r"\b(?:status(?: code)?:?|HTTP status \w+ error \(|Server returned non-2xx status code:)\s*\(?([1-5]\d\d)\b", re.I
)
_CODE = re.compile(
    r"(?:<Code>|\(code: )([A-Za-z0-9]{1,60})(?:</Code>|\))"
)  # of an answer, or of one object of a bulk delete
_BUSY = (408, 425, 429)


class Transient(Exception):
    """An answer that is not what it should be, and may be the next time."""


class _Trouble(NamedTuple):
    """What went wrong in a call, in words of ours."""

    words: str
    passing: bool  # the next try may do
    refused: bool = False  # by the credentials
    busy: bool = False  # the store asks for patience


STOPPING = threading.Event()
"""Set when the command is to end: threads that wait for a store would hold it up."""


def again(
    place: RemotePath, done: str, call: Callable[[Any], Answer], *, writes: bool = False, give_up: float | None = None
) -> Answer:
    """Call until it gives an answer, or the time for a store that does not answer is over.

    `give_up`: seconds for one that need not answer; at most the time there is anyway.
    """
    started_at = time.monotonic()
    tries = refused = 0
    while True:
        opened = CLIENTS.get(place)
        try:
            return call(opened.writer if writes else opened.reader)
        except BaseException as error:
            # What the client is made with can make it panic, and its panic is no Exception.
            if type(error).__name__ == "PanicException":
                raise MisuseError(
                    f"{place}: an option or variable of its store can't be used; check endpoint, keys and tokens"
                ) from None
            if isinstance(error, VmaeError) or not isinstance(error, Exception):
                raise
            trouble = _trouble_of(error, place)
            tries += 1
            refused += trouble.refused
            wait = random.uniform(0.5, 1) * min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(tries, 10))  # noqa: S311 - jitter
            spent = time.monotonic() - started_at
            if trouble.refused and refused < REFUSED_TRIES:
                CLIENTS.forget(place)
            elif not trouble.passing:
                raise DataError(f"{place}: can't be {done} ({trouble.words}); {_advice(trouble, place)}") from None
            if trouble.busy:
                wait = _wish(opened.reader, place, opened.access) or wait
            limit = opened.access.give_up
            if spent + wait > (limit if give_up is None else min(limit, give_up)):
                raise StoreError(
                    f"{place}: can't be {done} ({trouble.words}, {tries} tries in {spent:.0f} s); "
                    "check the store and the network, then run the same command again"
                ) from None
            if STOPPING.wait(wait):
                raise StoreError(
                    f"{place}: can't be {done} ({trouble.words}); stopped while it was tried again"
                ) from None


_REFUSED = {
    "s3": "check the credentials (environment, AWS_PROFILE, --storage-option), then run the same command again",
    "gs": "check the credentials (GOOGLE_APPLICATION_CREDENTIALS, or --storage-option service_account=FILE), then run the "
    "same command again",
    "az": "check the credentials (AZURE_STORAGE_ACCOUNT_KEY, or --storage-option account_key=…), then run the same command again",
}
_WEB_REFUSED = "check the URL, and whether the server wants a header (--storage-option header.NAME=…)"


def _advice(trouble: _Trouble, place: RemotePath) -> str:
    if trouble.refused:
        return _REFUSED.get(place.scheme, _WEB_REFUSED)
    return "check the URL and the storage options"


def _trouble_of(error: Exception, place: RemotePath) -> _Trouble:
    """Sort an error of obstore by its class and status. Raises what has a class of its own here."""
    from obstore import exceptions

    text = str(error)
    status = status_of(text)
    code = next(iter(_CODE.findall(text)), "")
    named = ", ".join(filter(None, [f"status {status}" if status else "", code]))
    if isinstance(error, Transient):
        return _Trouble(str(error), passing=True)
    if isinstance(error, FileNotFoundError) or status == 404:
        raise NotThereError(f"{place}: is not there{f' ({code})' if code else ''}; check the path") from None
    if isinstance(error, exceptions.NotSupportedError):
        raise DataError(f"{place}: its server gives no part of a file; use one that answers range requests") from None
    if isinstance(error, exceptions.PreconditionError) or "precondition failure" in text.lower():
        raise ReplacedError(f"{place}: was replaced while it was read; open the data set again") from None
    if "169.254." in text or ("metadata" in text.lower() and not status):
        return _Trouble("no credentials found", passing=False, refused=True)
    if status in _BUSY or code in ("SlowDown", "RequestLimitExceeded") or status == 503:
        return _Trouble(named or "busy", passing=True, busy=True)
    if (
        isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError))
        or status in (401, 403)
        or "ExpiredToken" in code
        or code == "AccessDenied"
    ):
        return _Trouble(f"refused: {named or type(error).__name__}", passing=False, refused=True)
    if (status >= 500 and status != 501) or (not status and isinstance(error, exceptions.GenericError)):
        return _Trouble(named or _network_words(text), passing=True)
    return _Trouble(named or type(error).__name__, passing=False)


def status_of(text: str) -> int:
    return next((int(found) for found in _STATUS.findall(text)), 0)


def _network_words(text: str) -> str:
    """What the network did, in one of a few phrases."""
    lower = text.lower()
    for sign, words in (
        ("connection refused", "connection refused"),
        ("connection reset", "connection reset"),
        ("timed out", "no answer in time"),
        ("timedout", "no answer in time"),
        ("dns", "no such host"),
        ("lookup address", "no such host"),
        ("certificate", "its certificate is not valid"),
        ("incompletemessage", "connection cut"),
        ("body", "connection cut"),
        ("connect", "no connection"),
    ):
        if sign in lower:
            return words
    return "no answer that can be read"


def _wish(store: Any, place: RemotePath, access: Access) -> float | None:
    """The seconds that a busy store asks to wait (Retry-After), asked by a request of one byte; None where it doesn't say.

    obstore does not show the headers of a failed answer, so the store is asked once more, by a signed URL.
    """
    # Here, for each process would pay for their import and few stores are ever busy.
    import urllib.error
    import urllib.request

    import obstore

    try:
        url = (
            f"{place.root}/{place.path}"
            if place.is_web
            else obstore.sign(store, "GET", place.path, timedelta(minutes=1))
        )
        headers = {**access.client.get("default_headers", {}), "Range": "bytes=0-0"}
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5):
            return None
    except urllib.error.HTTPError as error:
        given = error.headers.get("Retry-After", "")
        return float(given) if given.isdigit() else None
    except Exception:  # no answer, none that can be read, or a store that signs no URLs
        return None
