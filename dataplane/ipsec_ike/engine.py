"""The engine: the only public entry to the IKE implementation."""

from __future__ import annotations
