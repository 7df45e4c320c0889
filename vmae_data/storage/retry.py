"""Repeats a call to a store for a bounded time, and makes one line of the error that stays."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from vmae_data.errors import NO_THREAD, DataError, MisuseError, StoreError, VmaeError
from vmae_data.storage.attempt import Progress, attempt, pause, stopping
from vmae_data.storage.clients import LONGEST_WAIT, Client, client_of, forget_client
from vmae_data.storage.paths import RemotePath
from vmae_data.storage.problems import Problem, Refusal, problem_of, requested_wait, status_of

__all__ = ["retried", "status_of"]

Result = TypeVar("Result")
FIRST_WAIT = 0.2  # seconds
REFUSED_TRIES = 3  # credentials may have been renewed, so they are read again
SILENT_SECONDS = 10.0  # after which retries of a store that answers are reported
REPORT_SECONDS = 60.0  # between two reports on one store: parallel calls meet the same problem
_log = logging.getLogger(__name__)
_reported: dict[str, float] = {}  # root of a store → when


def retried(
    path: RemotePath,
    done: str,
    call: Callable[[Any, Progress], Result],
    *,
    writes: bool = False,
    measured: bool = True,
    give_up: float | None = None,
) -> Result:
    """Repeat `call(store, progress)` until it returns, or until the time limit for a silent store is over.

    `done` completes the error "can't be …". `give_up`: seconds, if fewer than the configured limit. A `measured` call
    reports every chunk, so that an answer that only trickles counts as silence; another one may last until the limit.
    Raises DataError for a refusal, StoreError after the time limit.
    """
    started_at = time.monotonic()
    tries = refused = 0
    while True:
        client = client_of(path)
        limit = client.access.give_up if give_up is None else min(client.access.give_up, give_up)
        try:
            return _attempt(client, call, writes=writes, measured=measured)
        except BaseException as error:
            problem = _problem(error, path, client)
        tries += 1
        refused += problem.refused
        wait = random.uniform(0.5, 1) * min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(tries, 10))  # noqa: S311 - jitter
        spent = time.monotonic() - started_at
        if problem.refused and refused < REFUSED_TRIES:
            forget_client(path)
        elif not problem.transient:
            raise DataError(f"{path}: can't be {done} ({problem.text}). {problem.advice}") from None
        if problem.busy:
            wait = requested_wait(_refusal(client, path).headers) or wait
        if spent + wait > limit:
            raise StoreError(
                f"{path}: can't be {done} ({problem.text}, {tries} tries in {spent:.0f} s{_at(client)}). "
                "Check the store and the network, then run the same command again"
            ) from None
        if (problem.silent or spent + wait > SILENT_SECONDS) and not stopping():
            _report(path, client, problem, limit)
        if pause(wait):
            raise StoreError(f"{path}: can't be {done} ({problem.text}). Stopped during a retry") from None


def _attempt(client: Client, call: Callable[[Any, Progress], Result], *, writes: bool, measured: bool) -> Result:
    if writes:  # nothing tells how much of an upload has arrived; its client bounds the silence
        return attempt(lambda progress: call(client.writer, progress), None)
    access = client.access
    silence = access.client["connect_timeout"] + access.client["read_timeout"]
    period = silence.total_seconds() if measured else access.give_up
    return attempt(lambda progress: call(client.reader, progress), period)


def _problem(error: BaseException, path: RemotePath, client: Client) -> Problem:
    """Classify the error of a call. Raises what no retry changes."""
    # Wrong options can make the client panic, and its panic is no Exception.
    if type(error).__name__ == "PanicException":
        raise MisuseError(
            f"{path}: the client does not accept an option or variable. Check endpoint, keys and tokens"
        ) from None
    of_this_machine = isinstance(error, MemoryError) or str(error) == NO_THREAD
    if isinstance(error, VmaeError) or not isinstance(error, Exception) or of_this_machine:
        raise error
    return problem_of(error, path, lambda: _refusal(client, path))


def _refusal(client: Client, path: RemotePath) -> Refusal:
    """A failed answer once more: a bucket is asked by a signed URL."""
    import obstore

    from vmae_data.storage.web import refusal

    try:
        url = f"{path.root}/{path.path}"
        if not path.is_web:
            url = obstore.sign(client.reader, "GET", path.path, timedelta(minutes=1))
    except Exception:  # a store that signs no URLs
        return Refusal()
    return refusal(url, client.access.client)


def _report(path: RemotePath, client: Client, problem: Problem, limit: float) -> None:
    now = time.monotonic()
    if now - _reported.get(path.root, -REPORT_SECONDS) >= REPORT_SECONDS:
        _reported[path.root] = now
        shown = "".join(c if c.isprintable() else "?" for c in str(path))
        _log.warning("warning: %s: %s%s. Trying again for %.0f s", shown, problem.text, _at(client), limit)


def _at(client: Client) -> str:
    return f" at {client.access.server}" if client.access.server else ""
