"""`mmtrain doctor`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.parser import add_command


def add_doctor(commands: Any) -> None:
    """The command that looks at the machine."""
    doctor = add_command(
        commands,
        "doctor",
        "say what this machine has, and what is missing for which feature",
        _doctor,
    )
    doctor.add_argument(
        "--dir",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="the folder whose disk is tried, such as that of runs or shards (.)",
    )


def _doctor(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.doctor import doctor_command

    doctor_command(folder=arguments.dir)
