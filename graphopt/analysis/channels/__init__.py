"""Channel groups: for every axis of every weight, all that must be cut together, of any ONNX graph."""

from .edits import Bound, Count, Counts, Edit, Fix, Indices, Length, Lengths
from .flow import Flow, Refuse, Rule
from .groups import ChannelAnalysis, ChannelGroups, Group, Member, channel_groups
from .separate import separate

__all__ = [
    "Bound",
    "ChannelAnalysis",
    "ChannelGroups",
    "Count",
    "Counts",
    "Edit",
    "Fix",
    "Flow",
    "Group",
    "Indices",
    "Length",
    "Lengths",
    "Member",
    "Refuse",
    "Rule",
    "channel_groups",
    "separate",
]
