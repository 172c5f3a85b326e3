"""`mmtrain doctor`: what this machine has, and what is missing for which feature."""

import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from mmtrain.build.main_memory import main_memory
from mmtrain.commands.extras import EXTRAS, installed_extras
from mmtrain.data.worker_process import SHARED_MEMORY
from mmtrain.errors import UsageError
from mmtrain.nn.products import onednn_is_better
from mmtrain.parallel.accelerators import find_accelerator
from mmtrain.parallel.compile import cpp_compiler

_SMALL_SHARED_MEMORY = 1 << 30
_FEW_FILES = 4096
_TRIED_BYTES = 64 << 20
_GIB = 1 << 30


def doctor_command(*, folder: Path) -> None:
    """Print a table of facts, a line each, and behind them what is wrong with them.

    Raises:
        UsageError: the folder cannot be written to.
    """
    found: list[str] = []
    for head, lines in (
        ("versions", _versions()),
        ("processor", _processor()),
        ("memory", _memory(found)),
        ("accelerators", _accelerators()),
        ("ranks", _ranks(found)),
        ("disk", _disk(folder)),
        ("compiling", _compiling(found)),
        ("extras", _extras()),
    ):
        for number, line in enumerate(lines):
            print(f"{'' if number else head:<14}{line}")
    print()
    for line in found or ["nothing to mend"]:
        print(line)


def _versions() -> Iterator[str]:
    version = importlib.metadata.version
    python = platform.python_version()
    yield f"mmtrain {version('mmtrain')}, torch {torch.__version__}, Python {python}"
    yield f"{platform.system()} {platform.release()} on {platform.machine()}"


def _processor() -> Iterator[str]:
    cpu = torch.cpu
    names = {
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    }
    cores = len(os.sched_getaffinity(0))
    yield f"{', '.join(sorted(names)) or 'unknown'}: {cores} of {os.cpu_count()} cores for us"
    kinds = {
        "AVX-512": cpu._is_avx512_supported(),
        "AVX-512 bf16": cpu._is_avx512_bf16_supported(),
        "AMX": cpu._is_amx_tile_supported(),
    }
    yield "instructions: " + (", ".join(kind for kind, there in kinds.items() if there) or "AVX2")
    better = onednn_is_better()
    yield f"fp32 products by {'oneDNN' if better else 'MKL, as torch has them'}"
    given = os.environ.get("OMP_NUM_THREADS", "not set")
    yield f"{torch.get_num_threads()} threads a process (OMP_NUM_THREADS {given})"


def _memory(found: list[str]) -> Iterator[str]:
    yield f"{main_memory() / _GIB:,.1f} GiB for this process at most"
    shared = shutil.disk_usage(SHARED_MEMORY) if Path(SHARED_MEMORY).is_dir() else None
    if shared is None:
        found.append(f"{SHARED_MEMORY} is not there: loaders of several workers need it")
        return
    yield f"{SHARED_MEMORY}: {shared.free / _GIB:,.1f} of {shared.total / _GIB:,.1f} GiB free"
    if shared.total < _SMALL_SHARED_MEMORY:
        found.append(
            f"{SHARED_MEMORY} is small: workers hand batches over there; give a container more "
            "(docker run --shm-size 16g)"
        )


def _accelerators() -> Iterator[str]:
    if not torch.cuda.is_available():
        versions = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
        built = next((f"{name} {v}" for name, v in versions.items() if v), "processors alone")
        yield f"none; torch is built for {built}"
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        known = find_accelerator(facts.name)
        peak = "" if known is None else f", {known.bf16_tflops:,.0f} TFLOP/s bf16 on paper"
        yield (
            f"cuda:{index} {facts.name}, {facts.total_memory / _GIB:,.0f} GiB, "
            f"{facts.major}.{facts.minor}{peak}"
        )


def _ranks(found: list[str]) -> Iterator[str]:
    backends = [name for name in ("gloo", "nccl") if getattr(dist, f"is_{name}_available")()]
    yield f"backends: {', '.join(backends) or 'none'}"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield f"open files: {soft:,} (hard limit {hard:,})"
    if soft < _FEW_FILES:
        found.append(f"open files are limited to {soft:,}: many shards want more; ulimit -n {hard}")


def _disk(folder: Path) -> Iterator[str]:
    free = shutil.disk_usage(folder).free if folder.is_dir() else None
    if free is None:
        raise UsageError(f"--dir {folder} is no folder; name one, such as that of your runs")
    if free < 2 * _TRIED_BYTES:
        yield f"{folder.resolve()}: {free / _GIB:,.2f} GiB free, too little to try its speed"
        return
    write, read = _speeds(folder)
    yield (
        f"{folder.resolve()}: {free / _GIB:,.1f} GiB free, writes {write / 1e6:,.0f} and reads "
        f"{read / 1e6:,.0f} MB/s ({_TRIED_BYTES >> 20} MiB)"
    )


def _speeds(folder: Path) -> tuple[float, float]:
    """Bytes a second that are written to the disk itself, and read back from there."""
    content = os.urandom(_TRIED_BYTES)
    with tempfile.TemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter()
        # What memory keeps of the file would be read at its speed.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        begun = time.perf_counter()
        while file.read(1 << 20):
            pass
        return _TRIED_BYTES / (written - start), _TRIED_BYTES / (time.perf_counter() - begun)


def _compiling(found: list[str]) -> Iterator[str]:
    compiler = cpp_compiler()
    yield f"C++ compiler: {compiler or 'none'}"
    if compiler is None:
        found.append("train.compile = true on a CPU needs a C++ compiler (g++)")
    if torch.cuda.is_available():
        triton = importlib.util.find_spec("triton") is not None
        yield f"triton: {'there' if triton else 'none'}"
    yield f"Graphviz's dot: {shutil.which('dot') or 'none'}"


def _extras() -> Iterator[str]:
    width = max(map(len, EXTRAS))
    for extra in installed_extras():
        state = "there" if not extra.missing else f"missing {', '.join(extra.missing)}"
        yield f"{extra.name:<{width}} {EXTRAS[extra.name]}: {state}"
    yield "pip install 'mmtrain[NAME]' brings one"
