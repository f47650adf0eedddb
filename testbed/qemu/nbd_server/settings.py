"""What the process is started with, as JSON in its argument."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One export. Sizes are in bytes; `wire` and `file` are open descriptors that the process inherits.

    `wire`: a socket whose other end is the client's. `file`: what the bytes are kept in; None: nowhere. `room_bytes`: the file may grow to
    so much, and is as large for the client from the beginning. `block_bytes`: what offsets and lengths of requests are multiples of.
    `cache_bytes`: of a volatile cache, 0 for none; `cache_lies`: it acknowledges flushes and does nothing. `drops_fua`: see `Device`.

    `parent`: the process that it dies with. `uid`, `gid`: whom it becomes before it reads from the client; None: nobody else. `apart`,
    `confined`: how it is kept from this machine, see `confinement`.
    """

    wire: int = -1
    file: int | None = None
    room_bytes: int = 0
    block_bytes: int = 1
    read_only: bool = False
    cache_bytes: int = 0
    cache_lies: bool = False
    drops_fua: bool = False
    parent: int = 0
    uid: int | None = None
    gid: int | None = None
    mount_ns: bool = False
    confined: bool = False
