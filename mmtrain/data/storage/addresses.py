"""Where a path says that bytes are: on this machine, in an object store, on a web server."""

import posixpath
import re
from urllib.parse import unquote, urlsplit

SCHEMES = {
    "s3": "S3",
    "gs": "Google Cloud Storage",
    "az": "Azure Blob Storage",
    "hf": "Hugging Face's hub",
    "http": "a web server",
    "https": "a web server",
}
"""What is read beside local files."""
FILE = "file://"

_SCHEME = re.compile(r"(pipe|[A-Za-z][A-Za-z0-9+.-]+(?=://)):")


def scheme_of(path: str) -> str:
    """`s3` of `s3://bucket/key`; empty for a path of this machine, `file://` ones too."""
    match = _SCHEME.match(path)
    return match.group(1).lower() if match and not path.startswith(FILE) else ""


def is_remote(path: str) -> bool:
    """Whether a path is of one of `SCHEMES`."""
    return scheme_of(path) in SCHEMES


def is_web(path: str) -> bool:
    """Whether a path is on a web server, which has no listing."""
    return scheme_of(path) in ("http", "https")


def local_path(path: str) -> str:
    """`/data/x.tar` of `file:///data/x.tar`; every other path as it is."""
    if not path.startswith(FILE):
        return path
    split = urlsplit(path)
    host = "" if split.netloc == "localhost" else split.netloc
    return host + unquote(split.path)


def is_hub(path: str) -> bool:
    """Whether a path is on Hugging Face's hub, or on another that HF_ENDPOINT names."""
    return scheme_of(path) == "hf"


def split_store(path: str) -> tuple[str, str]:
    """`s3://bucket` and `a/b.tar` of `s3://bucket/a/b.tar`; on the hub the first is the data set,
    `hf://datasets/owner/name@revision`."""
    scheme, _, rest = path.partition("://")
    parts = rest.split("/", 3 if is_hub(path) else 1)
    num = 3 if is_hub(path) else 1
    return f"{scheme.lower()}://{'/'.join(parts[:num])}", "/".join(parts[num:])


def base_name(path: str) -> str:
    """The last part of a path of either kind."""
    return posixpath.basename(urlsplit(path).path if is_web(path) else path)
