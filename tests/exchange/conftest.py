"""`pytest tests/exchange --seed N` replays one seed of the simulated network, with its trace."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed", type=int, default=None, help="replay this seed of the simulated network alone"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--seed", None) is None:
        return
    one = [item for item in items if item.name.startswith("test_both_ends_agree[")]
    config.hook.pytest_deselected(items=[item for item in items if item not in one])
    items[:] = one
