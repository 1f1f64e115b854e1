"""The built-in passes: a plugin like any other, registered through the ``graphopt`` entry point group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from graphopt import hookimpl

if TYPE_CHECKING:
    from graphopt import Pass


@hookimpl
def register_passes() -> Iterable[type[Pass]]:
    """Offer every pass of this package."""
    import importlib

    for module, cls in PASSES.items():
        yield getattr(importlib.import_module(f".{module}", __name__), cls)


@hookimpl
def register_presets() -> Mapping[str, str]:
    """Offer the pipelines that most users want."""
    return PRESETS


PASSES: dict[str, str] = {
    "inline_functions": "InlineFunctions",
    "fold_constants": "FoldConstants",
    "simplify_branches": "SimplifyBranches",
    "eliminate_no_ops": "EliminateNoOps",
    "simplify_arithmetic": "SimplifyArithmetic",
    "simplify_logic": "SimplifyLogic",
    "eliminate_expands": "EliminateExpands",
    "unpack_sequences": "UnpackSequences",
    "merge_casts": "MergeCasts",
    "merge_concats": "MergeConcats",
    "merge_reshapes": "MergeReshapes",
    "merge_slices": "MergeSlices",
    "merge_transposes": "MergeTransposes",
    "move_transposes": "MoveTransposes",
    "fold_weights.fold_batchnorm": "FoldBatchnorm",
    "fold_weights.fold_affine": "FoldAffine",
    "fold_pad": "FoldPad",
    "fuse_activations.fuse_gelu": "FuseGelu",
    "fuse_activations.fuse_swish": "FuseSwish",
    "fuse_activations.fuse_hard_swish": "FuseHardSwish",
    "fuse_activations.fuse_mish": "FuseMish",
    "fuse_activations.fuse_bias_gelu": "FuseBiasGelu",
    "fuse_linear.fuse_matmul": "FuseMatmul",
    "fuse_linear.fuse_matmul_add": "FuseMatmulAdd",
    "fuse_linear.fuse_projections": "FuseProjections",
    "fuse_linear.fuse_activation": "FuseActivation",
    "fuse_linear.fuse_affine": "FuseAffine",
    "fuse_norms.fuse_layer_norm": "FuseLayerNorm",
    "fuse_norms.fuse_skip_layer_norm": "FuseSkipLayerNorm",
    "raise_opset": "RaiseOpset",
    "fuse_rotary": "FuseRotary",
    "fuse_attention": "FuseAttention",
    "prune.prune_channels": "PruneChannels",
    "prune.prune_heads": "PruneHeads",
    "prune.prune_weights": "PruneWeights",
    "prune.clip_weights": "ClipWeights",
    "prune.drop_layers": "DropLayers",
    "prune.reestimate_batchnorm": "ReestimateBatchnorm",
    "factorize": "Factorize",
    "equalize_ranges": "EqualizeRanges",
    "smooth_activations": "SmoothActivations",
    "quantize.insert_qdq": "InsertQdq",
    "quantize.quantize_static": "QuantizeStatic",
    "quantize.quantize_mixed": "QuantizeMixed",
    "quantize.quantize_dynamic": "QuantizeDynamic",
    "correct_bias": "CorrectBias",
    "eliminate_common": "EliminateCommon",
    "deduplicate_constants": "DeduplicateConstants",
    "eliminate_dead": "EliminateDead",
    "infer_shapes": "InferShapes",
    "cast_float": "CastFloat",
    "quantize_weights": "QuantizeWeights",
}
"""Module of this package to the pass class in it, in the order of ``graphopt passes``."""

MERGE = "merge-casts,merge-concats,merge-reshapes,merge-slices,merge-transposes"
CLEAN = f"fold-constants,simplify-branches,eliminate-no-ops,unpack-sequences,{MERGE}"
ALGEBRA = "simplify-arithmetic,simplify-logic,eliminate-expands"
FUSE = "fuse-gelu,fuse-hard-swish,fuse-layer-norm{dialect=standard}"
"""What onnxruntime does not find by itself, or no longer after folding; before folding takes their constants."""
FOLD = "fold-batchnorm,fold-affine,fold-pad"
SHARE = "eliminate-common,deduplicate-constants"
END = "eliminate-dead,infer-shapes"
LAYOUT = f"move-transposes,fixpoint({CLEAN},{FOLD},{SHARE})"
ATTENTION = "fuse-rotary,fuse-attention{dialect=standard},fuse-attention"
"""ONNX's own attention where it can be; it is at least as fast as onnxruntime's."""
TRY = "fuse-skip-layer-norm,fuse-bias-gelu,fuse-matmul,fuse-projections,fuse-activation"
"""What wins on some machines and loses on others."""

SPEED = (
    f"inline-functions,fixpoint({CLEAN},{FUSE}),"
    f"fixpoint({CLEAN},{FUSE},{ALGEBRA},{FOLD},{SHARE},{END}),{LAYOUT},fuse-affine,{END}"
)

PRESETS: dict[str, str] = {
    "simplify": f"inline-functions,fixpoint({CLEAN},{ALGEBRA},{SHARE},{END})",
    "speed": SPEED,
    "quantize": f"{SPEED},smooth-activations,quantize-mixed,quantize-weights{{bits=8,include=[Gather]}}",
    "speed{measured=true}": (
        f"inline-functions,fixpoint({CLEAN},{FUSE},fuse-swish,fuse-mish),raise-opset{{where=Softmax}},"
        f"fixpoint({CLEAN},{FUSE},{ATTENTION},{ALGEBRA},{FOLD},{SHARE},{END}),"
        f"{LAYOUT},fuse-affine,{TRY},{END}"
    ),
}
