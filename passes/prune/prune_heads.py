"""Cut whole attention heads away."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from .prune_channels import Kind, PruneChannels


class PruneHeads(PruneChannels):
    """Remove the attention heads that matter least, with their rows and columns of all projections.

    ::

        y = Σ softmax(q_h k_hᵀ) v_h W_h          h over the heads that are kept

    Queries, keys, values and the output's projection are cut together; keys and values that several heads share go
    with all of them. Other options are those of ``prune-channels``.

    Lossy: the result equals the original with zeros in place of the heads. Source: Michel et al. 2019
    (arXiv:1905.10650); here heads are ranked by their weights, or by calibration data.
    """

    cuts: ClassVar[Kind] = "heads"

    round_to: int = Field(1, ge=1, description="columns of the projections are multiples of it")
