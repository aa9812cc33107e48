"""Hashes of passwords: scrypt of the standard library (RFC 7914), written as PHC strings.

``$scrypt$ln=14,r=8,p=5$<salt>$<hash>``, with base64 without padding, is what other libraries write as well. The costs
that new hashes get are among those that OWASP's Password Storage Cheat Sheet names: 16 MiB of memory, and some tenths
of a second of one core, for each guess.
"""

import re
from base64 import b64decode, b64encode
from dataclasses import dataclass
from hashlib import scrypt
from hmac import compare_digest
from secrets import token_bytes
from typing import Final, Self
from unicodedata import normalize

_LN: Final = 14
_R: Final = 8
_P: Final = 5
_SALT_BYTES: Final = 16
_HASH_BYTES: Final = 32
# Blocks take 128 bytes for each unit of r (RFC 7914, section 5); what OpenSSL needs besides fits into as much again.
_BLOCK: Final = 128
_PHC: Final = re.compile(
    r"\$scrypt\$ln=(?P<ln>[0-9]{1,2}),r=(?P<r>[0-9]{1,2}),p=(?P<p>[0-9]{1,2})"
    r"\$(?P<salt>[A-Za-z0-9+/.]{11,86})\$(?P<hash>[A-Za-z0-9+/.]{22,86})\Z"
)
# More than a server would want to spend: 256 MiB at r=8.
_MAX_LN: Final = 18


def hash_password(password: str) -> str:
    """A password as :class:`BasicAuth` takes it: a salted hash, from which it takes long to guess the password.

    Each call returns another one for the same password.
    """
    salt = token_bytes(_SALT_BYTES)
    derived = _derive(password, salt, _LN, _R, _P, _HASH_BYTES)
    return f"$scrypt$ln={_LN},r={_R},p={_P}${_encode(salt)}${_encode(derived)}"


@dataclass(frozen=True, slots=True, repr=False)
class PasswordHash:
    """One hash with its salt and its costs."""

    ln: int
    r: int
    p: int
    salt: bytes
    derived: bytes

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """What :func:`hash_password` has returned, or None where it is no such text."""
        found = _PHC.match(text)
        if found is None or not 1 <= int(found["ln"]) <= _MAX_LN or not int(found["r"]) or not int(found["p"]):
            return None
        try:
            salt, derived = _decode(found["salt"]), _decode(found["hash"])
        except ValueError:
            return None
        return cls(int(found["ln"]), int(found["r"]), int(found["p"]), salt, derived)

    @property
    def costs(self) -> tuple[int, int, int]:
        """The dearest last."""
        return self.ln, self.r, self.p

    def verify(self, password: str) -> bool:
        """Whether it is the hash of ``password``. Takes long, and takes as long for a wrong one."""
        derived = _derive(password, self.salt, self.ln, self.r, self.p, len(self.derived))
        return compare_digest(derived, self.derived)

    def of_nobody(self) -> Self:
        """A hash of the same costs that no password has."""
        return type(self)(self.ln, self.r, self.p, self.salt, token_bytes(len(self.derived)))


def _derive(password: str, salt: bytes, ln: int, r: int, p: int, length: int) -> bytes:
    # One spelling of what is typed on different keyboards (RFC 8265, section 4.2).
    secret = normalize("NFC", password).encode("utf-8", "surrogatepass")
    memory = 2 * _BLOCK * r * (2**ln + p)
    return scrypt(secret, salt=salt, n=2**ln, r=r, p=p, maxmem=memory, dklen=length)


def _encode(data: bytes) -> str:
    return b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    # Some libraries write "." for "+".
    return b64decode(text.replace(".", "+") + "=" * (-len(text) % 4), validate=True)
