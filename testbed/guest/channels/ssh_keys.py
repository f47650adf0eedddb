"""SSH keys of guests and of the testbed, in the formats of OpenSSH and dropbear."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


@dataclass(frozen=True, slots=True)
class SshKey:
    """An ed25519 key, stored as the 32 bytes of its private half."""

    private: bytes = field(repr=False)

    @classmethod
    def new(cls) -> SshKey:
        """Generate a key."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @property
    def public(self) -> str:
        """The public half as in `authorized_keys` and `known_hosts`: `ssh-ed25519 BASE64`."""
        return self._key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    @property
    def openssh(self) -> str:
        """The private key in OpenSSH's file format."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()

    @property
    def dropbear(self) -> bytes:
        """The key in dropbear's host key format: name and key pair, each an SSH string (its source, signkey.c and
        ed25519.c).
        """
        name, pair = b"ssh-ed25519", self.private + self._key.public_key().public_bytes_raw()
        return struct.pack(">I", len(name)) + name + struct.pack(">I", len(pair)) + pair

    @property
    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.private)
