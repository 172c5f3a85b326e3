"""Installs mmtrain from a wheel into environments of its own and tries what it ships there.

    python tools/check_install.py                                    # this Python, the newest torch
    python tools/check_install.py --python python3.11 python3.13 --torch 2.11.0 newest
    python tools/check_install.py --python all                       # every Python that is here
    python tools/check_install.py --torch-index https://download.pytorch.org/whl/cpu
    python tools/check_install.py --demo=--train.steps=3             # also the demo, a short one

Each environment is made in a new folder, the commands run in an empty one, and no checkout is on
their path. A combination for which there is no Python or no torch is told and passed over; the exit
status is 1 where the wheel could not be installed beside its torch or a command failed, 2 where no
environment could be made. The last lines have each combination in one line.

`--python all` are the versions that pyproject.toml allows, from the oldest to NEWEST_PYTHON: each
as the first python3.N on the path that runs, or else as pyenv or uv has it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEWEST = "newest"
ALL = "all"
NEWEST_PYTHON = 14
EXTRAS = "onnx,serve"
PARITY = """
import numpy, onnxruntime, torch, mmtrain
model, preprocess, tokenizer = mmtrain.load("run")
side = model.config.vision.image_size
draw = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=draw)
graph = onnxruntime.InferenceSession("graphs/image.onnx")
(theirs,) = graph.run(None, {graph.get_inputs()[0].name: images.numpy()})
with torch.no_grad():
    ours = model.encode_image(images).numpy()
print(f"parity {numpy.abs(ours - theirs).max() < 1e-4}")
"""
LABELLED = """
import io, json, pathlib, sys, tarfile
pictures, classes, folder = sys.argv[1:]
known = json.load(open(classes))
ids = [one["id"] for one in known]
with tarfile.open(pictures) as old, tarfile.open(folder + "/test/0.tar", "w") as new:
    for member in old:
        content, key = old.extractfile(member).read(), member.name.partition(".")[0]
        if member.name.endswith(".json"):
            content = str(ids.index(json.loads(content)["concept"])).encode()
            member = tarfile.TarInfo(key + ".cls")
        member.size = len(content)
        new.addfile(member, io.BytesIO(content))
place = pathlib.Path(folder)
(place / "classnames.txt").write_text("\\n".join(one["name"] for one in known))
(place / "zeroshot_classification_templates.txt").write_text("a drawing of {c}")
"""
SITE = "import mmtrain, pathlib; print(pathlib.Path(mmtrain.__file__).parent)"


class Environment:
    """A Python of its own with mmtrain in it, and an empty folder to work in."""

    def __init__(self, folder: Path):
        self.bin, self.work = folder / "venv" / "bin", folder / "work"
        self.work.mkdir(parents=True)
        self._kept = {name: word for name, word in os.environ.items() if name != "PYTHONPATH"}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A program of the environment."""
        return subprocess.run(
            [str(self.bin / words[0]), *words[1:]],
            cwd=self.work,
            env=self._kept,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def check(self, told: str, *words: str) -> bool:
        """Run a command, which must end well and say `told`; tell how it went."""
        done = self.run(*words)
        good = done.returncode == 0 and told in done.stdout + done.stderr
        print(f"  {'ok  ' if good else 'FAIL'}  {' '.join(words)[:90].splitlines()[0]}", flush=True)
        if not good:
            print(done.stdout[-2000:] + done.stderr[-2000:], flush=True)
        return good


def make(folder: Path, *, python: str, torch: str, index: str | None) -> str | None:
    """Make the environment with its torch; why it could not be, in pip's last words, or None."""
    if shutil.which(python) is None:
        return f"there is no {python} here"
    made = subprocess.run([python, "-m", "venv", str(folder / "venv")], check=False)
    if made.returncode:
        return f"{python} makes no environment"
    pip = [str(folder / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    line = [*pip, "torch" if torch == NEWEST else f"torch=={torch}"]
    if index is not None:
        line += ["--index-url", index]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
    return None


def all_pythons() -> list[str]:
    """A program of every version that pyproject.toml allows, the oldest first; of one that is
    nowhere its name, so that it is told."""
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    oldest = int(asked.removeprefix(">=3."))
    return [_python(f"python3.{minor}") for minor in range(oldest, NEWEST_PYTHON + 1)]


def _python(name: str) -> str:
    homes = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"]
    homes.append(
        Path(os.environ.get("UV_PYTHON_INSTALL_DIR", Path.home() / ".local/share/uv/python"))
    )
    found = [Path(folder) / name for folder in os.environ.get("PATH", "").split(os.pathsep)]
    for home in homes:
        found += sorted(home.glob(f"*/bin/{name}"), reverse=True)
    return next((str(path) for path in found if _runs(path)), name)


def _runs(path: Path) -> bool:
    """Whether it is a Python; a shim of pyenv's for a version that is not chosen is none."""
    if not os.access(path, os.X_OK):
        return False
    words = [str(path), "-c", "import ensurepip, venv"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def try_wheel(here: Environment, wheel: Path, *, demo: list[str] | None) -> bool:
    """Install the wheel beside the torch that is there, and try it."""
    asked = f"mmtrain[{EXTRAS}] @ {wheel.as_uri()}"
    is_in = here.check("", "python", "-m", "pip", "install", "--quiet", asked)
    return is_in and try_commands(here, demo=demo)


def told_version(here: Environment) -> str:
    """Which Python and torch an environment has."""
    code = "import platform, torch; print(platform.python_version(), torch.__version__)"
    python, _, torch = here.run("python", "-c", code).stdout.strip().partition(" ")
    return f"Python {python or '?'}, torch {torch or '?'}"


def try_commands(here: Environment, *, demo: list[str] | None) -> bool:
    """What a user does first, and everything that reads a file which is shipped."""
    site = Path(here.run("python", "-c", SITE).stdout.strip())
    if ROOT in site.parents:
        print(f"  FAIL  the checkout is on the path: {site}")
        return False
    print(f"  {size_of(here.bin.parent):,} MB of environment")
    pictures, classes = site / "demo/debug/train.tar", site / "demo/debug/classes.json"
    (here.work / "based.toml").write_text('base = "debug_clip"\n[run]\ndir = "based"\n')
    kept = here.work / "sets" / "wds_cars"
    checks = [
        ("COMMAND", "mmtrain"),
        ("torch", "mmtrain", "--version"),
        ("complete -o", "mmtrain", "completion", "bash"),
        ("ViT-B-32", "mmtrain", "models"),
        ("extras", "mmtrain", "doctor"),
        ("clip_vit_b32", "mmtrain", "recipes"),
        ("wrote", "mmtrain", "recipes", "debug_clip"),
        ("done: run", "mmtrain", "train", "debug_clip.toml", "--run-dir", "run"),
        ("done: based", "mmtrain", "train", "based.toml", "--train.steps", "2"),
        (
            *("top1", "mmtrain", "eval", "zero-shot", "--model", "run", "--data", str(pictures)),
            *("--classes", str(classes), "--out", "zero_shot.json"),
        ),
        ("features", "mmtrain", "export", "run", "--format", "onnx", "--out", "graphs"),
        ("parity True", "python", "-c", PARITY),
        ("wrote", "mmtrain", "report", "run", "based"),
        ("parameters", "mmtrain", "summary", "ViT-B-32", "--graph", "towers.svg"),
        ("wrote", "mmtrain", "data", "stats", str(pictures), "--out", "stats.html"),
        (
            *("cars: top1", "mmtrain", "eval", "suite", "clip_benchmark", "--root", "sets"),
            *("--models", "run", "--out", "table"),
        ),
    ]
    if demo is not None:
        checks.append(("Twemoji", "mmtrain", "demo", *demo))
    (kept / "test").mkdir(parents=True)
    here.run("python", "-c", LABELLED, str(pictures), str(classes), str(kept))
    return all([here.check(*check) for check in checks])


def size_of(folder: Path) -> int:
    """Megabytes of the files in it."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) // 10**6


def main() -> int:
    """Make each environment, try it, remove it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--python",
        nargs="+",
        default=[sys.executable],
        metavar="PROGRAM",
        help="interpreters, or all: every version that is here (this one)",
    )
    parser.add_argument("--torch", nargs="+", default=[NEWEST], metavar="VERSION")
    parser.add_argument("--torch-index", metavar="URL", help="where pip takes torch from")
    parser.add_argument("--demo", nargs="*", metavar="WORD", help="also the demo, with these words")
    asked = parser.parse_args()
    pythons = all_pythons() if asked.python == [ALL] else asked.python
    pairs = [(python, torch) for python in pythons for torch in asked.torch]
    good, made = True, 0
    ends: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, str(ROOT)],
            check=True,
        )
        (wheel,) = place.glob("mmtrain-*.whl")
        for number, (python, torch) in enumerate(pairs):
            print(f"{python}, torch {torch}:", flush=True)
            own = place / str(number)
            fault = make(own, python=python, torch=torch, index=asked.torch_index)
            if fault is not None:
                print(f"  not made: {fault}", flush=True)
                ends.append(f"not made  {python}, torch {torch}: {fault}")
                shutil.rmtree(own, ignore_errors=True)
                continue
            made += 1
            here = Environment(own)
            went = try_wheel(here, wheel, demo=asked.demo)
            ends.append(f"{'ok' if went else 'FAIL':8}  {told_version(here)} ({python})")
            good &= went
            shutil.rmtree(own)
    print("\n".join(["", *ends]))
    return 2 if made == 0 else 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
