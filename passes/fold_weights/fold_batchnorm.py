"""Fold an inference-time BatchNormalization into the layer before it, or else into the layer behind it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Rewrite, Tape
from graphopt.query import attribute, constant, is_op, opset, sole_producer

from .layer import LAYERS, Affine, Layer, check_same_graph, is_fed_by


class FoldBatchnorm(Rewrite):
    """Replace ``BN(layer(x))`` by ``layer'(x)``, and ``layer(BN(x))`` by ``layer'(x)``, for the four linear layers.

    BatchNormalization in inference is ``k * x + t`` with, for each channel of axis 1::

        k = scale / sqrt(var + epsilon)  (C,)
        t = bias - k * mean              (C,)

    Behind Conv, ConvTranspose, Gemm or MatMul, k scales the weights of each output channel, and the bias becomes
    ``k * b + t``. Before one of them, k scales the weights of each input channel, and the bias gains the sum of
    ``w * t``; that needs a convolution without padding, because zeros beside the input are not shifted. A MatMul
    of matrices becomes a Gemm where it gains a bias.

    Exact up to rounding: computed in float64, rounded once. **Source:** ONNX BatchNormalization-15,
    Y = (X - input_mean) / sqrt(input_var + epsilon) * scale + B; in inference at opset 14 where training_mode is 0,
    from 7 to 13 where it has one output, below 7 where is_test is set.
    """

    anchor = ("BatchNormalization", *LAYERS)

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the layer that does both."""
        if is_op(node, "BatchNormalization"):
            check_inference(node)
            layer = Layer(sole_producer(node.inputs[0], *LAYERS))
            check_same_graph(layer.node, node)
            return layer.after(affine(node, layer.rank(layer.node.outputs[0])), tape)
        if not is_fed_by(node, "BatchNormalization"):
            return None
        layer = Layer(node)
        norm = sole_producer(layer.x, "BatchNormalization")
        check_inference(norm)
        check_same_graph(norm, node)
        x = norm.inputs[0]
        assert x is not None, "the input of BatchNormalization is not optional"
        return layer.before(affine(norm, layer.rank(layer.x)), x, tape)


def check_inference(norm: ir.Node) -> None:
    """Decline where ``norm`` may use the statistics of the batch, or has some for each element."""
    version = opset(norm)
    if attribute(norm, "training_mode", 0) or (version < 7 and not attribute(norm, "is_test", 0)):
        raise Decline(f"{norm.outputs[0].name} is normalized in training mode")
    if any(value.name or value.uses() for value in norm.outputs[1:]):
        raise Decline(
            f"{norm.outputs[0].name} is normalized in training mode: it has {len(norm.outputs)} outputs"
        )
    if version < 9 and not attribute(norm, "spatial", 1):
        raise Decline(f"{norm.outputs[0].name} is normalized for each element (spatial is 0)")


def affine(norm: ir.Node, rank: int) -> Affine:
    """Return what ``norm`` does to its input of ``rank`` dimensions: ``k * x + t``."""
    scale, bias, mean, var = (constant(v).astype(np.float64) for v in norm.inputs[1:5])
    epsilon = attribute(norm, "epsilon", 1e-5)

    with np.errstate(all="ignore"):
        k = scale / np.sqrt(var + epsilon)
        t = bias - k * mean
    if not (np.isfinite(k).all() and np.isfinite(t).all()):
        raise Decline("scale / sqrt(var + epsilon) is not finite in every channel")
    if rank < 2 or k.ndim != 1 or k.shape != t.shape:
        raise Decline(f"its statistics have shape {list(t.shape)} for an input of {rank} dimensions")
    shape = (-1, *[1] * (rank - 2))
    return Affine(k.reshape(shape), t.reshape(shape))
