"""A block device in a process of its own, which QEMU reaches over NBD on a unix socket: real data, with a real device's delays, losses and
volatile cache. QEMU itself has filters for limits and errors, and none for these.

It runs as `python -m testbed.qemu.nbd_server SETTINGS`, and needs nothing but Python's own library.
"""
