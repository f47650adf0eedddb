"""Bugs as files: what shows one, where, and how it is known."""

from testbed.bugs.load import load, parse
from testbed.bugs.model import Bug, Condition

__all__ = ["Bug", "Condition", "load", "parse"]
