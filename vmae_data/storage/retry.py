"""Repeats a call to a store for a bounded time, and makes one line of the error that stays.

The text of an obstore error never passes through: it may contain a signed URL.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

from vmae_data.errors import DataError, MisuseError, NotFoundError, ReplacedError, StoreError, VmaeError
from vmae_data.storage.clients import LONGEST_WAIT, client_of, forget_client
from vmae_data.storage.options import Access
from vmae_data.storage.paths import RemotePath

__all__ = ["STOPPING", "Transient", "retried", "status_of"]

Result = TypeVar("Result")
FIRST_WAIT = 0.2  # seconds
REFUSED_TRIES = 3  # credentials may have been renewed, so they are read again
_STATUS = re.compile(
    r"\b(?:status(?: code)?:?|HTTP status \w+ error \(|Server returned non-2xx status code:)\s*\(?([1-5]\d\d)\b", re.I
)
# Of an answer, or of one object of a bulk delete.
_CODE = re.compile(r"(?:<Code>|\(code: )([A-Za-z0-9]{1,60})(?:</Code>|\))")
_BUSY = (408, 425, 429)


class Transient(Exception):
    """A wrong answer that may be right the next time."""


class _Problem(NamedTuple):
    """Why a call failed."""

    text: str
    transient: bool  # the next try may succeed
    refused: bool = False  # the credentials are not accepted
    busy: bool = False  # the store asks for fewer calls


STOPPING = threading.Event()
"""Set when the command is to end: threads that wait for a store would delay it."""


def retried(
    path: RemotePath, done: str, call: Callable[[Any], Result], *, writes: bool = False, give_up: float | None = None
) -> Result:
    """Repeat `call(store)` until it returns, or until the time limit for a silent store is over.

    `done` completes the error "can't be …". `give_up`: seconds, if fewer than the configured limit.
    Raises DataError for a refusal, StoreError after the time limit.
    """
    started_at = time.monotonic()
    tries = refused = 0
    while True:
        client = client_of(path)
        try:
            return call(client.writer if writes else client.reader)
        except BaseException as error:
            # Wrong options can make the client panic, and its panic is no Exception.
            if type(error).__name__ == "PanicException":
                raise MisuseError(
                    f"{path}: the client does not accept an option or variable. Check endpoint, keys and tokens"
                ) from None
            if isinstance(error, VmaeError) or not isinstance(error, Exception):
                raise
            problem = _problem_of(error, path)
            tries += 1
            refused += problem.refused
            wait = random.uniform(0.5, 1) * min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(tries, 10))  # noqa: S311 - jitter
            spent = time.monotonic() - started_at
            if problem.refused and refused < REFUSED_TRIES:
                forget_client(path)
            elif not problem.transient:
                advice = _advice(path) if problem.refused else "Check the URL and the storage options"
                raise DataError(f"{path}: can't be {done} ({problem.text}). {advice}") from None
            if problem.busy:
                wait = _requested_wait(client.reader, path, client.access) or wait
            limit = client.access.give_up
            if spent + wait > (limit if give_up is None else min(limit, give_up)):
                raise StoreError(
                    f"{path}: can't be {done} ({problem.text}, {tries} tries in {spent:.0f} s). "
                    "Check the store and the network, then run the same command again"
                ) from None
            if STOPPING.wait(wait):
                raise StoreError(f"{path}: can't be {done} ({problem.text}). Stopped during a retry") from None


def _problem_of(error: Exception, path: RemotePath) -> _Problem:
    """Classify an error of obstore by its type and status. Raises those that have a class of their own here."""
    from obstore import exceptions

    text = str(error)
    status = status_of(text)
    code = next(iter(_CODE.findall(text)), "")
    name = ", ".join(filter(None, [f"status {status}" if status else "", code]))
    if isinstance(error, Transient):
        return _Problem(str(error), transient=True)
    if isinstance(error, FileNotFoundError) or status == 404:
        raise NotFoundError(f"{path}: does not exist{f' ({code})' if code else ''}. Check the path") from None
    if isinstance(error, exceptions.NotSupportedError):
        raise DataError(f"{path}: its server does not support range requests. Use one that does") from None
    if isinstance(error, exceptions.PreconditionError) or "precondition failure" in text.lower():
        raise ReplacedError(f"{path}: was replaced while it was read. Open the data set again") from None
    if "169.254." in text or ("metadata" in text.lower() and not status):
        return _Problem("no credentials found", transient=False, refused=True)
    if status in _BUSY or code in ("SlowDown", "RequestLimitExceeded") or status == 503:
        return _Problem(name or "busy", transient=True, busy=True)
    if (
        isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError))
        or status in (401, 403)
        or "ExpiredToken" in code
        or code == "AccessDenied"
    ):
        return _Problem(f"refused: {name or type(error).__name__}", transient=False, refused=True)
    if (status >= 500 and status != 501) or (not status and isinstance(error, exceptions.GenericError)):
        return _Problem(name or _network_problem(text), transient=True)
    return _Problem(name or type(error).__name__, transient=False)


def status_of(text: str) -> int:
    """The HTTP status in an error's text, or 0."""
    match = _STATUS.search(text)
    return int(match[1]) if match else 0


def _network_problem(text: str) -> str:
    lower = text.lower()
    for sign, problem in (
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
            return problem
    return "no readable answer"


def _advice(path: RemotePath) -> str:
    """What to do if the store refuses the credentials."""
    sources = {
        "s3": "environment, AWS_PROFILE, --storage-option",
        "gs": "GOOGLE_APPLICATION_CREDENTIALS, or --storage-option service_account=FILE",
        "az": "AZURE_STORAGE_ACCOUNT_KEY, or --storage-option account_key=…",
    }
    if path.scheme not in sources:
        return "Check the URL, and whether the server needs a header (--storage-option header.NAME=…)"
    return f"Check the credentials ({sources[path.scheme]}), then run the same command again"


def _requested_wait(store: Any, path: RemotePath, access: Access) -> float | None:
    """The seconds that a busy store asks to wait (Retry-After); None if it names none.

    obstore hides the headers of a failed answer. So one byte is requested by a signed URL.
    """
    # Here: the imports would slow down every process, and few stores are ever busy.
    import urllib.error
    import urllib.request

    import obstore

    try:
        url = f"{path.root}/{path.path}" if path.is_web else obstore.sign(store, "GET", path.path, timedelta(minutes=1))
        headers = {**access.client.get("default_headers", {}), "Range": "bytes=0-0"}
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5):
            return None
    except urllib.error.HTTPError as error:
        seconds = error.headers.get("Retry-After", "")
        return float(seconds) if seconds.isdigit() else None
    except Exception:  # no answer, none that can be read, or a store that signs no URLs
        return None
