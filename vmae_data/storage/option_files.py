"""Settings of a store that are a file or one text of many parts: certificates, Azure's connection string."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmae_data.errors import MisuseError

__all__ = ["azure_account", "root_certificates"]

_BEGIN = b"-----BEGIN CERTIFICATE-----"
_CONNECTION = "AZURE_STORAGE_CONNECTION_STRING"


def root_certificates(scheme: str, option: str, profile: str) -> bytes | None:
    """The certificates to trust besides the system's: those of the option, else of the environment or the AWS profile.

    Raises MisuseError naming the file and who named it.
    """
    if _BEGIN.decode() in option:
        return option.encode()
    named = {"--storage-option root_certificate": option}
    if scheme == "s3":
        named |= {"AWS_CA_BUNDLE": os.environ.get("AWS_CA_BUNDLE", ""), "ca_bundle of the AWS profile": profile}
    named["REQUESTS_CA_BUNDLE"] = os.environ.get("REQUESTS_CA_BUNDLE", "")
    name, value = next(((name, value) for name, value in named.items() if value), ("", ""))
    if not value:
        return None
    path = Path(os.path.expanduser(value))  # noqa: PTH111 - Path.expanduser raises without a home directory
    try:
        files = [file for file in sorted(path.iterdir()) if file.is_file()] if path.is_dir() else [path]
        texts = [file.read_bytes() for file in files if file.is_file()]
        if not files or not path.exists():
            raise FileNotFoundError(2, os.strerror(2))
    except OSError as error:
        raise MisuseError(f"{name} = {value}: can't be read ({error.strerror}). Name a file of certificates") from error
    certificates = b"\n".join(text for text in texts if _BEGIN in text)
    if not certificates:
        raise MisuseError(f"{name} = {value}: holds no certificate. Name a file of certificates in PEM form")
    return certificates


def azure_account(config: Mapping[str, Any], url: str) -> dict[str, Any]:
    """`config` with the account, and what the connection string says of it. Raises MisuseError if none is named."""
    named = next((value for key, value in config.items() if key.endswith("account_name")), "")
    # obstore reads this variable too, but a copy of its client loses the account
    account = named or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
    parts = _connection_string()
    if parts and account in ("", parts["account_name"]):
        account = parts["account_name"]
        given = {key.removeprefix("azure_").removeprefix("storage_") for key in config}
        if any(key.endswith(("key", "token", "skip_signature")) for key in given):  # the user's own credentials
            parts = {key: value for key, value in parts.items() if key not in ("account_key", "sas_key")}
        config = {**{key: value for key, value in parts.items() if key not in given}, **config}
    if not account:
        raise MisuseError(
            f"{url or 'az://'}: no account is named. Set AZURE_STORAGE_ACCOUNT_NAME, or --storage-option account_name=…"
        )
    return dict(config) if named else {**config, "account_name": account}


def _connection_string() -> dict[str, str]:
    """The parts of Azure's connection string, as options. Raises MisuseError without showing it."""
    text = os.environ.get(_CONNECTION, "")
    if not text:
        return {}
    parts = dict(part.strip().split("=", 1) for part in text.split(";") if "=" in part)
    if parts.get("UseDevelopmentStorage", "").lower() == "true":
        return {"account_name": "devstoreaccount1", "use_emulator": "true"}
    endpoint = parts.get("BlobEndpoint", "").rstrip("/")
    account = parts.get("AccountName", "") or endpoint.partition("://")[2].partition(".")[0]
    if not account or not ({"AccountKey", "SharedAccessSignature"} & parts.keys()):
        raise MisuseError(
            f"{_CONNECTION}: names no account with a key or a signature. Copy it from Azure again, or unset it"
        )
    if not endpoint and "EndpointSuffix" in parts:
        protocol = parts.get("DefaultEndpointsProtocol", "https")
        endpoint = f"{protocol}://{account}.blob.{parts['EndpointSuffix']}"
    options = {
        "account_name": account,
        "account_key": parts.get("AccountKey", ""),
        "sas_key": parts.get("SharedAccessSignature", "").lstrip("?"),
        "endpoint": endpoint,
    }
    return {key: value for key, value in options.items() if value}
