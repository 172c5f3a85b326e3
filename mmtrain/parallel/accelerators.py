"""What accelerators can do at most, by the makers' data sheets: dense products, no sparsity.

| device      | from                                                                              |
|-------------|-----------------------------------------------------------------------------------|
| A100        | NVIDIA A100 Tensor Core GPU data sheet (SXM4)                                     |
| H100, H200  | NVIDIA H100 and H200 Tensor Core GPU data sheets (SXM5; PCIe and NVL by name)      |
| B200        | NVIDIA HGX B200 data sheet, an eighth of its eight GPUs                           |
| L40S, L4    | NVIDIA L40S and L4 data sheets                                                    |
| MI300X      | AMD Instinct MI300X data sheet                                                    |

Their 16-bit figures with sparsity are halved.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One device."""

    name: str
    """What a user calls it."""
    marks: tuple[str, ...]
    """Words of the name that its driver gives, all of them."""
    bf16_tflops: float
    """Of bf16 and fp16 products with fp32 sums."""
    fp32_tflops: float
    """Of fp32 products without TF32."""
    memory_gb: float
    """10^9 bytes."""
    memory_gb_per_s: float
    """Of its own memory."""
    link_gb_per_s: float
    """To the others of its machine, one way."""


# The first whose marks are in a device's name: variants before what they are variants of.
ACCELERATORS = (
    Accelerator(
        name="h100-pcie",
        marks=("H100", "PCIe"),
        bf16_tflops=756,
        fp32_tflops=51,
        memory_gb=80,
        memory_gb_per_s=2000,
        link_gb_per_s=64,
    ),
    Accelerator(
        name="h100-nvl",
        marks=("H100", "NVL"),
        bf16_tflops=835,
        fp32_tflops=60,
        memory_gb=94,
        memory_gb_per_s=3900,
        link_gb_per_s=300,
    ),
    Accelerator(
        name="h100",
        marks=("H100",),
        bf16_tflops=989,
        fp32_tflops=67,
        memory_gb=80,
        memory_gb_per_s=3350,
        link_gb_per_s=450,
    ),
    Accelerator(
        name="h200-nvl",
        marks=("H200", "NVL"),
        bf16_tflops=835,
        fp32_tflops=60,
        memory_gb=141,
        memory_gb_per_s=4800,
        link_gb_per_s=450,
    ),
    Accelerator(
        name="h200",
        marks=("H200",),
        bf16_tflops=989,
        fp32_tflops=67,
        memory_gb=141,
        memory_gb_per_s=4800,
        link_gb_per_s=450,
    ),
    Accelerator(
        name="b200",
        marks=("B200",),
        bf16_tflops=2250,
        fp32_tflops=75,
        memory_gb=180,
        memory_gb_per_s=7700,
        link_gb_per_s=900,
    ),
    Accelerator(
        name="a100-40gb",
        marks=("A100", "40GB"),
        bf16_tflops=312,
        fp32_tflops=19.5,
        memory_gb=40,
        memory_gb_per_s=1555,
        link_gb_per_s=300,
    ),
    Accelerator(
        name="a100",
        marks=("A100",),
        bf16_tflops=312,
        fp32_tflops=19.5,
        memory_gb=80,
        memory_gb_per_s=2039,
        link_gb_per_s=300,
    ),
    Accelerator(
        name="l40s",
        marks=("L40S",),
        bf16_tflops=362,
        fp32_tflops=91.6,
        memory_gb=48,
        memory_gb_per_s=864,
        link_gb_per_s=32,
    ),
    Accelerator(
        name="l4",
        marks=("L4",),
        bf16_tflops=121,
        fp32_tflops=30.3,
        memory_gb=24,
        memory_gb_per_s=300,
        link_gb_per_s=32,
    ),
    Accelerator(
        name="mi300x",
        marks=("MI300X",),
        bf16_tflops=1307,
        fp32_tflops=163.4,
        memory_gb=192,
        memory_gb_per_s=5300,
        link_gb_per_s=448,
    ),
)


def find_accelerator(device_name: str) -> Accelerator | None:
    """What a driver's name stands for; None: not known."""
    words = set(device_name.replace("-", " ").split())
    for one in ACCELERATORS:
        if words.issuperset(one.marks):
            return one
    return None


def peak_tflops(one: Accelerator, precision: str) -> float | None:
    """Of a run's products; None where they are in a format that the table has not."""
    if precision == "fp32":
        return one.fp32_tflops
    if precision == "tf32":
        return one.bf16_tflops / 2  # of all of them
    return one.bf16_tflops if precision.startswith("bf16") or precision == "fp16" else None
