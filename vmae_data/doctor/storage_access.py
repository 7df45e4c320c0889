"""What a store lends to a build or a training: which credentials there are, and what they allow at a URL."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import metadata

from vmae_data.console import Check, State
from vmae_data.errors import MisuseError, NotThereError, VmaeError
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

__all__ = ["found_and_advice", "storage_checks", "store_checks"]

GIVE_UP_SECONDS = 20  # a person waits for the answer
TRIAL = b"vmae-shard doctor"


def storage_checks() -> Iterator[Check]:
    """The client, and the names of the credentials that it will find."""
    try:
        version = metadata.version("obstore")
    except metadata.PackageNotFoundError:
        yield Check("storage", State.MISSING, "obstore is not installed", "python -m pip install obstore")
        return
    yield Check("storage", State.OK, f"obstore {version}: paths, s3://, gs://, az://, http://, https://")
    found = [f"{scheme}: {', '.join(names)}" for scheme, names in credential_names().items() if names]
    options = ", ".join(f"{key}={value}" for key, value in shown_options().items())
    words = "; ".join([*found, *([f"options: {options}"] if options else [])])
    yield Check("credentials", State.OK, words or "none named here; a cloud's machine may have a role of its own")


def store_checks(place: RemotePath) -> Iterator[Check]:
    """What can be done at a URL: listed, written (a trial object, taken away again), read. Never raises for what can't."""
    if "give_up" not in shown_options():
        set_options([f"give_up={GIVE_UP_SECONDS}"])
    if not listable(place):
        yield _tried("read", State.MISSING, lambda: _read_of_server(place))
        return
    listed = _tried("list", State.MISSING, lambda: f"{place}: {len(list_names(place))} files right in it")
    yield listed
    if listed.state is State.OK:  # else the other answers would be the same
        yield _tried("write", State.WARNING, lambda: _write(place / f".vmae-doctor-{writer_name()}"))


def _tried(what: str, worst: State, call: Callable[[], str]) -> Check:
    try:
        return Check(what, State.OK, call())
    except (VmaeError, MisuseError) as error:
        return Check(what, worst, *found_and_advice(error))


def found_and_advice(error: VmaeError) -> tuple[str, str]:
    """The two parts of an error's line: the problem, then what to do."""
    match = re.fullmatch(r"(.*)(?:; |\. )(.*)", str(error), re.DOTALL)
    return (match[1], match[2]) if match else (str(error), "")


def _read_of_server(place: RemotePath) -> str:
    """One byte of the URL, else of an index below it."""
    from vmae_data.format import INDEX  # msgspec may be what is missing

    for one in (place, place / INDEX):
        try:
            if one.path:
                return f"{one}: {len(read_range(one, 0, 1))} byte read by a range"
        except NotThereError:
            if one.name == INDEX:
                raise
    return f"{place}: not tried, it names no file"


def _write(trial: RemotePath) -> str:
    first = create_bytes(trial, TRIAL)
    try:
        again = create_bytes(trial, b"another")
        back = read_range(trial, 0, len(TRIAL) + 1)
    finally:
        remove(trial)
    if back != TRIAL or not first:
        raise VmaeError(f"{trial.parent}: gives back other bytes than were written; use another store")
    if again:
        raise VmaeError(
            f"{trial.parent}: does not refuse to create what is there; build a set on one machine at a time"
        )
    return f"{trial.parent}: written, read by a range, and removed again; what is there is not created twice"
