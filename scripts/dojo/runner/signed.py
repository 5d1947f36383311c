"""Signed lines: how results leave a process whose code may write wherever it likes.

The process that runs the code holds the pipe for its results, and so does the code: a loop over
descriptors writes to it, closes it, or puts something else in its place. So each line carries a
signature of itself and of all lines before it, by a key that is made for one run. A line that was
added, lost or changed on the way does not fit, and is not mistaken for a result.
"""

import hashlib
from typing import BinaryIO

from dojo.runner.protocol import END

_DIGITS = 16


class SignedWriter:
    """Writes signed lines to a file."""

    def __init__(self, file: BinaryIO, key: str) -> None:
        """Sign by this key."""
        self._file = file
        self._signature = _Signature(key)

    def write(self, line: bytes) -> None:
        """Write a line, which ends in a line feed."""
        self._file.write(self._signature.of(line) + line)

    def flush(self) -> None:
        """Send what is written so far."""
        self._file.flush()


class SignedReader:
    """Puts lines together from the pieces that come, up to the first that is not as it was sent."""

    def __init__(self, key: str) -> None:
        """Take lines that are signed by this key."""
        self.lines: list[bytes] = []
        self.damaged = False
        self.ended = False  # whether the last line was there
        self._signature = _Signature(key)
        self._rest = b""

    def feed(self, piece: bytes) -> None:
        """Take the next piece; nothing that comes after the end, or after damage, counts."""
        *whole, self._rest = (self._rest + piece).split(b"\n")
        for text in whole:
            if self.ended or self.damaged:
                return
            signature, line = text[:_DIGITS], text[_DIGITS:] + b"\n"
            if signature != self._signature.of(line):
                self.damaged = True
            else:
                self.lines.append(line)
                self.ended = line == END


class _Signature:
    """Signs one line after another."""

    def __init__(self, key: str) -> None:
        self._hash = hashlib.blake2b(key=key.encode(), digest_size=_DIGITS // 2)

    def of(self, line: bytes) -> bytes:
        self._hash.update(line)
        return self._hash.hexdigest().encode()
