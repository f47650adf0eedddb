"""Topologies: YAML files to frozen, validated values."""

from testbed.topology.load import load
from testbed.topology.model import Disk, Guest, Limits, Loop, Topology

__all__ = ["Disk", "Guest", "Limits", "Loop", "Topology", "load"]
