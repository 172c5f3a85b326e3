"""Weights of an ONNX graph in fewer bytes."""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from mmtrain.errors import UsageError

_FEWEST = 1024
"""Numbers of a tensor that is worth it; biases and norms stay fp32."""


def shrink(path: Path, *, weights: str, is_large: bool) -> None:
    """Rewrite a file of fp32 weights.

    Args:
        path: the graph.
        weights: fp32 leaves it as it is. fp16: matrices are kept in fp16 and read as fp32, in which
            everything is computed. int8: onnxruntime's dynamic quantisation, products of bytes.
        is_large: whether the weights lie in a file of their own.

    Raises:
        UsageError: a weight is too large for fp16.
    """
    if weights == "fp16":
        _as_fp16(path, is_large=is_large)
    elif weights == "int8":
        _as_int8(path, is_large=is_large)


def _as_fp16(path: Path, *, is_large: bool) -> None:
    model = _taken(path)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < _FEWEST:
            continue
        wide = numpy_helper.to_array(tensor)
        largest = np.abs(wide).max()
        if not largest < np.finfo(np.float16).max:
            raise UsageError(
                f"weights = fp16: {tensor.name} has a weight of {largest:.3g}, more than fp16 "
                "holds; use fp32"
            )
        name, narrow = tensor.name, f"{tensor.name}_fp16"
        tensor.CopyFrom(numpy_helper.from_array(wide.astype(np.float16), narrow))
        casts.append(onnx.helper.make_node("Cast", [narrow], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path, save_as_external_data=is_large, location=_data_of(path).name)


def _as_int8(path: Path, *, is_large: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = _taken(path)
    # Which says that shapes are known, so that it asks for no such pass.
    entry = model.metadata_props.add()
    entry.key, entry.value = "onnx.infer", "onnxruntime.quant"
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    vectors = [  # which a scale for each column does not fit
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and any(ranks.get(name, 2) < 2 for name in node.input)
    ]
    quantize_dynamic(
        model,
        path,
        per_channel=True,
        # Signed weights' products overflow 16 bits on processors with AVX2 or AVX-512 and no VNNI:
        # of a 64 x 128 matrix a value was 24 % of the largest away, of unsigned ones 1 %.
        weight_type=QuantType.QUInt8,
        op_types_to_quantize=["MatMul", "Gather"],  # onnxruntime has no convolutions of int8
        nodes_to_exclude=vectors,
        use_external_data_format=is_large,
    )


def _taken(path: Path) -> onnx.ModelProto:
    """A graph with its weights in memory, its file of weights gone: a new one is appended to."""
    model = onnx.load(path)
    _data_of(path).unlink(missing_ok=True)
    return model


def _data_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")
