"""A wire without a network, for what needs both directions."""

from collections.abc import Iterator

import pytest

from ipsec_lab.esp_wire import Wire, open_wire


@pytest.fixture
def wire() -> Iterator[Wire]:
    with open_wire() as wire:
        yield wire
