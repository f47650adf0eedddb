"""The settings of the process, as JSON in its argument."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One export. Sizes are in bytes; `wire` and `file` are open descriptors that the process inherits.

    `wire`: a socket that is connected to the client. `file`: the file with the data; None: none. `room_bytes`: the size
    that the file may grow to, and that the client sees from the beginning. `block_bytes`: offsets and lengths of
    requests are multiples of it. `cache_bytes`: the size of a volatile cache, 0 for none; `cache_lies`: the cache
    acknowledges flushes and does nothing. `drops_fua`: see `Device`.

    `parent`: the process that it ends with. `uid`, `gid`: the account that it changes to before it reads from the
    client; None: no change. `mount_ns`, `confined`: how it is confined, see `confinement`.
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
