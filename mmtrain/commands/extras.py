"""Which of mmtrain's extras are installed, and what each is for."""

import importlib.metadata
import re
from dataclasses import dataclass

EXTRAS = {
    "track": "mirrors of metrics.jsonl ([log] wandb, tensorboard; trackio: docs/guide.md)",
    "datasets": "Hugging Face data sets saved to disk as data.train",
    "parquet": "tables: .parquet as data, data.join, embed --format parquet",
    "remote": "data in object stores and on web servers, the hub's models (s3://, https://, hf://)",
    "ray": "checks, surveys and embeds over a cluster (tools/ray_data_map.py)",
    "torchvision": "torchvision's data sets on disk (torchvision:NAME/SPLIT:ROOT)",
    "towers": "towers that timm and transformers compute (docs/models.md)",
    "onnx": "models that run without torch (export --format onnx)",
    "serve": "the page to play with (mmtrain serve), runs as a live page (mmtrain watch)",
    "float8": 'train.precision = "float8"',
    "graph": "the picture of a model's autograd graph (summary --autograd)",
    "vqa": "the data set easy-VQA (easy_vqa:train)",
    "demo": "the page that the demo ends with",
    "docs": "the documentation as a site (make docs, in a clone)",
    "compare": "side-by-side tests and benchmarks with open_clip, timm, transformers, peft",
}
"""As pyproject.toml has them but for `dev`, with what each makes possible."""
_NEEDS = re.compile(r"([\w.-]+)(?:\[.*\])?\s*(?:>=\s*([\d.]+))?.*;\s*extra\s*==\s*['\"](\w+)['\"]")


@dataclass(frozen=True, kw_only=True)
class Extra:
    """One extra as it is here."""

    name: str
    """As pip takes it: mmtrain[NAME]."""
    missing: tuple[str, ...]
    """Its packages that are not here, or are older than it asks for."""


def installed_extras() -> list[Extra]:
    """Of those that the installed mmtrain knows, in the order of `EXTRAS`."""
    wanted: dict[str, list[tuple[str, str]]] = {}
    for line in importlib.metadata.requires("mmtrain") or ():
        if (found := _NEEDS.match(line)) is not None:
            package, least, extra = found.groups()
            wanted.setdefault(extra, []).append((package, least or ""))
    return [
        Extra(name=name, missing=tuple(told for need in wanted[name] if (told := _missing(*need))))
        for name in EXTRAS
        if name in wanted
    ]


def _missing(package: str, least: str) -> str:
    """What is said of a package that is not here or too old; empty where it will do."""
    if package == "mmtrain":  # another extra, whose packages are named beside
        return ""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return package
    return f"{package} {version} (needs {least})" if _numbers(version) < _numbers(least) else ""


def _numbers(version: str) -> list[int]:
    """2.14.1+cu130 -> [2, 14, 1]."""
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]
