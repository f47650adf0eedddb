"""A block device in a process of its own, which QEMU accesses over NBD on a unix socket: real data, with a device's
delays, losses and volatile cache. QEMU itself has filters for limits and errors, but none for these.

It runs as `python -m testbed.qemu.nbd_server SETTINGS`, and imports only the standard library and modules without
dependencies.
"""
