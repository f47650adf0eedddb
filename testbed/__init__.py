"""Checks kernel patch series on ephemeral QEMU guests with emulated disks; `testbed --help` is the way in."""

__version__ = "0.1.0"
