"""Small folders in CLIP benchmark's form, a suite over them, and tiny models to judge."""

from pathlib import Path

from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.loading import save_model
from tests.data.shard_files import encoded, picture, write_shard
from tests.serve.tiny import SIDE, TOKENIZER, tiny_clip

SUITE = """\
root = "data"

[metric]
pets = "mean_class_top1"
coco = "t2i_recall@5"

[average]
animals = ["pets", "birds"]

[[zero_shot]]
name = "pets"
data = "wds_pets"

[[zero_shot]]
name = "birds"
data = "wds_birds"

[[knn]]
name = "pets-knn"
train = "wds_pets/train"
test = "wds_pets"
neighbours = 3

[[linear_probe]]
name = "pets-probe"
train = "wds_pets/train"
test = "wds_pets"
strengths = [1.0]

[[retrieval]]
name = "coco"
data = "wds_coco/test"
caption_lines = true
"""
"""Five evaluations of three folders: one pass over the images of wds_pets/test is enough."""


def write_wds(
    root: Path, *, seed: int, count: int = 9, splits: tuple[str, ...] = ("test",)
) -> Path:
    """A folder of CLIP benchmark's, of three classes and two captions an image."""
    for place, split in enumerate(splits):
        (root / split).mkdir(parents=True, exist_ok=True)
        samples = [
            (
                f"s{number:04d}",
                {
                    "cls": str(number % 3),
                    "png": encoded(
                        picture((25, 20), seed=1000 * seed + 100 * place + number), "PNG"
                    ),
                    "txt": f"caption {number} one\ncaption {number} two\n",
                },
            )
            for number in range(count + 4 * place)
        ]
        write_shard(root / split / "0.tar", samples)
    (root / "classnames.txt").write_text("red fox\nowl\nhare\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nthe {c}\n")
    return root


def write_model(folder: Path, seed: int) -> Path:
    """An export of random weights."""
    clip = tiny_clip().init_weights(seed).eval()
    preprocess = PreprocessConfig(image_size=SIDE)
    save_model(folder, model=clip, tokenizer=TOKENIZER, preprocess=preprocess)
    return folder


def write_everything(folder: Path, *, num_models: int = 3, count: int = 9) -> Path:
    """suite.toml, data/ and the models a, b, c ..."""
    write_wds(folder / "data/wds_pets", seed=0, count=count, splits=("test", "train"))
    write_wds(folder / "data/wds_birds", seed=1, count=count + 2)
    write_wds(folder / "data/wds_coco", seed=2, count=count)
    (folder / "suite.toml").write_text(SUITE)
    for seed in range(num_models):
        write_model(folder / "abcdef"[seed], seed)
    return folder


def suite_words(folder: Path, *more: str, models: str = "abc", out: str = "out") -> list[str]:
    """What `mmtrain` takes to run it."""
    paths = [str(folder / name) for name in models]
    words = ["eval", "suite", str(folder / "suite.toml"), "--root", str(folder / "data")]
    return [*words, "--models", *paths, "--out", str(folder / out), *more]


def table_files(out: Path) -> dict[str, bytes]:
    """What a finished suite wrote of its table."""
    return {name: (out / f"table.{name}").read_bytes() for name in ("json", "csv", "html")}
