"""Other programs that a run's numbers are shown in: wandb, trackio, TensorBoard.

Each holds again what metrics.jsonl holds, so none of them may end a run.
"""

import contextlib
import importlib.util
import io
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from mmtrain.errors import UsageError
from mmtrain.train.console import Record

_INSTALL = {
    "wandb": "pip install 'mmtrain[track]'",
    "tensorboard": "pip install 'mmtrain[track]'",
    # No extra of ours: it asks pip for a Pillow older than ours, though it works with ours.
    "trackio": "pip install 'mmtrain[serve,remote]' and then, as it asks for an older Pillow, "
    "pip install --no-deps trackio gradio-client orjson",
}
"""By package, which is also the key of [log] that asks for it."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Mirrors of metrics.jsonl; the file itself is always written."""

    wandb: bool = False
    """Mirror to Weights & Biases."""
    wandb_mode: Literal["offline", "online"] = "offline"
    """offline: into the run folder (`wandb sync` uploads it later); online: to the service."""
    wandb_project: str = "mmtrain"
    """The project that the run appears in."""
    trackio: bool = False
    """Mirror to trackio's files in RUN/trackio (`TRACKIO_DIR=RUN/trackio trackio show`)."""
    trackio_project: str = "mmtrain"
    """The project that the run appears in."""
    tensorboard: bool = False
    """Mirror to TensorBoard event files in RUN/tensorboard."""

    def __post_init__(self) -> None:
        asked = {"wandb": self.wandb, "trackio": self.trackio, "tensorboard": self.tensorboard}
        for package, wanted in asked.items():
            if wanted and importlib.util.find_spec(package) is None:
                raise UsageError(
                    f"{package} = true needs the package {package}; "
                    f"{_INSTALL[package]}, or set it to false"
                )


class Mirror(Protocol):
    """A second place for the numbers."""

    name: str
    """As a person calls it."""

    def log(self, step: int, record: Record) -> None: ...

    def close(self) -> None: ...


def build_mirrors(
    run_dir: Path,
    config: LogConfig,
    *,
    start_step: int,
    recipe: dict[str, Any],
    behind: Sequence[Record],
    say: Callable[[str], None],
) -> list[Mirror]:
    """Those that the config asks for; one that cannot start is said, and left out.

    Args:
        run_dir: the run's; their files go into folders of it.
        config: which.
        start_step: updates already done.
        recipe: the resolved one, which wandb and trackio show.
        behind: the records of the steps done, of a run that goes on.
        say: takes a line for a person.
    """
    builders: dict[str, Callable[[], Mirror]] = {}
    if config.tensorboard:
        builders["TensorBoard"] = lambda: _TensorBoard(run_dir, start_step)
    if config.wandb:
        builders["wandb"] = lambda: _Wandb(run_dir, config, recipe)
    if config.trackio:
        builders["trackio"] = lambda: _Trackio(run_dir, config, recipe, behind)
    mirrors: list[Mirror] = []
    for name, build in builders.items():
        try:
            mirrors.append(build())
        # No network, no login, a full disk, a library's own fault: the numbers are in the file.
        except Exception as error:
            say(f"{name} is off: {error}")
    return mirrors


class _TensorBoard:
    name = "TensorBoard"

    def __init__(self, run_dir: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # optional, and slow to import

        folder = str(run_dir / "tensorboard")
        self._writer = SummaryWriter(folder, purge_step=start_step + 1 if start_step else None)

    def log(self, step: int, record: Record) -> None:
        for key, value in record.items():
            if key != "step":
                self._writer.add_scalar(key, value, global_step=step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    name = "wandb"

    def __init__(self, run_dir: Path, config: LogConfig, recipe: dict[str, Any]) -> None:
        import wandb  # optional, and slow to import

        id_file = run_dir / "wandb_id.txt"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        self._run = wandb.init(
            project=config.wandb_project,
            mode=config.wandb_mode,
            dir=str(run_dir),
            id=id_file.read_text(encoding="utf-8"),
            resume="allow",
            name=run_dir.name,
            config=recipe,
            settings=wandb.Settings(console="off"),  # its capture of stdout tears the live line
        )

    def log(self, step: int, record: Record) -> None:
        self._run.log(dict(record), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """Written anew when a run goes on: it has no way to take back the steps that will come again,
    and would keep both."""

    name = "trackio"

    def __init__(
        self,
        run_dir: Path,
        config: LogConfig,
        recipe: dict[str, Any],
        behind: Sequence[Record],
    ) -> None:
        for variable in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
            if os.environ.get(variable):
                raise ValueError(
                    f"{variable} is set, and it would send the numbers there; unset it, and "
                    "`trackio sync` sends them when you like"
                )
        folder = run_dir / "trackio"
        if folder.exists():
            shutil.rmtree(folder)
        with _to_folder(folder):
            # Optional, slow to import, and in no environment of ours.
            import trackio  # pyright: ignore[reportMissingImports]

            run = trackio.init(
                project=config.trackio_project,
                name=run_dir.resolve().name,
                config=recipe,
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        # The module's: a run's own leaves it to the process's end to finish it again, aloud.
        self._run, self._finish = run, trackio.finish
        for record in behind:
            self.log(int(record["step"]), record)

    def log(self, step: int, record: Record) -> None:
        # `step` is a name of its own, beside the numbers.
        self._run.log({key: value for key, value in record.items() if key != "step"}, step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._finish()


@contextlib.contextmanager
def _to_folder(folder: Path) -> Iterator[None]:
    """trackio reads once, as it is imported, where to write; what it prints is not ours to show.

    Raises:
        ValueError: it was imported before, and writes elsewhere.
    """
    place = str(folder.resolve())
    if "trackio" in sys.modules and os.environ.get("TRACKIO_DIR") != place:
        raise ValueError(f"this process imported it before, and it would not write to {place}")
    os.environ["TRACKIO_DIR"] = place
    with contextlib.redirect_stdout(io.StringIO()):
        yield
