"""Gets a connection to a guest's SSH server from who keeps the guest, over a unix socket that only this user can enter.

Run as a script it is the ProxyCommand of a guest's ssh_config. OpenSSH gets the connection itself (ProxyUseFdpass), so that no byte goes
through here; for other clients, whose standard output is no unix socket, it passes bytes on.

The script runs with `python -I -S`, and imports as little as it can: `socket` alone takes as long as the rest.
"""

from __future__ import annotations

import _socket
import os
import sys

_MOST_BYTES = 1 << 16
_DESCRIPTOR_BYTES = 4
_TERMINATE = 15  # SIGTERM; `signal` would be another import


def connection(keeper: str, limit_s: float) -> tuple[int, str]:
    """A descriptor of a connection to the guest that listens at the unix socket `keeper`, and what explains why its server does not answer,
    or nothing.

    :raise OSError: nobody answers there within the limit, or it says why there is none.
    """
    wire = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        wire.settimeout(limit_s)
        wire.connect(keeper)
        said, handed, _, _ = wire.recvmsg(_MOST_BYTES, _socket.CMSG_SPACE(_DESCRIPTOR_BYTES), _socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in handed:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                return int.from_bytes(data[:_DESCRIPTOR_BYTES], sys.byteorder), said.decode(errors="replace").strip()
    except TimeoutError:
        raise OSError(f"who keeps this guest does not answer within {limit_s:.0f} s") from None
    finally:
        wire.close()
    raise OSError(said.decode(errors="replace") or "who keeps this guest went away")


def _pass_on(guest: int) -> None:
    """Bytes between standard input and output and the guest, until that has no more to say."""
    sender = os.fork()
    if not sender:
        os.close(sys.stdout.fileno())  # or the client would wait for the end of it
        _copy(sys.stdin.fileno(), guest)
        _socket.socket(fileno=guest).shutdown(_socket.SHUT_WR)
        os._exit(0)
    try:
        _copy(guest, sys.stdout.fileno())
    finally:
        os.kill(sender, _TERMINATE)


def _copy(source: int, target: int) -> None:
    while data := os.read(source, _MOST_BYTES):
        while data:
            data = data[os.write(target, data) :]


def main(keeper: str, limit_s: str) -> None:
    guest, why = connection(keeper, float(limit_s))
    if why:
        sys.stderr.write(f"testbed: in the way of its SSH server{why}\n")
    os.set_blocking(guest, True)
    try:
        client = _socket.socket(fileno=os.dup(sys.stdout.fileno()))
    except OSError:  # no socket
        return _pass_on(guest)
    client.sendmsg(
        [b"\0"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, guest.to_bytes(_DESCRIPTOR_BYTES, sys.byteorder))]
    )
    return None


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (OSError, KeyboardInterrupt) as failure:
        raise SystemExit(f"testbed: {failure}") from failure
