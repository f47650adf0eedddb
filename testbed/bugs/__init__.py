"""Bugs as files: what shows one, where, and how it is known."""

from testbed.bugs.load import load, parse
from testbed.bugs.model import Bug, Case, Condition

__all__ = ["Bug", "Case", "Condition", "load", "parse"]
