"""Gets a connection to a guest's SSH server from the process that runs the guest, over a unix socket that only this
user can access.

Run as a script it is the ProxyCommand of a guest's ssh_config. OpenSSH receives the connection itself (ProxyUseFdpass),
so that no byte goes through this process; for other clients, whose standard output is not a unix socket, it copies
bytes.

The script runs with `python -I -S`, and imports as little as possible: `socket` alone takes as long as the rest.
"""

from __future__ import annotations

import _socket
import os
import sys

_MOST_BYTES = 1 << 16
_DESCRIPTOR_BYTES = 4
_TERMINATE = 15  # SIGTERM; `signal` would be another import


def connection(path: str, limit_s: float) -> tuple[int, str]:
    """Return a descriptor that is connected to the guest's SSH server, and why that server does not answer, or an empty
    string.

    `path`: the unix socket of the process that runs the guest.

    :raise OSError: that process does not answer within the limit, or it says why there is no connection.
    """
    supervisor = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        supervisor.settimeout(limit_s)
        supervisor.connect(path)
        message, ancillary, _, _ = supervisor.recvmsg(
            _MOST_BYTES, _socket.CMSG_SPACE(_DESCRIPTOR_BYTES), _socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, data in ancillary:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                return int.from_bytes(data[:_DESCRIPTOR_BYTES], sys.byteorder), message.decode(errors="replace").strip()
    except TimeoutError:
        raise OSError(f"who keeps this guest does not answer within {limit_s:.0f} s") from None
    finally:
        supervisor.close()
    raise OSError(message.decode(errors="replace") or "who keeps this guest went away")


def _relay(guest: int) -> None:
    """Copy bytes between standard input and output and the guest, until the guest closes its end."""
    sender = os.fork()
    if not sender:
        os.close(sys.stdout.fileno())  # otherwise the client would wait until this process closes it, too
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


def main(path: str, limit_s: str) -> None:
    guest, why = connection(path, float(limit_s))
    if why:
        sys.stderr.write(f"testbed: in the way of its SSH server{why}\n")
    os.set_blocking(guest, True)
    try:
        client = _socket.socket(fileno=os.dup(sys.stdout.fileno()))
    except OSError:  # standard output is not a socket
        return _relay(guest)
    client.sendmsg(
        [b"\0"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, guest.to_bytes(_DESCRIPTOR_BYTES, sys.byteorder))]
    )
    return None


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (OSError, KeyboardInterrupt) as failure:
        raise SystemExit(f"testbed: {failure}") from failure
