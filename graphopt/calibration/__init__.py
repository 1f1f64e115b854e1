"""What calibration data show: run a model over them, and let observers see its values, one sample at a time."""

from __future__ import annotations

from ..plugins import get_calibrator
from .calibrators import Calibrator, Entropy, MinMax, MovingAverage, Mse, Percentile, Sqnr
from .histogram import Histogram
from .observing import Observer, observe
from .statistics import ChannelStatistics, Gram

__all__ = [
    "Calibrator",
    "ChannelStatistics",
    "Entropy",
    "Gram",
    "Histogram",
    "MinMax",
    "MovingAverage",
    "Mse",
    "Observer",
    "Percentile",
    "Sqnr",
    "get_calibrator",
    "observe",
]
