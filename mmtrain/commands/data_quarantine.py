"""`mmtrain data quarantine`: the samples that a run could not use."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmtrain.checkpoint.checkpoint import read_state
from mmtrain.checkpoint.inspection import checkpoints_in
from mmtrain.commands.outputs import refuse_out
from mmtrain.data.bad_samples import BAD_SAMPLES_FILE, Met, listed
from mmtrain.errors import UsageError
from mmtrain.files import replace_file
from mmtrain.report.run_folder import RunFolder, is_run, read_run
from mmtrain.settings.read_toml import read_toml


def data_quarantine_command(*, run: Path, json_out: Path | None) -> None:
    """`mmtrain data quarantine`: counts by source and reason, the samples, and where all are.

    Args:
        run: a run's folder, whose file names them, or a checkpoint, whose list does.
        json_out: a file for the samples; None: none.

    Raises:
        UsageError: there is neither.
    """
    if json_out is not None:
        refuse_out(json_out, "--json", ".json")
    folder = read_run(run) if is_run(run) else None
    if folder is not None and (folder.bad_samples or not (run / "checkpoints").is_dir()):
        met, origin = _met_in(folder), run / BAD_SAMPLES_FILE
    else:
        origin = checkpoints_in(run)[-1]
        met = _met_at(origin)
    print(f"# {origin}: {len(met):,} samples could not be used, met {met.total():,} times")
    for line in (*_counts(met), *_samples(met)):
        print(line)
    if folder is not None:
        for line in _readable_accounts(folder):
            print(f"# {line}")
    if json_out is not None:
        rows = [sample._asdict() | {"times": times} for sample, times in met.most_common()]
        replace_file(json_out, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
        print(f"# wrote {json_out}")


def _readable_accounts(folder: RunFolder) -> list[str]:
    try:
        return list(_accounts(folder))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{folder.path}: its epochs cannot be added up: recipe.toml, run.json or metrics.jsonl "
            f"is damaged or another version's ({type(error).__name__}: {error})"
        ) from error


def _met_in(folder: RunFolder) -> Counter[Met]:
    names = Met._fields
    return Counter(Met(*(str(row.get(name, "")) for name in names)) for row in folder.bad_samples)


def _met_at(checkpoint: Path) -> Counter[Met]:
    try:
        return Counter(listed(read_state(checkpoint)["bad_samples"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{checkpoint} cannot be read ({error}); mmtrain checkpoint verify says what is damaged"
        ) from error


def _counts(met: Counter[Met]) -> Iterator[str]:
    """A line for each source and reason, the most frequent first."""
    times: Counter[tuple[str, str]] = Counter()
    samples = Counter((sample.source, sample.reason) for sample in met)
    for sample, count in met.items():
        times[sample.source, sample.reason] += count
    if times:
        yield "source\treason\tsamples\ttimes"
    for (source, reason), count in times.most_common():
        yield f"{source or '-'}\t{reason}\t{samples[source, reason]}\t{count}"


def _samples(met: Counter[Met]) -> Iterator[str]:
    if met:
        yield "\nsource\treason\ttimes\tkey\tshard\tdetail"
    for sample, times in met.most_common():
        cells = (sample.source or "-", sample.reason, times, sample.key, sample.shard)
        yield "\t".join([*map(str, cells), sample.detail or "-"])


def _accounts(folder: RunFolder) -> Iterator[str]:
    """Where all samples are: of each epoch, or of each source of a mixture."""
    if not folder.metrics or not folder.facts.get("data"):
        return
    # Bad ones that were tried in place of others are not of the plan.
    planned = [row for row in folder.bad_samples if not row.get("is_replacement")]
    if given := folder.metrics[-1].get("source_samples"):
        bad = Counter(row.get("source", "") for row in planned)
        for name, count in given.items():
            own = bad[name]
            yield f"{name}: {count:,} planned = {count - own:,} delivered + {own:,} bad, replaced"
        return
    if not folder.facts.get("phases"):
        yield from _epochs(folder, planned)
    elif settled := folder.metrics[-1].get("epoch_accounts"):
        sums = settled["data"]  # epochs of batches of several sizes: as the run added them up
        yield (
            f"the first {sums['epochs']:,} epochs: {sums['indexed']:,} indexed = "
            f"{sums['delivered']:,} delivered + {sums['bad']:,} bad, replaced + "
            f"{sums['dropped']:,} dropped"
        )


def _epochs(folder: RunFolder, planned: list[dict[str, Any]]) -> Iterator[str]:
    data = folder.facts["data"]
    num_samples, per_epoch = data["num_samples"], data["batches_per_epoch"]
    if not per_epoch:
        yield "of a stream nobody knows how many samples there are: nothing to add up"
        return
    size = read_toml(folder.path / "recipe.toml")["train"]["batch_size"]
    steps = max(folder.metrics[-1]["step"], *(row["step"] + 1 for row in planned), 0)
    bad = Counter(row["step"] // per_epoch for row in planned)
    for epoch in range(-(-steps // per_epoch)):
        done = min(steps - epoch * per_epoch, per_epoch)
        rows = min(done * size, num_samples)
        rest = "dropped" if done == per_epoch else "to come or dropped"
        yield (
            f"epoch {epoch}: {num_samples:,} indexed = {rows - bad[epoch]:,} delivered + "
            f"{bad[epoch]:,} bad, replaced + {num_samples - rows:,} {rest}"
        )
