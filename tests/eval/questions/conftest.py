"""A model for evaluations by questions."""

import pytest

from mmtrain.cli import main
from tests.tasks.test_vqa_run import write_recipe


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that chooses and writes, hardly trained."""
    folder = tmp_path_factory.mktemp("model")
    path = write_recipe(folder)
    assert main(["train", str(path), "--run-dir", str(folder / "run"), "--train.steps", "2"]) == 0
    return str(folder / "run")
