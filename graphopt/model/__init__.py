"""Load, save, copy and weigh models.

Weights are mapped, not read, and saving writes the model around them. Not kept: ``training_info``, and the sparse
form of sparse tensors, which become dense.
"""

from __future__ import annotations

import onnx_ir as ir

from ..query import all_graphs
from .cloning import clone as clone
from .loading import from_proto as from_proto
from .loading import load as load
from .mapped import MappedTensor as MappedTensor
from .saving import save as save
from .saving import tensors
from .saving import to_proto as to_proto


def nbytes(model: ir.Model) -> int:
    """Return the bytes of all weights, each counted where it stands: initializers and constants of every graph."""
    return sum(tensor.nbytes for graph in all_graphs(model) for tensor in tensors(graph))
