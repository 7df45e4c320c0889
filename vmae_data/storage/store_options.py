"""`--storage-option`, environment variables and AWS profiles → how to open a store.

Options are kept in the environment: every process that we start has them, and no pickle, log or record does.
AWS profiles are parsed here because obstore does not read them.
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
from vmae_data.storage.local_files import refuse_special
from vmae_data.storage.option_files import azure_account, root_certificates

__all__ = [
    "NO_OTHER_HOST",
    "VARIABLE",
    "Access",
    "access_of",
    "credential_names",
    "missing_key_file",
    "options_text",
    "restore_options",
    "set_options",
    "shown_option",
    "shown_options",
]

VARIABLE = "VMAE_STORAGE_OPTIONS"
GIVE_UP_SECONDS = 300.0  # after which a silent store ends the command
REQUEST_SECONDS = 3600.0  # of a whole request: a slow but steady one may last
SILENCE_SECONDS = 20.0  # within a request
CONNECT_SECONDS = 10.0
NO_OTHER_HOST = "127.0.0.1:0"  # a proxy that refuses, for every host but the store's
_TIMES = ("timeout", "read_timeout", "connect_timeout")
_CLIENT_OPTIONS = ("allow_http", "allow_invalid_certificates", "proxy_url", "root_certificate", "user_agent")
_HEADER = "header."
_NOT_SECRET = (
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
_ENDPOINT = re.compile(r"https?://[A-Za-z0-9._~\-\[\]:]+(/[^\s@?#]*)?")


class Access(NamedTuple):
    """How to open a store."""

    config: dict[str, Any]  # of the store, for obstore
    client: dict[str, Any]  # of its HTTP client
    give_up: float  # seconds of retries
    endpoint: str  # URL of its server, if it is named
    server: str  # the endpoint, or the cloud's own, for messages; empty for a web server
    has_token: bool  # obstore's client would send it to another host


def set_options(options: Sequence[str]) -> None:
    """Set `key=value` options for this process and all processes that it starts. Raises MisuseError."""
    values = dict(_options())
    for text in options:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise MisuseError("--storage-option: expected KEY=VALUE, such as endpoint=http://host:9000")
        values[key.strip().lower()] = value
    if options:
        os.environ[VARIABLE] = json.dumps(values)


def options_text() -> str:
    """All options with their secrets, for a process without our environment. Never show or store this text."""
    return os.environ.get(VARIABLE, "")


def restore_options(text: str) -> None:
    """Set the options that `options_text` gave in another process."""
    if text:
        os.environ[VARIABLE] = text


def shown_options() -> dict[str, str]:
    """The options without their secrets."""
    return {key: "…" if _is_secret(key, value) else value for key, value in _options().items()}


def shown_option(option: str) -> str:
    """A `key=value` option without its value if that is a secret."""
    key, equals, value = option.partition("=")
    return f"{key}{equals}…" if equals and _is_secret(key.strip().lower(), value) else option


def _is_secret(key: str, value: str) -> bool:
    """All but known harmless options: a name may be misspelt, and a proxy's URL may contain a password."""
    return key not in _NOT_SECRET or "@" in value


def access_of(scheme: str, url: str = "") -> Access:
    """The settings of options, environment and profile for a scheme (`s3`, `gs`, `az`, `http`, `https`).

    Raises MisuseError, naming `url`, for invalid values; VmaeError for a profile that needs another tool.
    """
    options = dict(_options())
    client: dict[str, Any] = dict(zip(_TIMES, (REQUEST_SECONDS, SILENCE_SECONDS, CONNECT_SECONDS), strict=True))
    give_up = GIVE_UP_SECONDS
    config: dict[str, Any] = _profile(options) if scheme == "s3" else {}
    roots = config.pop("ca_bundle", "")
    headers: dict[str, str] = {}
    for key, value in options.items():
        if key == "give_up":
            give_up = _seconds(key, value)
        elif key in _TIMES:
            client[key] = _seconds(key, value)
        elif key.startswith(_HEADER):
            headers[key.removeprefix(_HEADER)] = value
        elif key in _CLIENT_OPTIONS:
            client[key] = value.lower() in ("1", "true", "yes") if key.startswith("allow") else value
        elif key != "profile":
            config[key] = value
    if headers and scheme in ("http", "https"):  # a web server's token is not for a bucket
        client["default_headers"] = headers
    for key in _TIMES:
        client[key] = timedelta(seconds=client[key])
    if scheme == "az":
        config = azure_account(config, url)
    _check_texts(config)
    endpoint = _endpoint(scheme, config)
    _check_endpoint(endpoint)
    if scheme == "http" or endpoint.startswith("http://"):
        client.setdefault("allow_http", True)
    elif certificates := root_certificates(scheme, client.get("root_certificate", ""), roots):
        client["root_certificate"] = certificates
    server = endpoint or _cloud_server(scheme, config)
    return Access(config, client, give_up, endpoint, server, _has_token(scheme, config))


# Environment variables and files that may hold credentials.
_VARIABLES = {
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
        "AZURE_STORAGE_CONNECTION_STRING",
        "AZURE_CLIENT_ID",
        "AZURE_FEDERATED_TOKEN_FILE",
    ),
}
_FILES = {
    "s3": ("~/.aws/credentials", "~/.aws/config"),
    "gs": ("~/.config/gcloud/application_default_credentials.json",),
}


def credential_names() -> dict[str, list[str]]:
    """Scheme → the names of the credentials that are set; never their values."""
    return {
        scheme: [name for name in names if os.environ.get(name)]
        + [name for name in _FILES.get(scheme, ()) if _home_path(name).is_file()]
        for scheme, names in _VARIABLES.items()
    }


def missing_key_file(config: Mapping[str, Any]) -> str | None:
    """An error about the first option or variable of Google's that names a missing file; None if all files exist."""
    files = {f"--storage-option {key}": str(value) for key, value in config.items() if key.endswith(_GS_FILES)}
    files |= {name: os.environ.get(name, "") for name in (f"GOOGLE_{key.upper()}" for key in _GS_FILES)}
    for name, value in files.items():
        if value and not os.path.isfile(value):  # noqa: PTH113 - may be a key instead of a path
            shown = value if value.isprintable() and "{" not in value else "…"
            return f"{name} = {shown}: no such file. Name the key file of a service account, or unset it"
    return None


_GS_FILES = ("application_credentials", "service_account", "service_account_path")


def _options() -> Mapping[str, str]:
    try:
        options = json.loads(os.environ.get(VARIABLE, "{}"))
    except ValueError:
        options = None
    if not isinstance(options, dict) or not all(isinstance(value, str) for value in options.values()):
        raise MisuseError(f"{VARIABLE}: is not a JSON object of strings. Unset it, and use --storage-option")
    return options


def _home_path(text: str) -> Path:
    """Without a home directory, a path that does not exist."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises


def _cloud_server(scheme: str, config: Mapping[str, Any]) -> str:
    names = ("AWS_REGION", "AWS_DEFAULT_REGION")
    region = next((value for value in (config.get("region"), *map(os.environ.get, names)) if value), "us-east-1")
    account = next((value for key, value in config.items() if key.endswith("account_name")), "")
    emulator = _emulator(config)
    return {
        "s3": f"https://s3.{region}.amazonaws.com",
        "gs": "https://storage.googleapis.com",
        "az": f"{emulator}/{account}" if emulator else f"https://{account}.blob.core.windows.net",
    }.get(scheme, "")


def _emulator(config: Mapping[str, Any]) -> str:
    """The URL of Azure's emulator, if it is used; else empty."""
    values = [str(value) for key, value in config.items() if key.endswith("use_emulator")]
    used = [*values, os.environ.get("AZURE_STORAGE_USE_EMULATOR", "")][0].lower() in ("1", "true", "yes", "on", "y")
    return (os.environ.get("AZURITE_BLOB_STORAGE_URL", "") or "http://127.0.0.1:10000").rstrip("/") if used else ""


def _has_token(scheme: str, config: Mapping[str, Any]) -> bool:
    """Whether requests have a session token (S3, a header) or a SAS (Azure, in their URL)."""
    names, variables = {
        "s3": (("session_token", "token"), ("AWS_SESSION_TOKEN",)),
        "az": (("sas_key", "sas_token"), ("AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN")),
    }.get(scheme, ((), ()))
    return any(key.endswith(names) for key in config) or any(os.environ.get(name) for name in variables)


def _seconds(key: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise MisuseError(f"--storage-option {key}={value}: expected seconds, such as 60")
    return seconds


def _check_texts(config: Mapping[str, Any]) -> None:
    """The client panics at a line end in a key, which a file with Windows line ends may cause."""
    names = (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AZURE_STORAGE_ACCOUNT_KEY",
    )
    for name, value in (*config.items(), *((name, os.environ.get(name, "")) for name in names)):
        if not str(value).isprintable():
            raise MisuseError(f"{name}: has a line end or another control character in it. Set it again without")


def _check_endpoint(endpoint: str) -> None:
    if endpoint and not _ENDPOINT.fullmatch(endpoint):
        shown = re.split("[?#]", endpoint.rpartition("@")[2])[0]
        raise MisuseError(f"endpoint {shown}: expected http://HOST:PORT or https://HOST, without a password or a query")


def _endpoint(scheme: str, config: Mapping[str, Any]) -> str:
    names = {"s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"), "az": ("AZURE_STORAGE_ENDPOINT",)}
    values = [str(value) for key, value in config.items() if key.endswith(("endpoint", "endpoint_url"))]
    return next((value for value in [*values, *(os.environ.get(n, "") for n in names.get(scheme, ()))] if value), "")


def _profile(options: Mapping[str, str]) -> dict[str, Any]:
    """The settings of the named AWS profile, or of the default one if options and environment have no key."""
    named = options.get("profile") or os.environ.get("AWS_PROFILE")
    has_key = any("access_key_id" in key for key in options) or "AWS_ACCESS_KEY_ID" in os.environ
    if has_key and not named:
        return {}
    name = named or "default"
    profile = _read_profile(name)
    if profile is None:
        if named:
            raise MisuseError(
                f"AWS profile {name!r}: is in neither ~/.aws/config nor ~/.aws/credentials. Check AWS_PROFILE"
            )
        return {}
    option_names = {
        "aws_access_key_id": "access_key_id",
        "aws_secret_access_key": "secret_access_key",
        "aws_session_token": "session_token",
        "region": "region",
        "endpoint_url": "endpoint",
        "ca_bundle": "ca_bundle",
    }
    values = {option_names[key]: value for key, value in profile.items() if key in option_names}
    unsupported = sorted(key for key in profile if key.startswith(("sso_", "role_arn", "credential_process")))
    if named and "access_key_id" not in values and unsupported:
        raise VmaeError(
            f"AWS profile {name!r}: gets its keys by {unsupported[0]}, which is not supported here. "
            f"Run `eval $(aws configure export-credentials --profile {name} --format env)` first"
        )
    return values


def _read_profile(name: str) -> dict[str, str] | None:
    config = _home_path(os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"))
    credentials = _home_path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"))
    profile: dict[str, str] | None = None
    for path, section in ((config, name if name == "default" else f"profile {name}"), (credentials, name)):
        parser = ConfigParser(interpolation=None, default_section="\0")
        refuse_special(path)
        try:
            parser.read(path, encoding="utf-8")
        except (Error, UnicodeDecodeError) as error:  # its text may quote lines, and so keys
            raise MisuseError(f"{path}: is not a file of AWS profiles. Correct it, or unset AWS_PROFILE") from error
        if parser.has_section(section):
            profile = {**(profile or {}), **parser[section]}
    return profile
