"""Train under Ray: each of its workers starts one rank in a process of its own.

    python tools/ray_train.py --workers 16 RECIPE --run-dir DIR [--section.key value ...]

A process of its own, since mmtrain answers signals, which only a main thread may. Ray restarts all
workers when one fails, and the run goes on from its last checkpoint.
"""

import os
import subprocess
import sys

from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer

from mmtrain.cli.endings import end_well
from mmtrain.cli.parser import Parser

_RENDEZVOUS_OFFSET = 1
"""Ray's own process group holds the port that it has chosen; ours takes the next."""


def run_rank(config: dict[str, list[str]]) -> None:
    """One rank: mmtrain with the place that Ray has given this worker."""
    context = get_context()
    environment = os.environ | {
        "RANK": str(context.get_world_rank()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "MASTER_PORT": str(int(os.environ["MASTER_PORT"]) + _RENDEZVOUS_OFFSET),
    }
    words = [sys.executable, "-m", "mmtrain", "train", *config["words"], "--resume"]
    subprocess.run(words, env=environment, check=True)


def main() -> int:
    """The exit code."""
    return end_well(run, name="ray_train")


def run() -> None:
    """Hand the words on to every worker."""
    parser = Parser(prog="ray_train", description=__doc__)
    parser.add_argument("--workers", type=int, required=True, help="ranks, one for each GPU")
    parser.add_argument("--cpu", action="store_true", help="without GPUs")
    arguments, words = parser.parse_known_args()
    TorchTrainer(
        run_rank,
        train_loop_config={"words": words},
        scaling_config=ScalingConfig(num_workers=arguments.workers, use_gpu=not arguments.cpu),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=20)),
    ).fit()


if __name__ == "__main__":
    sys.exit(main())
