"""Every error graphopt raises on purpose, with whose fault it is and the exit code of the command line.

GraphoptError
├── UsageError            what was asked for makes no sense           user           2
│   ├── OptionError       an option's name or value                   user           2
│   ├── PipelineError     a pipeline's text or recipe                 user           2
│   ├── ModelError        a model file or graph                       user           2
│   └── InputError        sample inputs, calibration data             user           2
├── PluginError           a plugin breaks the contract                plugin author  2
├── PassError             a pass raised, or left the graph broken     pass author    1
├── VerificationError     a rewrite changed what the model computes   pass author    1
└── UnavailableError      a backend, device or package is missing     machine        3
"""

from __future__ import annotations

from typing import ClassVar


class GraphoptError(Exception):
    """Base class: catch this to catch whatever graphopt raises on purpose."""

    exit_code: ClassVar[int] = 2


class UsageError(GraphoptError, ValueError):
    """What was asked for makes no sense; the message says what would."""


class OptionError(UsageError):
    """An option is unknown, ill-typed or out of range."""


class PipelineError(UsageError):
    """A pipeline names an unknown pass, orders levels wrongly, or cannot be parsed."""


class ModelError(UsageError):
    """A model cannot be read, is malformed, or is unsafe to open."""


class InputError(UsageError):
    """Sample inputs or calibration data do not fit the model."""


class PluginError(GraphoptError):
    """A plugin breaks the hook contract."""


class PassError(GraphoptError):
    """A pass raised, or left the graph inconsistent."""

    exit_code = 1


class VerificationError(GraphoptError):
    """A rewrite changed what the model computes, and the run is strict."""

    exit_code = 1


class UnavailableError(GraphoptError):
    """Something that was asked for is not available on this machine."""

    exit_code = 3
