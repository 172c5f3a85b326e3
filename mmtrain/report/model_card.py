"""A model's page on Hugging Face's hub, README.md: what it is, what it scores, how it is loaded."""

from dataclasses import dataclass
from pathlib import Path

from mmtrain import __version__
from mmtrain.eval.failure import FAILED
from mmtrain.eval.intervals import Interval
from mmtrain.report.evaluations import Evaluation
from mmtrain.report.facts import seen_before
from mmtrain.report.run_folder import RunFolder
from mmtrain.settings.counted import counted
from mmtrain.settings.paths import mask_secrets

_OPEN_CLIP = """\
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("hf-hub:{repository}")
tokenizer = open_clip.get_tokenizer("hf-hub:{repository}")"""
_TRANSFORMERS = """\
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{repository}")
processor = AutoProcessor.from_pretrained("{repository}")"""
_TIMM = """\
import timm

model = timm.create_model("hf-hub:{repository}", pretrained=True)"""
_LOADED = {
    "open-clip": ("open_clip", _OPEN_CLIP),
    "hf": ("transformers", _TRANSFORMERS),
    "timm": ("timm", _TIMM),
}
"""By form: the library whose form it is, and how that loads it."""
_RESULTS = {
    "top1": "top-1",
    "top5": "top-5",
    "accuracy": "accuracy",
    **{f"i2t_recall@{k}": f"image to text, recall at {k}" for k in (1, 5, 10)},
    **{f"t2i_recall@{k}": f"text to image, recall at {k}" for k in (1, 5, 10)},
}
"""Figures that a card shows, all of them shares."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says of a model beside what its run says."""

    repository: str
    """OWNER/NAME."""
    form: str
    """Which of `form_names` its files have."""
    answers: bool
    """Whether it answers questions, rather than match texts."""
    num_parameters: int
    """All of them."""
    image_size: int
    """Pixels of a side."""
    licence: str | None
    """As the hub names it. None: nobody said."""


def model_card(facts: CardFacts, run: RunFolder | None) -> str:
    """The Markdown.

    Args:
        facts: of the model.
        run: that trained it; None: nothing is known of that.
    """
    name = facts.repository.rpartition("/")[2]
    kind = "A model that answers questions about images" if facts.answers else "A CLIP"
    trained = "" if run is None else f", trained with mmtrain {__version__}"
    what = (
        f"{kind} of {facts.num_parameters:,} parameters for images of {facts.image_size} × "
        f"{facts.image_size} pixels{trained}."
    )
    parts = [_front_matter(facts), f"# {name}", what, _loading(facts)]
    if run is not None:
        parts += _results(run) + _training(run)
    licence = "It was not said." if facts.licence is None else f"`{facts.licence}`"
    parts += ["## Licence", licence]
    return "\n\n".join(parts) + "\n"


def _front_matter(facts: CardFacts) -> str:
    task = "visual-question-answering" if facts.answers else "zero-shot-image-classification"
    task = "image-feature-extraction" if facts.form == "timm" else task
    library = _LOADED.get(facts.form, ("mmtrain", ""))[0]
    lines = ["---"]
    if facts.licence is not None:
        lines.append(f"license: {facts.licence}")
    lines += [f"library_name: {library}", f"pipeline_tag: {task}", "tags:", "- mmtrain"]
    return "\n".join([*lines, "---"])


def _loading(facts: CardFacts) -> str:
    address = f"hf://{facts.repository}"
    if facts.answers:
        words = f"mmtrain ask --model {address} --image picture.jpg --question 'What is it?'"
        ours = f"```sh\n{words}\n```"
    elif facts.form == "timm":
        ours = f'```toml\n[model]\nvision_init = "{address}"\n```'
    else:
        code = f'import mmtrain\n\nmodel, preprocess, tokenizer = mmtrain.load("{address}")'
        ours = f"```python\n{code}\n```"
    told = ["## How to load it", "In mmtrain:", ours]
    if facts.form in _LOADED:
        library, code = _LOADED[facts.form]
        told += [f"In {library}:", f"```python\n{code.format(repository=facts.repository)}\n```"]
    return "\n\n".join(told)


def _results(run: RunFolder) -> list[str]:
    """A table, and what is to be known of it; nothing where nothing was evaluated.

    An evaluation that failed when it was last tried has left figures of earlier weights: not here.
    """
    rows = [
        f"| {_cell(one.name)} | {title} | {100 * one.figures[key]:.2f} | "
        f"{_ends(one.intervals.get(key))} | {_count(one)} |"
        for one in run.evaluations
        if not (run.path / "eval" / f"{one.name}{FAILED}").exists()
        for key, title in _RESULTS.items()
        if key in one.figures
    ]
    if not rows:
        return []
    head = "| evaluation | figure | % | 95 % interval | samples |\n|---|---|---|---|---|\n"
    return ["## Results", head + "\n".join(rows), *seen_before(run)]


def _ends(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{100 * interval.low:.2f} to {100 * interval.high:.2f} ({interval.method})"


def _count(evaluation: Evaluation) -> str:
    number = evaluation.figures.get("num_samples", evaluation.figures.get("num_questions"))
    return "" if number is None else f"{number:,.0f}"


def _training(run: RunFolder) -> list[str]:
    """What it learnt from, and the whole recipe."""
    told: list[str] = []
    data = run.facts.get("data")
    if isinstance(data, dict) and isinstance(data.get("num_samples"), int):
        told.append(
            f"- {counted(data['num_samples'], 'sample')} (fingerprint `{data.get('fingerprint')}`)"
        )
        commits = data.get("commits")
        pairs = commits.items() if isinstance(commits, dict) else ()
        told += [f"- `{root}` at commit `{commit}`" for root, commit in pairs]
    if isinstance(steps := run.facts.get("total_steps"), int):
        told.append(f"- {counted(steps, 'step')}")
    models = run.facts.get("models")
    started = models.items() if isinstance(models, dict) else ()
    told += [f"- read `{address}`" for _, address in started]
    # A user's folders are nobody's business; the names of data sets are.
    recipe = mask_secrets(run.recipe).replace(str(Path.home()), "~").strip()
    parts = ["## Data and training", "\n".join(told)] if told else ["## Data and training"]
    if recipe:
        parts.append(f"The recipe, every key with its value:\n\n````toml\n{recipe}\n````")
    return parts


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
