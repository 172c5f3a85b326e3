"""wandb, trackio and TensorBoard beside metrics.jsonl."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mmtrain.errors import UsageError
from mmtrain.train.metric_mirrors import LogConfig
from mmtrain.train.metrics import MetricsLog, read_metrics


def write(run_dir: Path, steps: range, *, start: int = 0, **config: Any) -> str:
    """Log some steps -> what the console showed."""
    stream = io.StringIO()
    log = MetricsLog(run_dir, LogConfig(**config), total_steps=10, start_step=start, stream=stream)
    with log:
        for step in steps:
            log.log({"step": step, "loss": 1.0 / step, "by_source": {"a": 0.5}})
    return stream.getvalue()


@pytest.mark.slow
def test_mirrors(tmp_path: Path) -> None:
    """wandb offline and TensorBoard hold the numbers too; both live in the run folder."""
    write(tmp_path, range(1, 4), wandb=True, tensorboard=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_outage_of_a_mirror_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb that cannot start or fails later is said once; metrics.jsonl has everything."""
    import wandb

    def refuse(**kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(wandb, "init", refuse)
    shown = write(tmp_path / "at once", range(1, 4), wandb=True)
    assert shown.count("wandb is off: no route to host") == 1
    assert len(read_metrics(tmp_path / "at once/metrics.jsonl")) == 3

    class Failing:
        """Takes one record, then the service is gone."""

        def __init__(self) -> None:
            self.steps: list[int] = []

        def log(self, record: dict, step: int) -> None:
            if self.steps:
                raise ConnectionError("the service went away")
            self.steps.append(step)

        def finish(self) -> None:
            raise ConnectionError("still away")

    service = Failing()
    monkeypatch.setattr(wandb, "init", lambda **kwargs: service)
    shown = write(tmp_path / "later", range(1, 4), wandb=True)
    assert service.steps == [1] and shown.count("is off from here on: the service went away") == 1
    assert len(read_metrics(tmp_path / "later/metrics.jsonl")) == 3
    service.steps = []
    shown = write(tmp_path / "at the end", range(1, 2), wandb=True)
    assert shown.count("did not close: still away") == 1


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for and not installed: an error, not a silent miss."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'mmtrain\[track\]'"):
        LogConfig(wandb=True)


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """One of its interface, imported at each start, whose database is a file of JSON lines.

    The library itself cannot be installed beside our Pillow by pip, so tests are not given it.
    """
    real = ModuleType("trackio")

    def init(*, project: str, name: str, config: dict, **how: Any) -> Any:
        import os

        print(f"* Trackio project initialized: {project}")
        folder = Path(os.environ["TRACKIO_DIR"])
        folder.mkdir()
        assert how == {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        real.current = Run(folder / f"{project}.db", name)  # type: ignore[attr-defined]
        return real.current

    def finish() -> None:
        print("* Run finished.")
        real.current = None  # type: ignore[attr-defined]

    class Run:
        def __init__(self, path: Path, name: str) -> None:
            self.path, self.name = path, name

        def log(self, metrics: dict, step: int) -> None:
            assert "step" not in metrics, "trackio's own name"
            with self.path.open("a") as file:
                file.write(json.dumps([self.name, step, metrics]) + "\n")

    real.init, real.finish = init, finish  # type: ignore[attr-defined]

    class Finder:
        """So that `import trackio` finds it, once a process."""

        def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
            if name != "trackio":
                return None
            from importlib.machinery import ModuleSpec

            return ModuleSpec(name, self)

        def create_module(self, spec: Any) -> ModuleType:
            return real

        def exec_module(self, module: ModuleType) -> None:
            pass

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    for variable in ("TRACKIO_DIR", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.setenv(variable, "")
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    yield real
    sys.modules.pop("trackio", None)


def rows(run_dir: Path, project: str = "mmtrain") -> list[Any]:
    """What trackio has: the run's name, step, numbers."""
    text = (run_dir / f"trackio/{project}.db").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_trackio_is_in_the_run_folder_and_says_nothing(
    trackio: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its own words would stand in the middle of the console's live line."""
    shown = write(tmp_path / "run", range(1, 4), trackio=True, trackio_project="mine")
    numbers = {"by_source/a": 0.5}
    assert rows(tmp_path / "run", "mine") == [
        ["run", step, {"loss": 1.0 / step, **numbers}] for step in (1, 2, 3)
    ]
    assert capfd.readouterr().out == "" and "rackio" not in shown
    assert trackio.current is None, "it would be finished again, aloud, as the process ends"


def test_trackio_has_each_step_once_after_a_resume(trackio: ModuleType, tmp_path: Path) -> None:
    """As metrics.jsonl has: steps after the checkpoint are not there twice; and a mirror that is
    asked for half-way has the first half."""
    write(tmp_path, range(1, 3))
    write(tmp_path, range(3, 7), start=2, trackio=True)
    assert [row[1] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    write(tmp_path, range(5, 9), start=4, trackio=True)
    assert [row[1] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_trackio_that_would_write_elsewhere_is_off(
    trackio: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a folder that it took before, or over the network: one line, and the run goes on."""
    write(tmp_path / "first", range(1, 2), trackio=True)
    shown = write(tmp_path / "second", range(1, 2), trackio=True)
    assert shown.count("trackio is off: this process imported it before") == 1
    for variable in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        sys.modules.pop("trackio", None)
        with monkeypatch.context() as patch:
            patch.setenv(variable, "ada/space")
            shown = write(tmp_path / variable, range(1, 2), trackio=True)
        assert shown.count(f"trackio is off: {variable} is set") == 1
        assert len(read_metrics(tmp_path / variable / "metrics.jsonl")) == 1


def test_trackio_missing_says_how_it_is_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs the package trackio; .*--no-deps trackio"):
        LogConfig(trackio=True)
