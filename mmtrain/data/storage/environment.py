"""Where stores are and who asks, from where each cloud's own tools take it: the environment
(`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_...`),
AWS's profile files, and `~/.netrc` for web servers. None of it is kept or told here.

obstore reads most of these names by itself; here are those that it does not.
"""

import base64
import configparser
import netrc
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mmtrain.errors import UsageError
from mmtrain.settings.paths import mask_secrets

GOOGLE_EMULATOR, AZURE_EMULATOR = "STORAGE_EMULATOR_HOST", "AZURE_STORAGE_USE_EMULATOR"
_AZURITE = "http://127.0.0.1:10000/devstoreaccount1"
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL", GOOGLE_EMULATOR),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
# Azure's own names, of its tools and of the parts of a connection string.
_AZURE = {
    "account_name": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT", "AccountName"),
    "account_key": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY", "AccountKey"),
    "sas_key": ("AZURE_STORAGE_SAS_TOKEN", "SharedAccessSignature"),
}


def endpoint(scheme: str) -> str:
    """The address of a store that is not the cloud's own, where the environment names one.

    Raises:
        UsageError: it is no address, or Azure's connection string is none.
    """
    names = [name for name in _ENDPOINTS.get(scheme, ()) if name in os.environ]
    if scheme != "gs":
        _refuse_no_address(names)
    found = next((os.environ[name] for name in names if os.environ[name]), "")
    if scheme == "az" and not found:
        emulated = _AZURITE if _is_on(AZURE_EMULATOR) else ""
        found = _connection().get("BlobEndpoint", emulated)
    return f"http://{found}" if scheme == "gs" and found and "://" not in found else found


def _refuse_no_address(names: list[str]) -> None:
    """The client reads all of these variables too, and panics over one that is empty or without
    http://."""
    for name in names:
        if not re.match(r"https?://[^/?#]", os.environ[name], re.IGNORECASE):
            raise UsageError(
                f'{name} = "{mask_secrets(os.environ[name])}" is no address; write one such as '
                "http://minio.local:9000, or unset it"
            )


def store_options(scheme: str) -> dict[str, Any]:
    """What obstore does not take from the environment by itself, by its own names.

    Raises:
        UsageError: a file or a text that says it cannot be read.
    """
    options = {"s3": _aws_options, "gs": _google_options, "az": _azure_options}[scheme]()
    if scheme != "gs" and (address := endpoint(scheme)):
        options["endpoint"] = address
    return options


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")


def _google_options() -> dict[str, Any]:
    options: dict[str, Any] = {}
    if address := endpoint("gs"):
        options["base_url"] = address
    if os.environ.get(GOOGLE_EMULATOR) and not os.environ.get("GOOGLE_BASE_URL"):
        options["skip_signature"] = True  # as Google's own clients ask an emulator
    return options


def _azure_options() -> dict[str, Any]:
    known = {**_connection(), **os.environ}
    options: dict[str, Any] = {}
    for option, names in _AZURE.items():
        if value := next((known[name] for name in names if known.get(name)), ""):
            options[option] = value
    return options


def _connection() -> dict[str, str]:
    """The parts of `AZURE_STORAGE_CONNECTION_STRING`."""
    text = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "").strip()
    parts = [part.partition("=") for part in text.split(";") if part]
    found = {name: value for name, _, value in parts}
    if found.get("UseDevelopmentStorage", "").lower() == "true":
        found["BlobEndpoint"] = _AZURITE
    if text and not found.keys() & {"AccountName", "BlobEndpoint"}:
        raise UsageError(
            "AZURE_STORAGE_CONNECTION_STRING has no AccountName=...; and no BlobEndpoint=...; copy "
            "it from Azure's portal"
        )
    return found


def _aws_options() -> dict[str, Any]:
    options: dict[str, Any] = {}
    profile = _aws_profile()
    if not os.environ.get("AWS_ACCESS_KEY_ID"):
        for name in ("access_key_id", "secret_access_key", "session_token"):
            if value := profile.get(f"aws_{name}"):
                options[name] = value
    if not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
        options["region"] = profile.get("region") or "us-east-1"
    return options


def _aws_profile() -> dict[str, str]:
    name = os.environ.get("AWS_PROFILE") or "default"
    folder = Path.home() / ".aws"
    found: dict[str, str] = {}
    for variable, default, section in (
        ("AWS_CONFIG_FILE", folder / "config", name if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", folder / "credentials", name),
    ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(os.environ.get(variable) or default, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError) as error:
            raise UsageError(f"AWS's file {default} cannot be read; mend it") from error
        if parser.has_section(section):
            found |= dict(parser.items(section))
    return found


def login_headers(root: str) -> dict[str, str]:
    """What `~/.netrc` has for a web server.

    Raises:
        UsageError: it cannot be read.
    """
    host = urlsplit(root).hostname or ""
    try:
        login = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except FileNotFoundError:
        return {}
    except (netrc.NetrcParseError, OSError) as error:
        raise UsageError(f"{root}: ~/.netrc cannot be read; mend it") from error
    # An entry `default` would send a password to every server there is.
    if login is None or host not in netrc.netrc(os.environ.get("NETRC")).hosts:
        return {}
    token = base64.b64encode(f"{login[0]}:{login[2]}".encode()).decode()
    return {"Authorization": f"Basic {token}"}
