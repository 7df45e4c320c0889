"""How a store is reached: `--storage-option`, the usual environment variables, and AWS profiles.

Options stand in the environment, so that every process we start has them, and no pickle, log or record does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from configparser import ConfigParser, Error
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from vmae_data.errors import MisuseError, VmaeError

__all__ = [
    "VARIABLE",
    "Access",
    "access_of",
    "credential_names",
    "missing_key_file",
    "options_text",
    "set_options",
    "shown_options",
    "take_options",
]

VARIABLE = "VMAE_STORAGE_OPTIONS"
GIVE_UP_SECONDS = 300.0  # after which a store that does not answer ends the work
WHOLE_SECONDS = 3600.0  # of a request; a slow but steady one may last
SILENCE_SECONDS = 20.0  # within a request
CONNECT_SECONDS = 10.0
_TIMES = ("timeout", "read_timeout", "connect_timeout")
_CLIENT = ("allow_http", "allow_invalid_certificates", "proxy_url", "root_certificate", "user_agent")
_HEADER = "header."
_SHOWN = (
    *_TIMES,
    "give_up",
    "endpoint",
    "region",
    "profile",
    "skip_signature",
    "allow_http",
    "account_name",
    "proxy_url",
)
_ENDPOINT = re.compile(r"https?://[A-Za-z0-9._~\-\[\]:]+(/[^\s@]*)?")


class Access(NamedTuple):
    """How the store of one root is opened."""

    config: dict[str, Any]  # of the store itself, for obstore
    client: dict[str, Any]  # of its HTTP client
    give_up: float  # seconds


def set_options(options: Sequence[str]) -> None:
    """Take `key=value` texts for this process and all that it starts. Raises MisuseError."""
    values = dict(_options())
    for text in options:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise MisuseError("--storage-option: expected KEY=VALUE, such as endpoint=http://host:9000")
        values[key.strip().lower()] = value
    if options:
        os.environ[VARIABLE] = json.dumps(values)


def options_text() -> str:
    """All options, secrets too, to hand to a process that does not have our environment. Never to be shown or stored."""
    return os.environ.get(VARIABLE, "")


def take_options(text: str) -> None:
    """What `options_text` gave elsewhere."""
    if text:
        os.environ[VARIABLE] = text


def shown_options() -> dict[str, str]:
    """The options as they may be shown: secrets are left out."""
    return {key: "…" if _is_secret(key, value) else value for key, value in _options().items()}


def _is_secret(key: str, value: str) -> bool:
    """All but what is known to be none: a name may be misspelt, and a proxy's URL may hold a password."""
    return key not in _SHOWN or "@" in value


def access_of(scheme: str, url: str = "") -> Access:
    """What options, environment and profile say of a kind of store (`s3`, `gs`, `az`, `http`, `https`); errors name `url`.

    Raises MisuseError for values that can't be read, VmaeError where a profile needs more than is installed.
    """
    options = dict(_options())
    client: dict[str, Any] = dict(zip(_TIMES, (WHOLE_SECONDS, SILENCE_SECONDS, CONNECT_SECONDS), strict=True))
    give_up = GIVE_UP_SECONDS
    config: dict[str, Any] = _profile(options) if scheme == "s3" else {}
    headers: dict[str, str] = {}
    for key, value in options.items():
        if key == "give_up":
            give_up = _seconds(key, value)
        elif key in _TIMES:
            client[key] = _seconds(key, value)
        elif key.startswith(_HEADER):
            headers[key.removeprefix(_HEADER)] = value
        elif key in _CLIENT:
            client[key] = value.lower() in ("1", "true", "yes") if key.startswith("allow") else value
        elif key != "profile":
            config[key] = value
    if headers:
        client["default_headers"] = headers
    for key in _TIMES:
        client[key] = timedelta(seconds=client[key])
    if scheme == "az":  # where it stands in the environment alone, the client does not say so when it is copied
        account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
        if account and not any(key.endswith("account_name") for key in config):
            config["account_name"] = account
        if not any(key.endswith("account_name") for key in config):
            raise MisuseError(
                f"{url or 'az://'}: no account is named; set AZURE_STORAGE_ACCOUNT_NAME, or --storage-option account_name=…"
            )
    _check_texts(config)
    _check_endpoint(_endpoint(scheme, config))
    if scheme == "http" or _endpoint(scheme, config).startswith("http://"):
        client.setdefault("allow_http", True)
    return Access(config, client, give_up)


# Where the clients look for credentials, in the environment and in files.
_NAMES = {
    "s3": (
        "AWS_ACCESS_KEY_ID",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ),
    "gs": (
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
    ),
    "az": (
        "AZURE_STORAGE_ACCOUNT_NAME",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_SAS_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_CLIENT_ID",
        "AZURE_FEDERATED_TOKEN_FILE",
    ),
}
_FILES = {
    "s3": ("~/.aws/credentials", "~/.aws/config"),
    "gs": ("~/.config/gcloud/application_default_credentials.json",),
}


def credential_names() -> dict[str, list[str]]:
    """For each kind of store, what credentials there are, by their names; never their values."""
    return {
        scheme: [name for name in names if os.environ.get(name)]
        + [name for name in _FILES.get(scheme, ()) if Path(name).expanduser().is_file()]
        for scheme, names in _NAMES.items()
    }


def missing_key_file(config: Mapping[str, Any]) -> str | None:
    """Of Google's: who names a file of credentials that is not there, and which; None where all are there."""
    given = {f"--storage-option {key}": str(value) for key, value in config.items() if key.endswith(_GS_FILES)}
    given |= {name: os.environ.get(name, "") for name in (f"GOOGLE_{key.upper()}" for key in _GS_FILES)}
    for name, value in given.items():
        if value and not os.path.isfile(value):  # noqa: PTH113 - may be no path at all, but a key
            shown = value if value.isprintable() and "{" not in value else "…"
            return f"{name} = {shown}: no such file; name the file of a service account's key, or leave it out"
    return None


_GS_FILES = ("application_credentials", "service_account", "service_account_path")


def _options() -> Mapping[str, str]:
    try:
        found = json.loads(os.environ.get(VARIABLE, "{}"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise MisuseError(f"{VARIABLE}: is not a JSON object of texts; leave it unset, and give --storage-option")
    return found


def _seconds(key: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise MisuseError(f"--storage-option {key}={value}: expected seconds, such as 60")
    return seconds


def _check_texts(config: Mapping[str, Any]) -> None:
    """The client panics at a line end in a key, such as a file with Windows' line ends gives."""
    names = (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AZURE_STORAGE_ACCOUNT_KEY",
    )
    for name, value in (*config.items(), *((name, os.environ.get(name, "")) for name in names)):
        if not str(value).isprintable():
            raise MisuseError(f"{name}: has a line end or another control character in it; set it again without")


def _check_endpoint(endpoint: str) -> None:
    if endpoint and not _ENDPOINT.fullmatch(endpoint):
        shown = endpoint.rpartition("@")[2]
        raise MisuseError(f"endpoint {shown}: expected http://HOST:PORT or https://HOST, without a password")


def _endpoint(scheme: str, config: Mapping[str, Any]) -> str:
    names = {"s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"), "az": ("AZURE_STORAGE_ENDPOINT",)}
    given = [str(value) for key, value in config.items() if key.endswith(("endpoint", "endpoint_url"))]
    return next((value for value in [*given, *(os.environ.get(n, "") for n in names.get(scheme, ()))] if value), "")


def _profile(options: Mapping[str, str]) -> dict[str, Any]:
    """What the AWS profile says, where one is named, or where neither options nor environment hold a key."""
    named = options.get("profile") or os.environ.get("AWS_PROFILE")
    keyed = any("access_key_id" in key for key in options) or "AWS_ACCESS_KEY_ID" in os.environ
    if keyed and not named:
        return {}
    name = named or "default"
    found = _read_profile(name)
    if found is None:
        if named:
            raise MisuseError(
                f"AWS profile {name!r}: is in neither ~/.aws/config nor ~/.aws/credentials; check AWS_PROFILE"
            )
        return {}
    wanted = {
        "aws_access_key_id": "access_key_id",
        "aws_secret_access_key": "secret_access_key",
        "aws_session_token": "session_token",
        "region": "region",
        "endpoint_url": "endpoint",
    }
    values = {wanted[key]: value for key, value in found.items() if key in wanted}
    by_other_means = sorted(key for key in found if key.startswith(("sso_", "role_arn", "credential_process")))
    if named and "access_key_id" not in values and by_other_means:
        raise VmaeError(
            f"AWS profile {name!r}: gets its keys by {by_other_means[0]}, which is not read here; "
            f"run `eval $(aws configure export-credentials --profile {name} --format env)` first"
        )
    return values


def _read_profile(name: str) -> dict[str, str] | None:
    config = Path(os.environ.get("AWS_CONFIG_FILE", "~/.aws/config")).expanduser()
    credentials = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    found: dict[str, str] | None = None
    for path, section in ((config, name if name == "default" else f"profile {name}"), (credentials, name)):
        parser = ConfigParser(interpolation=None, default_section="\0")
        try:
            parser.read(path, encoding="utf-8")
        except (Error, UnicodeDecodeError) as error:  # the words of the error may hold the lines, and so the keys
            raise MisuseError(f"{path}: is not a file of AWS profiles; mend it, or unset AWS_PROFILE") from error
        if parser.has_section(section):
            found = {**(found or {}), **parser[section]}
    return found
