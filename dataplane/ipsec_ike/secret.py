"""Key material that does not show itself."""

from __future__ import annotations

import hmac
from typing import Final


class Secret:
    """Bytes whose ``repr``, ``str`` and format are ``<secret>``, compared in constant time.

    ``reveal()`` is the only way to the bytes; the call marks every place where they are used.
    Python cannot wipe memory reliably (bytes are immutable and copied), so the promise is that the
    bytes never reach a log, a status or an exception text, not that they vanish from RAM.
    """

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data: Final = bytes(data)

    def reveal(self) -> bytes:
        """The bytes themselves."""
        return self._data

    def __len__(self) -> int:
        return len(self._data)

    def __bool__(self) -> bool:
        return bool(self._data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._data, other._data)

    def __hash__(self) -> int:
        return hash(self._data)

    def __repr__(self) -> str:
        return "<secret>"

    def __reduce__(self) -> tuple[type[Secret], tuple[bytes]]:
        return (Secret, (self._data,))
