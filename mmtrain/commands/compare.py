"""`mmtrain compare`: results of `mmtrain eval` on the same samples, in words."""

import sys
from collections.abc import Sequence
from pathlib import Path

from mmtrain.data.sources.source import IMAGE_KEY
from mmtrain.errors import UsageError
from mmtrain.eval.comparison import Comparison, compare_results, said_otherwise, verdict
from mmtrain.eval.paired import Paired
from mmtrain.files import real_path
from mmtrain.settings.paths import refuse_unwritable


def compare_command(
    *,
    a: Path,
    others: Sequence[Path],
    out: Path | None,
    data: tuple[str, ...],
    questions: str | None,
    image_key: str,
) -> None:
    """Print each of the others against A: every figure's difference with its interval, whole and by
    type; with `out` also write a page.

    Raises:
        UsageError: a file cannot be read or is named twice, they are of other samples, an option
            has no effect, the page cannot be written.
    """
    _refuse_idle(out, data, questions, image_key)
    _refuse_names(a, others, out)
    found = [compare_results(a, b) for b in others]
    for b, comparisons in zip(others, found, strict=True):
        for line in said_otherwise(a, b):
            print(f"mmtrain: {line}", file=sys.stderr)
        print(f"A = {a}\nB = {b}")
        for one in comparisons:
            _tell(one)
    if out is not None:
        # Torch, with the pictures' sources: seconds that the words need not wait for.
        from mmtrain.commands.compare_pictures import read_pictures
        from mmtrain.report.paired import write_comparison

        pictures = read_pictures(found, data, questions=questions, image_key=image_key)
        write_comparison(out, a, others, found, pictures=pictures)
        print(f"wrote {out}")


def _refuse_idle(
    out: Path | None, data: tuple[str, ...], questions: str | None, image_key: str
) -> None:
    for option, given, needed, has in (
        ("--data", bool(data), "--out", out is not None),
        ("--questions", questions is not None, "--data", bool(data)),
        ("--image-key", image_key != IMAGE_KEY, "--data", bool(data)),
    ):
        if given and not has:
            raise UsageError(
                f"{option} has no effect without {needed}; name it, or leave {option} out"
            )


def _refuse_names(a: Path, others: Sequence[Path], out: Path | None) -> None:
    named = [real_path(path) for path in others]
    for number, path in enumerate(others):
        if named[number] in named[:number]:
            raise UsageError(f"{path} is named twice; name every result once")
    for folder in filter(Path.is_dir, (a, *others)):
        found = [path for path in sorted(folder.glob("eval/*.json")) if ".failed" not in path.name]
        example = found[0] if found else folder / "eval/NAME.json"
        raise UsageError(
            f"{folder} is a folder; name a result in it, such as {example} (`mmtrain report` "
            "compares runs)"
        )
    if out is not None and out.suffix not in (".html", ".htm"):
        raise UsageError(f"out = {out} must end in .html")
    if out is not None:
        refuse_unwritable(out, "out")


def _tell(one: Comparison) -> None:
    whole = one.whole
    print(
        f"{one.metric}: {verdict(whole)} ({whole.a:.2%} in A, {whole.b:.2%} in B; {whole.num:,} "
        f"outcomes of {whole.num_images:,} images)"
    )
    if whole.table is not None:
        both, only_a, only_b, neither = whole.table
        print(
            f"  right in both {both:,}, only in A {only_a:,}, only in B {only_b:,}, in neither "
            f"{neither:,}; McNemar's test p = {whole.p_value:.2g}, as if all were independent"
        )
    for row in one.rows:
        print(f"  {f'{row.name} {row.kind}':32} {_short(row.paired)}")
    for name, num in one.num_types.items():
        if num > (shown := sum(row.name == name for row in one.rows)):
            print(
                f"  of {num:,} types of {name} the {shown} that differ most; some would by chance"
            )


def _short(paired: Paired) -> str:
    told = f"{100 * paired.difference:+6.2f} points"
    if paired.interval is None:
        return f"{told}, of one image ({paired.num:,})"
    low, high = (100 * end for end in paired.interval)
    return f"{told}, {low:+.2f} to {high:+.2f} ({paired.num:,})"
