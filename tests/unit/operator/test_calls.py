"""What the DaemonSets run is what the commands accept."""

from typing import Any

import click
import pytest

from ipsec_gateway.cli import gateway
from ipsec_gateway.routeagent.cli import route_agent
from ipsec_operator import daemonsets
from ipsec_operator.settings import Settings

CHOSEN: tuple[dict[str, Any], ...] = (
    {},
    {
        "logFormat": "text",
        "gateway": {"dataplane": "xfrm", "group": "east", "markBits": "0x70", "tables": "5000"},
        "clusterSubnets": {"pods": ["10.244.0.0/16"], "services": ["10.96.0.0/12"]},
    },
)


@pytest.mark.parametrize("chosen", CHOSEN)
@pytest.mark.parametrize("services", [(), ("10.96.0.0/12", "fd00:96::/112")])
def test_the_commands_take_these_options(chosen: Any, services: tuple[str, ...]) -> None:
    settings = Settings.model_validate({"image": "x", **chosen})
    made = daemonsets.manifests(settings, services)
    commands: dict[str, click.Command] = {"gateway": gateway, "route-agent": route_agent}
    seen = set()
    for manifest in made.values():
        (container,) = manifest["spec"]["template"]["spec"]["containers"]
        calls = [container["args"]]
        if "lifecycle" in container:
            calls.append(container["lifecycle"]["preStop"]["exec"]["command"][1:])
        for name, *args in calls:
            seen.add(name)
            commands[name].make_context(name, list(args))
    assert seen == set(commands)
