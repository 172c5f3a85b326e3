"""What a large set costs a rank and a worker: start, memory, look-ups, shuffling an epoch.

Two sets are made in a folder: a catalogue of 40,000 shards and 400 million samples, whose shards
are sparse files (real names and sizes, zeros inside; every twentieth shard's arrays are written,
the others' rows point to them), and many real tiny shards, opened cold (no index), with an index
each, and with a catalogue. Every figure is of a process of its own. `--before FOLDER`, a checkout
of an older version, takes turns on the tiny shards. Run `python benchmarks/data_scale.py`.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zlib
from io import BytesIO
from pathlib import Path
from statistics import median

import numpy as np
from machine import describe_machine

from mmtrain.data.shards.catalogue_file import CatalogueWriter, catalogue_paths
from mmtrain.data.shards.cataloguing import write_catalogues
from mmtrain.data.shards.check import index_shards
from mmtrain.data.shards.index import IndexSummary, ShardIndex, content_hash
from mmtrain.data.storage.open import open_file

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = 10_000
EVERY = 20
SHARD_BYTES = SAMPLES * 2 * 8192

CHILD = """
import json, sys, time
import numpy as np
from mmtrain.data.order.plan import EpochPlan
from mmtrain.data.shards.source import ShardSource

def memory():
    facts = open("/proc/self/smaps_rollup").read().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in facts}
    return kib["Anonymous"] / 1024, (kib["Rss"] - kib["Anonymous"]) / 1024

folder, group, lookups, groups = sys.argv[1], *map(int, sys.argv[2:])
before = memory()
began, cpu = time.perf_counter(), time.process_time()
source = ShardSource(folder)
plan = EpochPlan(source.shard_sizes, seed=0, shuffle_group=group)
plan.samples(0, np.arange(1))
told = {"start_s": time.perf_counter() - began, "start_cpu_s": time.process_time() - cpu}
source.fingerprint
lookups = min(lookups, source.num_samples)
samples = plan.samples(0, np.arange(lookups))
for sample in samples[: lookups // 2].tolist():
    source.read(sample, ("none",))
cpu = time.process_time()
for sample in samples[lookups // 2 :].tolist():
    source.read(sample, ("none",))
told["look_up_us"] = 1e6 * (time.process_time() - cpu) / (lookups - lookups // 2)
after = memory()
told["own_mib"], told["mapped_mib"] = after[0] - before[0], after[1] - before[1]
if groups:
    size = group * source.shard_sizes[0]
    places = np.arange(size, (groups + 1) * size, 1 << 16)  # of all pieces of these groups
    cpu = time.process_time()
    for place in places.tolist():
        plan.sample(1, place)
    told["epoch_shuffle_s"] = (time.process_time() - cpu) / groups * source.num_samples / size
print(json.dumps(told))
"""
"""A rank that starts, looks samples up in the order of an epoch (the first half of them opens
shards), and shuffles some groups of another epoch."""


class SparseWriter(CatalogueWriter):
    """A catalogue whose later rows share the blocks of earlier ones."""

    def share(self, name: str, index: ShardIndex, *, as_row: int) -> None:
        """A row with the arrays of another, which are not written again."""
        end = self._stream.tell()
        self.add_block(name, index.summary, index.keys.size, b"")
        assert self._stream.tell() == end
        for column in ("block_T", "block_crc_T"):
            self._rows[column][-1] = self._rows[column][as_row]


def made_up_index(number: int, pieces_hash: str) -> ShardIndex:
    """Two members a sample, each of 8 KiB with its header; as a tar of zeros would have it."""
    keys = "".join(f"{number:05}{i:04}" for i in range(SAMPLES)).encode()
    members = np.arange(2 * SAMPLES)
    summary = IndexSummary(
        shard_bytes=SHARD_BYTES,
        content_hash=pieces_hash,
        index_hash=hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest(),
        num_samples=SAMPLES,
        num_members=2 * SAMPLES,
        num_ignored=0,
        extensions=("jpg", "txt"),
        has_crc=True,
        crc_hash="0" * 32,
        damage=(),
        has_sizes=True,
    )
    return ShardIndex(
        summary=summary,
        keys=np.frombuffer(keys, dtype=np.uint8),
        key_end_S=np.arange(1, SAMPLES + 1) * 9,
        member_end_S=np.arange(1, SAMPLES + 1) * 2,
        extension_M=members % 2,
        offset_M=members * 8192 + 512,
        size_M=np.full(2 * SAMPLES, 7680),
        header_crc_M=np.full(2 * SAMPLES, zlib.crc32(bytes(512)), dtype=np.uint32),
        crc_M=np.full(2 * SAMPLES, zlib.crc32(bytes(7680)), dtype=np.uint32),
        height_S=np.full(SAMPLES, 256),
        width_S=np.full(SAMPLES, 256),
    )


def make_simulated(folder: Path, num_shards: int) -> None:
    """The shards as sparse files, and their catalogue."""
    if folder.exists():
        return
    folder.mkdir(parents=True)
    for number in range(num_shards):
        with (folder / f"{number:05}.tar").open("wb") as file:
            file.truncate(SHARD_BYTES)
    with open_file(str(folder / "00000.tar")) as file:
        pieces_hash = content_hash(file)
    writer = SparseWriter(catalogue_paths(str(folder), None)[0])
    index = made_up_index(0, pieces_hash)
    for number in range(num_shards):
        if number % EVERY == 0:
            index = made_up_index(number, pieces_hash)
            writer.add(f"{number:05}.tar", index)
        else:
            writer.share(f"{number:05}.tar", index, as_row=number // EVERY * EVERY)
    writer.close()


def make_tiny(folder: Path, num_shards: int) -> None:
    """Real shards of 10 samples."""
    if folder.exists():
        return
    folder.mkdir(parents=True)
    for number in range(num_shards):
        with tarfile.open(folder / f"{number:05}.tar", "w") as tar:
            for i in range(10):
                for extension, size in (("jpg", 600), ("txt", 30)):
                    member = tarfile.TarInfo(f"{number:05}{i:04}.{extension}")
                    member.size = size
                    tar.addfile(member, BytesIO(bytes(size)))


def measure(
    folder: Path, *, root: Path, group: int = 32, lookups: int = 20_000, groups: int = 0
) -> dict[str, float]:
    """What `CHILD` tells, by the code of a checkout."""
    words = [sys.executable, "-c", CHILD, str(folder), *map(str, (group, lookups, groups))]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def without_indexes(folder: Path) -> None:
    """Only the shards stay."""
    for path in folder.iterdir():
        if path.suffix != ".tar":
            path.unlink()


def report_simulated(folder: Path, rounds: int) -> None:
    """A line for each shuffle_group."""
    print("| shuffle_group | start, s | own, MiB | shared, MiB | look-up, us | epoch, s |")
    print("|---|---|---|---|---|---|")
    for group in (32, 128, 1024):
        lookups = min(200_000, 600 * group)
        groups = 20 if group < 1024 else 2
        runs = [
            measure(folder, root=ROOT, group=group, lookups=lookups, groups=groups)
            for _ in range(rounds)
        ]
        names = ("start_s", "own_mib", "mapped_mib", "look_up_us", "epoch_shuffle_s")
        cells = [spread([run[name] for run in runs]) for name in names]
        print(f"| {group} | {' | '.join(cells)} |", flush=True)


def report_tiny(folder: Path, before: Path | None, rounds: int) -> None:
    """Starts of the real shards, by turns with an older version."""
    roots = {"before": before, "now": ROOT} if before is not None else {"now": ROOT}
    starts: dict[str, list[dict[str, float]]] = {}
    lookups: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, root in roots.items():
            without_indexes(folder)
            run = measure(folder, root=root, lookups=4)
            starts.setdefault(f"{name}, no index", []).append(run)
            for group in (32, 1024):
                run = measure(folder, root=root, group=group, lookups=10_000)
                lookups.setdefault(f"{name}, an index each, group {group}", []).append(
                    run["look_up_us"]
                )
            starts.setdefault(f"{name}, an index each", []).append(run)
        report = index_shards(str(folder))
        write_catalogues(report.shards)
        for group in (32, 1024):
            run = measure(folder, root=ROOT, group=group, lookups=10_000)
            lookups.setdefault(f"now, a catalogue, group {group}", []).append(run["look_up_us"])
        starts.setdefault("now, a catalogue", []).append(run)
    print("| tiny shards | start, s | processor time, s |")
    print("|---|---|---|")
    for name, runs in starts.items():
        cells = [spread([run[each] for run in runs]) for each in ("start_s", "start_cpu_s")]
        print(f"| {name} | {' | '.join(cells)} |")
    print()
    print("| tiny shards | look-up, us |")
    print("|---|---|")
    for name, values in lookups.items():
        print(f"| {name} | {spread(values)} |")


def spread(values: list[float]) -> str:
    """Median, smallest and largest."""
    return f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    """Make the sets, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="kept for another run (a temporary one)")
    parser.add_argument("--before", type=Path, help="a checkout of an older version")
    parser.add_argument("--shards", type=int, default=40_000)
    parser.add_argument("--tiny", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        make_simulated(folder / "simulated", options.shards)
        make_tiny(folder / "tiny", options.tiny)
        size = catalogue_paths(str(folder / "simulated"), None)[0].stat().st_size
        print(f"# {options.shards:,} shards, {options.shards * SAMPLES:,} samples, a rank\n")
        print(
            f"{describe_machine()}; a catalogue of {size / 2**30:.1f} GiB, {EVERY} shards to a "
            "block of arrays. Seconds of wall clock to open the shards and begin an epoch. After "
            "the look-ups: memory of the process's own beyond the imports', and pages of the "
            "catalogue, which all processes share and the kernel takes back where it needs them. "
            "Processor time of a look-up once its shard was met, and of shuffling all groups of an "
            f"epoch. Median (smallest to largest) of {options.rounds} rounds.\n"
        )
        report_simulated(folder / "simulated", options.rounds)
        print(f"\n{options.tiny:,} real shards of 10 samples:\n")
        report_tiny(folder / "tiny", options.before, options.rounds)


if __name__ == "__main__":
    main()
