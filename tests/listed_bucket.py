"""A bucket of S3 that lists exactly the objects that a test states. Real servers keep no object `folder/`."""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import Iterator, Mapping

from tests.scripted_server import FACTS, Answer, Request, ScriptedServer, scripted_server

__all__ = ["OPTIONS", "listed_bucket"]

OPTIONS = ("access_key_id=AK", "secret_access_key=hunter1", "session_token=hunter2", "region=us-east-1")
_LISTING = "<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated>{}</ListBucketResult>"
_ENTRY = "<Contents><Key>{}</Key><LastModified>2020-12-01T10:00:00.000Z</LastModified><Size>{}</Size></Contents>"
_GROUP = "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>"


@contextlib.contextmanager
def listed_bucket(objects: Mapping[str, bytes | int], folder_type: str = "") -> Iterator[ScriptedServer]:
    """`bucket` with these objects, or stated sizes. `folder_type` is the content type of names that end with a slash."""

    def answer(request: Request) -> Answer:
        url = urllib.parse.urlsplit(request.path)
        query = urllib.parse.parse_qs(url.query)
        name = urllib.parse.unquote(url.path).removeprefix("/bucket").removeprefix("/")
        if "list-type" in query:
            return _listed(objects, query.get("prefix", [""])[0], grouped="delimiter" in query)
        data, status, facts = objects.get(name), 200, dict(FACTS)
        if not isinstance(data, bytes):
            return Answer(404)
        if folder_type and name.endswith("/"):
            facts["Content-Type"] = folder_type
        if "range" in request.headers:
            first, last = request.headers["range"].removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last or len(data)), len(data) - 1) + 1
            facts["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            data, status = data[start:stop], 206
        return Answer(status, data, facts)

    with scripted_server(answer) as server:
        yield server


def _listed(objects: Mapping[str, bytes | int], prefix: str, *, grouped: bool) -> Answer:
    """As S3 lists: with a delimiter the objects of one folder, and the folders below it."""
    shown, groups = [], set()
    for name in sorted(objects, key=str.encode):
        if not name.startswith(prefix):
            continue
        rest, content = name.removeprefix(prefix), objects[name]
        if grouped and "/" in rest:
            groups.add(f"{prefix}{rest.partition('/')[0]}/")
        else:
            shown.append(_ENTRY.format(name, content if isinstance(content, int) else len(content)))
    shown += [_GROUP.format(group) for group in sorted(groups)]
    return Answer(body=_LISTING.format("".join(shown)).encode())
