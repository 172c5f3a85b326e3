"""What a measurement ran on: one line for the head of every result."""

import os
import platform
from collections.abc import Iterable
from pathlib import Path

import torch

# Vector and matrix units that decide how fast a format is, by their names in /proc/cpuinfo.
_UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe_machine(device: str = "cpu") -> str:
    """Processor or accelerator with the units that matter, and the versions."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name()}; {versions}"
    facts = Path("/proc/cpuinfo")
    text = facts.read_text() if facts.exists() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    units = [unit for unit in _UNITS if f" {unit} " in text]
    name = names[0] if names else platform.machine()
    return f"{name}, {os.cpu_count()} cores ({', '.join(units)}); {versions}"


def kernel_mib(file: str, field: str) -> float:
    """A field of a /proc file that the kernel gives in kB, in MiB."""
    for line in Path(file).read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def reset_peak_memory() -> None:
    """Forget the high-water mark of this process's memory (Linux): `VmHWM` starts anew.

    `getrusage` cannot: a child inherits its parent's mark.
    """
    Path("/proc/self/clear_refs").write_text("5")


def tell_table(lines: Iterable[str], out: Path | None) -> None:
    """Print the lines of a result, and write them to a file where one is named."""
    text = "\n".join(lines)
    print(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    print(describe_machine())
