"""graphopt: optimize neural-network graphs, prove every rewrite, measure every claim."""

from __future__ import annotations

__version__ = "0.1.0"
