"""A traced program as an ONNX file, and how it is run."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from mmtrain.errors import UsageError
from mmtrain.interop.graphs import Port
from mmtrain.interop.tower_graphs import Named, quiet, refusing

FORM = "onnx"
OPSET = 18
"""The newest that every tool of the last years reads."""
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_MOST_INSIDE = 3 << 29
"""Bytes of weights that go into the graph's own file; protobuf ends at 2 GiB."""


def check_packages() -> None:
    """Whether the extra is installed.

    Raises:
        UsageError: it is not.
    """
    for name in _PACKAGES:
        if find_spec(name) is None:
            raise UsageError(
                f'format = {FORM} needs the package {name}; pip install "mmtrain[onnx]"'
            )


def write_program(
    program: ExportedProgram,
    path: Path,
    *,
    of: Named,
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
    weights: str,
) -> None:
    """Write a file, its ends named; beside it one of the weights where they are too many.

    Raises:
        UsageError: there is something in the program that ONNX has not.
    """
    from mmtrain.interop.onnx_weights import shrink

    tensors = program.state_dict.values()
    is_large = sum(x.numel() * x.element_size() for x in tensors) > _MOST_INSIDE
    with refusing(of, form=FORM), quiet():
        made: Any = torch.onnx.export(
            program,
            opset_version=OPSET,
            input_names=[port.name for port in inputs],
            output_names=[port.name for port in outputs],
            dynamo=True,
            verbose=False,
        )
        ends = zip(
            (*made.model.graph.inputs, *made.model.graph.outputs), (*inputs, *outputs), strict=True
        )
        for value, port in ends:
            for axis, size in enumerate(port.dims):
                value.shape[axis] = size
        for node in made.model.graph.all_nodes():
            node.metadata_props.clear()  # which module and line of Python it came from
        made.save(path, external_data=is_large)
        shrink(path, weights=weights, is_large=is_large)


def open_session(path: Path) -> Any:
    """An onnxruntime.InferenceSession on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
