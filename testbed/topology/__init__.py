"""Parses YAML topology files into frozen, validated values."""

from testbed.topology.disks import Disk, Limits
from testbed.topology.load import load, load_points, parse_points
from testbed.topology.model import GuestModel, Topology
from testbed.topology.storage import Loop

__all__ = ["Disk", "GuestModel", "Limits", "Loop", "Topology", "load", "load_points", "parse_points"]
