"""Matrices in fewer bytes, beside the products in fp32."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmtrain.interop.onnx_weights import shrink


def write_product(path: Path, weight_DF: np.ndarray) -> None:
    """A graph that is one product with a matrix."""
    dim, ff_dim = weight_DF.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", dim])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", ff_dim])],
        [numpy_helper.from_array(weight_DF, "w")],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


@pytest.mark.parametrize(("weights", "apart"), [("fp32", 1e-6), ("fp16", 1e-3), ("int8", 0.03)])
@pytest.mark.parametrize("dim", [32, 64, 512])
def test_products_are_near_whatever_the_processor(
    tmp_path: Path, dim: int, weights: str, apart: float
) -> None:
    """Of int8 a value was a quarter away where products of a byte with a sign overflow."""
    draw = np.random.default_rng(0)
    weight_DF = draw.standard_normal((dim, 128), dtype=np.float32)
    x_BD = draw.standard_normal((16, dim), dtype=np.float32)
    path = tmp_path / "product.onnx"
    write_product(path, weight_DF)
    shrink(path, weights=weights, is_large=False)
    (found_BF,) = onnxruntime.InferenceSession(path).run(None, {"x": x_BD})
    wanted_BF = x_BD @ weight_DF
    assert np.abs(found_BF - wanted_BF).max() < apart * np.abs(wanted_BF).max()
    kinds = {each.data_type for each in onnx.load(path).graph.initializer}
    assert TensorProto.INT8 not in kinds and (weights != "int8" or TensorProto.UINT8 in kinds)
