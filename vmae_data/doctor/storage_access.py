"""Credentials and a URL → what works: the storage client, and listing, writing and reading at the URL."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import metadata

from vmae_data.console import CheckResult, CheckState
from vmae_data.errors import MisuseError, NotFoundError, VmaeError
from vmae_data.storage import (
    RemotePath,
    create_bytes,
    credential_names,
    list_names,
    listable,
    read_range,
    remove,
    set_options,
    shown_options,
    writer_name,
)

__all__ = ["failed_check", "storage_checks", "url_checks"]

GIVE_UP_SECONDS = 20  # a person waits for the answer
TRIAL = b"vmae-shard doctor"


def storage_checks() -> Iterator[CheckResult]:
    """The storage client, and the names of the credentials that it will use."""
    try:
        version = metadata.version("obstore")
    except metadata.PackageNotFoundError:
        yield CheckResult("storage", "missing", "obstore is not installed", "python -m pip install obstore")
        return
    yield CheckResult("storage", "ok", f"obstore {version}: paths, s3://, gs://, az://, http://, https://")
    found = [f"{scheme}: {', '.join(names)}" for scheme, names in credential_names().items() if names]
    options = ", ".join(f"{key}={value}" for key, value in shown_options().items())
    if options:
        found.append(f"options: {options}")
    yield CheckResult(
        "credentials", "ok", "; ".join(found) or "none set; a machine in the cloud may have a role instead"
    )


def url_checks(url: RemotePath) -> Iterator[CheckResult]:
    """Try to list, write (a trial object, removed afterwards) and read at a URL. What fails is a check, never an error."""
    if "give_up" not in shown_options():
        set_options([f"give_up={GIVE_UP_SECONDS}"])
    if not listable(url):
        yield _try("read", "missing", lambda: _read_from_server(url))
        return
    listed = _try("list", "missing", lambda: f"{url}: {len(list_names(url))} files directly in it")
    yield listed
    if listed.state == "ok":  # else the write would fail for the same reason
        yield _try("write", "warning", lambda: _write(url / f".vmae-doctor-{writer_name()}"))


def _try(name: str, worst: CheckState, call: Callable[[], str]) -> CheckResult:
    try:
        return CheckResult(name, "ok", call())
    except (VmaeError, MisuseError) as error:
        return failed_check(name, error, worst)


def failed_check(name: str, error: Exception, state: CheckState = "missing") -> CheckResult:
    """An error's last clause or sentence is the advice."""
    split = re.fullmatch(r"(.+)(?:; |\. (?=[A-Z]))(.+)", str(error), re.DOTALL)
    return CheckResult(name, state, split[1], split[2]) if split else CheckResult(name, state, str(error))


def _read_from_server(url: RemotePath) -> str:
    """One byte of the URL, else of an index below it."""
    from vmae_data.format import INDEX  # imports msgspec, which may be missing

    for file in (url, url / INDEX):
        try:
            if file.path:
                return f"{file}: {len(read_range(file, 0, 1))} byte read by a range request"
        except NotFoundError:
            if file.name == INDEX:
                raise
    return f"{url}: not tried, because it names no file"


def _write(trial: RemotePath) -> str:
    created = create_bytes(trial, TRIAL)
    try:
        created_again = create_bytes(trial, b"another")
        data = read_range(trial, 0, len(TRIAL) + 1)
    finally:
        remove(trial)
    if data != TRIAL or not created:
        raise VmaeError(f"{trial.parent}: returns other bytes than were written. Use another store")
    if created_again:
        raise VmaeError(
            f"{trial.parent}: creates an object again that exists already. Build a data set on one machine at a time"
        )
    return f"{trial.parent}: wrote, read by a range request and removed an object; creating it twice was refused"
