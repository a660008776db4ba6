"""The key that gateways and route agents share, which signs what the mesh carries."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ipsec_gateway.cluster.meshline import SHORTEST_KEY


class MeshKey:
    """The key, from a mounted Secret, read for each connection: a new one is taken up by itself."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path

    def read(self) -> bytes:
        """The key. Raises OSError, or ValueError if it is too short."""
        key = self._path.read_bytes()
        if len(key) < SHORTEST_KEY:
            raise ValueError(f"the mesh key {self._path} is shorter than 16 octets: create it anew")
        return key
