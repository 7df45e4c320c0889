"""Requests that send nothing of ours to another server: web servers with headers of the user's, headers of a failed answer.

obstore's HTTP client follows redirects with all headers but a few, and with the complete URL as the referrer.
Functions import this module when they need it, because Python's web modules load slowly and local paths do without.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from vmae_data.storage.problems import Refusal

__all__ = ["WebStore", "refusal"]


class WebStore(NamedTuple):
    """A web server. Its headers go to its own scheme, host and port only. The calls are those of obstore that we use.

    Errors are obstore's classes, with the status in the text.
    """

    root: str
    client: Mapping[str, Any]  # as obstore's client options

    def get(self, path: str, options: Mapping[str, Any]) -> WebAnswer:
        """Start to read an object. `options`: `range` (first byte, end), `if_match`."""
        fields = {}
        if "range" in options:
            fields["Range"] = "bytes={}-{}".format(options["range"][0], options["range"][1] - 1)
        if "if_match" in options:
            fields["If-Match"] = options["if_match"]
        return WebAnswer(self._open("GET", path, fields), options.get("range"))

    def head(self, path: str) -> Mapping[str, Any]:
        """Size and ETag of an object."""
        with self._open("HEAD", path, {}) as answer:
            return _meta(answer, None)

    def _open(self, method: str, path: str, fields: Mapping[str, str]) -> Any:
        from obstore import exceptions

        request = urllib.request.Request(f"{self.root}/{_quoted(path)}", headers=dict(fields), method=method)
        if "user_agent" in self.client:
            request.add_header("User-Agent", self.client["user_agent"])
        for name, value in self.client.get("default_headers", {}).items():
            request.add_unredirected_header(name.capitalize(), value)
        try:
            return _opener(self.client, _Redirects()).open(request, timeout=_timeout(self.client))
        except urllib.error.HTTPError as error:
            error.close()
            kind = {401: exceptions.UnauthenticatedError, 403: exceptions.PermissionDeniedError, 404: FileNotFoundError}
            kind[412] = exceptions.PreconditionError
            raise kind.get(error.code, exceptions.GenericError)(f"status: {error.code}") from None
        except (OSError, http.client.HTTPException) as error:
            raise exceptions.GenericError(f"connect: {error}") from None


class WebAnswer:
    """The answer to a GET, read as obstore's is."""

    def __init__(self, answer: Any, wanted: tuple[int, int] | None) -> None:
        from obstore import exceptions

        self._answer = answer
        try:
            self.range = _content_range(answer.headers.get("Content-Range", "")) if wanted else None
            if wanted and (answer.status != 206 or self.range is None):
                raise exceptions.NotSupportedError("no range")
            self.meta = _meta(answer, self.range)
        except BaseException:
            answer.close()
            raise

    def __enter__(self) -> WebAnswer:
        return self

    def __exit__(self, *_: object) -> None:
        self._answer.close()

    def stream(self, min_chunk_size: int) -> Iterator[bytes]:
        from obstore import exceptions

        left = self._answer.length  # None if the server does not say
        try:
            while data := self._answer.read(min_chunk_size):
                left = None if left is None else left - len(data)
                yield data
        except (OSError, http.client.HTTPException) as error:
            raise exceptions.GenericError(f"body: {error}") from None
        if left:
            raise exceptions.GenericError("body: cut")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect; headers of the user's go along only if it stays on the same scheme, host and port."""

    def redirect_request(self, request: Any, *answer: Any) -> urllib.request.Request | None:
        new = super().redirect_request(request, *answer)
        if new is None or urllib.parse.urlsplit(new.full_url).scheme not in ("http", "https"):
            return None
        new.method = request.get_method()
        if _origin(new.full_url) == _origin(request.full_url):
            for name, value in request.unredirected_hdrs.items():
                if name != "Host":
                    new.add_unredirected_header(name, value)
        return new


def refusal(url: str, client: Mapping[str, Any]) -> Refusal:
    """The failed answer of a server, which obstore hides. One byte is requested, and no redirect is followed.

    Empty if there is no answer, or if it is not a failure.
    """
    headers = {**client.get("default_headers", {}), "Range": "bytes=0-0"}
    try:
        request = urllib.request.Request(url, headers=headers)
        with _opener(client, _NoRedirects()).open(request, timeout=min(5.0, _timeout(client))):
            return Refusal()
    except urllib.error.HTTPError as error:
        with error, contextlib.suppress(OSError, http.client.HTTPException):
            return Refusal({k.lower(): v for k, v in error.headers.items()}, error.read1(4096).decode(errors="replace"))
        return Refusal()
    except Exception:  # no answer, or none that can be read
        return Refusal()


def _opener(client: Mapping[str, Any], redirects: urllib.request.HTTPRedirectHandler) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context()
    if roots := client.get("root_certificate"):
        context.load_verify_locations(cadata=roots if isinstance(roots, str) else roots.decode())
    if client.get("allow_invalid_certificates"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    proxy = client.get("proxy_url")
    proxies = urllib.request.ProxyHandler({"http": proxy, "https": proxy} if proxy else None)
    return urllib.request.build_opener(proxies, urllib.request.HTTPSHandler(context=context), redirects)


def _timeout(client: Mapping[str, Any]) -> float:
    return float(client["read_timeout"].total_seconds())


def _meta(answer: Any, span: tuple[int, int] | None) -> dict[str, Any]:
    total = answer.headers.get("Content-Range", "").rpartition("/")[2] if span else answer.headers.get("Content-Length")
    return {"size": _number(total), "e_tag": answer.headers.get("ETag")}


def _content_range(text: str) -> tuple[int, int] | None:
    first, _, last = text.removeprefix("bytes ").partition("/")[0].partition("-")
    return (_number(first), _number(last) + 1) if first and last else None


def _number(text: str | None) -> int:
    """A number of an answer. Raises obstore's GenericError for a text that is none."""
    from obstore import exceptions

    if text is None or not (text.isascii() and text.isdigit() and len(text) < 20):
        raise exceptions.GenericError("no size in the answer")
    return int(text)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _quoted(path: str) -> str:
    """As obstore quotes a path."""
    return urllib.parse.quote(path, safe="/+&=;~,'!()*@:$[]|^")
