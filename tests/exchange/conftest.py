"""`pytest tests/exchange --seed N` replays one seed of the simulated network, with its trace."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed", type=int, default=None, help="replay this seed of the simulated network alone"
    )
