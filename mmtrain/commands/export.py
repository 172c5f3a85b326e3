"""`mmtrain export` and `convert`: a model in a form that other tools load."""

from pathlib import Path

from mmtrain.loading import export_model
from mmtrain.progress import Progress, speaker
from mmtrain.settings.paths import new_folder


def export_command(
    *,
    model: str,
    out: Path,
    form: str,
    weights: str | None,
    architecture: str | None,
    quiet: bool = False,
) -> None:
    """`mmtrain export`: a run's or a folder's model in a form that other tools load."""
    say = speaker(quiet)
    with new_folder(out) as folder, Progress("parts", quiet=quiet) as progress:
        differences = export_model(
            model,
            out=folder,
            form=form,
            architecture=architecture,
            weights=weights,
            say=say,
            progress=progress,
        )
    for line in differences:
        print(f"tokenizer: {line}")
    say(f"wrote {out} ({form})")
