"""What is said of compiling: where its code is kept, and how long the first step took."""

import tempfile
from pathlib import Path

import pytest
import torch

from mmtrain.cli import main
from mmtrain.parallel.compile import compiled_code

RUN = ["train", "configs/debug_clip.toml", "--data.workers", "0", "--train.batch_size", "8"]
RUN += ["--eval.zero_shot", "[]", "--train.checkpoint_every", "1"]


def test_the_folder_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert compiled_code() == Path(cache_dir())
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir())
    assert compiled_code() == Path(cache_dir()) == Path(tempfile.gettempdir())


def test_a_run_tells_where_code_is_kept_and_what_the_first_step_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of each process that compiles, and of no other."""
    monkeypatch.setattr(torch, "compile", lambda forward: forward)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    run = ["--run-dir", str(tmp_path / "run")]
    for words in (["--train.steps", "2"], ["--train.steps", "4", "--resume-with-changes"]):
        assert main([*RUN, *run, *words, "--train.compile", "true"]) == 0
        told = capsys.readouterr().err
        assert told.count("the first step took ") == 1
        assert f"the code is kept in {tmp_path / 'code'} for the next run" in told
    assert main([*RUN, "--run-dir", str(tmp_path / "plain"), "--train.steps", "1"]) == 0
    told = capsys.readouterr().err
    assert "first step" not in told and "the code is kept" not in told
