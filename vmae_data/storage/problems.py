"""Why a call to a store failed, and whether the next try may succeed.

The text of an obstore error never passes through: it may contain a signed URL.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from vmae_data.errors import NoRangesError, NotFoundError, ReplacedError
from vmae_data.storage.attempt import Transient
from vmae_data.storage.paths import RemotePath
from vmae_data.storage.store_options import NO_OTHER_HOST

__all__ = ["Problem", "Refusal", "problem_of", "requested_wait", "status_of"]

_STATUS = re.compile(
    r"\b(?:status(?: code)?:?|HTTP status \w+ error \(|Server returned non-2xx status code:)\s*\(?([1-5]\d\d)\b",
    re.IGNORECASE | re.ASCII,
)
# Of an answer, or of one object of a bulk delete.
_CODE = re.compile(r"(?:<Code>|\(code: )([A-Za-z0-9]{1,60})(?:</Code>|\))")
_REGION = re.compile(r"<Region>([a-z0-9-]{1,40})</Region>")
_BUSY = (408, 425, 429)
_OTHER_REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException")
LONGEST_REQUESTED_WAIT = 10**6  # seconds; a larger number is a mistake


class Problem(NamedTuple):
    """Why a call failed."""

    text: str
    transient: bool  # the next try may succeed
    refused: bool = False  # the credentials are not accepted
    busy: bool = False  # the store asks for fewer calls
    silent: bool = False  # the store can't be reached: told at the first try
    advice: str = "Check the URL and the storage options"


class Refusal(NamedTuple):
    """A failed answer: its headers, names in lower case, and the begin of its text."""

    headers: Mapping[str, str] = {}
    text: str = ""


def problem_of(error: Exception, path: RemotePath, again: Callable[[], Refusal]) -> Problem:
    """Classify an error of obstore by its type and status. Raises those that have a class of their own here.

    `again` requests the failed answer once more, with what obstore hides.
    """
    from obstore import exceptions

    text = str(error)
    status = status_of(text)
    code = next(iter(_CODE.findall(text)), "")
    name = ", ".join(filter(None, [f"status {status}" if status else "", code]))
    if isinstance(error, Transient):
        return Problem(text, transient=True, silent=True)
    if isinstance(error, FileNotFoundError) or status == 404:
        raise NotFoundError(f"{path}: does not exist{f' ({code})' if code else ''}. Check the path") from None
    if isinstance(error, exceptions.NotSupportedError):
        raise NoRangesError(f"{path}: its server does not support range requests. Use one that does") from None
    if isinstance(error, exceptions.PreconditionError) or "precondition failure" in text.lower():
        raise ReplacedError(f"{path}: was replaced while it was read. Open the data set again") from None
    if path.scheme == "s3" and (problem := _other_region(text, status, code, again)):
        return problem
    if NO_OTHER_HOST in text:
        advice = "Name the host that has the data as endpoint: credentials are sent to no other"
        return Problem("its server redirects to another host", transient=False, advice=advice)
    if "169.254." in text or ("metadata" in text.lower() and not status):
        return Problem("no credentials found", transient=False, refused=True, advice=_credentials(path))
    if status in _BUSY or code in ("SlowDown", "RequestLimitExceeded") or status == 503:
        return Problem(name or "busy", transient=True, busy=True)
    if (
        isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError))
        or status in (401, 403)
        or "ExpiredToken" in code
        or code == "AccessDenied"
    ):
        refusal = f"refused: {name or type(error).__name__}"
        return Problem(refusal, transient=False, refused=True, advice=_credentials(path))
    if (status >= 500 and status != 501) or (not status and isinstance(error, exceptions.GenericError)):
        return Problem(name, transient=True) if name else _network_problem(text)
    return Problem(name or type(error).__name__, transient=False)


def status_of(text: str) -> int:
    """The HTTP status in an error's text, or 0."""
    match = _STATUS.search(text)
    return int(match[1]) if match else 0


def requested_wait(headers: Mapping[str, str]) -> float | None:
    """The seconds that a busy store asks to wait (Retry-After, a number or a date); None if it names none."""
    import email.utils

    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text) if len(text) < 10 and int(text) <= LONGEST_REQUESTED_WAIT else None
    try:
        seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return seconds if 0 < seconds <= LONGEST_REQUESTED_WAIT else None


def _other_region(text: str, status: int, code: str, again: Callable[[], Refusal]) -> Problem | None:
    """S3 redirects a request for another region without an address, or refuses its signature."""
    is_certain = "redirect without location" in text.lower() or code in _OTHER_REGION
    if not is_certain and not (status in (301, 307, 400) and not code):  # the answer to a HEAD has no code
        return None
    region = _named_region(text)
    if not region:
        refusal = again()
        region = _named_region(refusal.text, refusal.headers.get("x-amz-bucket-region", ""))
    if not is_certain and not region:
        return None
    what = f"the bucket is in region {region}" if region else "the bucket is in another region"
    advice = f"Set --storage-option region={region or '…'}"
    return Problem(f"wrong region: {what}", transient=False, advice=advice)


def _named_region(text: str, header: str = "") -> str:
    named = _REGION.search(f"{text}<Region>{header}</Region>")
    return named[1] if named else ""


def _network_problem(text: str) -> Problem:
    lower = text.lower()
    if re.search("invalid peer certificate|invalidcertificate|certificate.verify.failed", lower):
        advice = "Name its authority by --storage-option root_certificate=FILE"
        return Problem("its certificate is not valid", transient=False, advice=advice)
    for sign, problem, silent in (
        ("connection refused", "connection refused", True),
        ("connection reset", "connection reset", False),
        ("timed out", "no answer in time", True),
        ("timedout", "no answer in time", True),
        ("dns", "no such host", True),
        ("lookup address", "no such host", True),
        ("name or service not known", "no such host", True),
        ("incompletemessage", "connection cut", False),
        ("body", "connection cut", False),
        ("connect", "no connection", True),
    ):
        if sign in lower:
            return Problem(problem, transient=True, silent=silent)
    return Problem("no readable answer", transient=True)


def _credentials(path: RemotePath) -> str:
    """What to do if the store refuses the credentials."""
    sources = {
        "s3": "environment, AWS_PROFILE, --storage-option",
        "gs": "GOOGLE_APPLICATION_CREDENTIALS, or --storage-option service_account=FILE",
        "az": "AZURE_STORAGE_ACCOUNT_KEY, or --storage-option account_key=…",
    }
    if path.scheme not in sources:
        return "Check the URL, and whether the server needs a header (--storage-option header.NAME=…)"
    return f"Check the credentials ({sources[path.scheme]}), then run the same command again"
