"""What iproute2 prints becomes what was asked for; commands only for what differs."""

import asyncio
import ipaddress
import json
import socket
import struct
from dataclasses import replace

import pytest

from ipsec_gateway.routeagent import kernel as kernel_module
from ipsec_gateway.routeagent import loose as loose_module
from ipsec_gateway.routeagent.facts import local_addresses, overlays, parse_ways_to
from ipsec_gateway.routeagent.kernel import Kernel, has_rule, parse_routes, parse_vxlan
from ipsec_gateway.routeagent.loose import Loose, request
from ipsec_gateway.routeagent.picture import Carried, networks
from ipsec_gateway.routeagent.plan import Node, Route, Settings, Vxlan, Wanted, Way, plan
from ipsec_gateway.tools import ToolError

IP = ipaddress.ip_address

ROUTES4 = json.loads("""[
 {"dst":"10.9.0.0/16","gateway":"192.0.2.1","dev":"kipsec-vx","protocol":"78",
  "prefsrc":"192.0.2.3","flags":["onlink"],"metrics":[{"mtu":1450}]},
 {"type":"7","dst":"10.8.0.0/16","protocol":"78","flags":[]},
 {"type":"9","dst":"192.0.2.1","protocol":"78","flags":[]},
 {"dst":"10.7.0.0/16","via":{"family":"inet6","host":"fe80::1"},"dev":"kipsec-vx",
  "protocol":"78","flags":["onlink"]}]""")


def test_routes_are_read_as_they_were_written():
    assert parse_routes(ROUTES4, 4) == {
        Route("10.9.0.0/16", "unicast", "kipsec-vx", "192.0.2.1", "192.0.2.3", 1450),
        Route("10.8.0.0/16", "unreachable"),
        Route("192.0.2.1/32", "throw"),
        Route("10.7.0.0/16", "unicast", "kipsec-vx", "fe80::1"),
    }


def test_our_rule_is_ours_alone():
    shown = [{"priority": 4502, "src": "all", "fwmark": "0", "fwmask": "0x70", "table": "4502"}]
    assert not has_rule(shown, Settings())
    assert has_rule([{**shown[0], "protocol": "78"}], Settings())
    assert not has_rule([{**shown[0], "protocol": "78"}], Settings(table=1))


LINK = json.loads("""[{"ifname":"kipsec-vx","flags":["BROADCAST","MULTICAST","UP","LOWER_UP"],
 "mtu":1450,"address":"7e:a7:49:73:a8:81","linkinfo":{"info_kind":"vxlan","info_data":{
 "id":4499,"local":"192.0.2.1","port":4499}}}]""")


def test_a_device_is_ours_as_we_made_it_and_up():
    ours = Vxlan("kipsec-vx", 4499, 4499, "192.0.2.1", "7e:a7:49:73:a8:81", 1450)
    assert parse_vxlan(LINK) == ours
    assert parse_vxlan([{**LINK[0], "flags": []}]) != ours
    assert parse_vxlan([]) is None


def test_neighbours_are_on_links_on_which_somebody_answers():
    shown = (
        '[{"dst":"192.0.2.1","dev":"eth0","prefsrc":"192.0.2.3","flags":[]}]\n'
        '[{"dst":"198.51.100.2","gateway":"192.0.2.254","dev":"eth0","flags":[]}]\n'
        '[{"dst":"100.64.0.1","dev":"wg0","flags":[]}]\n'
        '[{"type":"local","dst":"192.0.2.3","dev":"lo","flags":[]}]\n'
    )
    links = [
        {"ifname": "eth0", "mtu": 1500, "flags": ["BROADCAST", "UP"]},
        {"ifname": "wg0", "mtu": 1420, "flags": ["POINTOPOINT", "NOARP", "UP"]},
    ]
    assert parse_ways_to(shown, links) == {
        IP("192.0.2.1"): Way("eth0", True, 1500),
        IP("198.51.100.2"): Way("eth0", False, 1500),
        IP("100.64.0.1"): Way("wg0", False, 1420),
    }


def test_overlays_are_the_cni_s_and_addresses_the_node_s():
    links = [
        {"ifname": "flannel.1", "linkinfo": {"info_kind": "vxlan"}},
        {"ifname": "kipsec-vx", "linkinfo": {"info_kind": "vxlan"}},
        {"ifname": "tunl0", "linkinfo": {"info_kind": "ipip"}},
        {"ifname": "cali1", "linkinfo": {"info_kind": "veth"}},
        {"ifname": "eth0"},
    ]
    assert overlays(links, "kipsec-vx") == {"flannel.1", "tunl0"}
    shown = [
        {
            "ifname": "eth0",
            "addr_info": [
                {"local": "2001:db8::1", "scope": "global"},
                {"local": "192.0.2.1", "scope": "global"},
                {"local": "fe80::1", "scope": "link"},
                {"local": "2001:db8::9", "scope": "global", "deprecated": True},
            ],
        },
        {"ifname": "kipsec0", "addr_info": [{"local": "192.0.2.9", "scope": "global"}]},
    ]
    assert local_addresses(shown) == (IP("192.0.2.1"), IP("2001:db8::1"))


class Tools:
    """What would have been run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[tuple[str, ...]] = []
        self.scripts: list[str] = []
        self.routes: list[dict[str, object]] = []
        monkeypatch.setattr(kernel_module, "run", self.run)
        monkeypatch.setattr(kernel_module, "run_json", self.run_json)

    async def run(self, *command: str, script: str = "", check: bool = True) -> str:
        self.commands.append(command)
        self.scripts.append(script)
        return ""

    async def run_json(self, *command: str) -> object:
        if command[:2] == ("ip", "-4") and "route" in command:
            return self.routes
        if command[0] == "nft" or "link" in command:
            raise ToolError(f"{' '.join(command)}: does not exist")
        return []


WANTED = plan(
    {"ns/hq": Carried(networks(["10.9.0.0/16"]), "g1")},
    {"g1": (IP("192.0.2.1"),)},
    Node("w", (IP("192.0.2.3"),)),
    Settings(),
)


def test_what_leads_to_a_gateway_is_there_before_the_route_and_goes_after_it(monkeypatch):
    tools = Tools(monkeypatch)
    kernel = Kernel(Settings())
    asyncio.run(kernel.apply(WANTED, prune=True))
    text = "".join(tools.scripts)
    order = [
        "link add kipsec-vx",
        "neigh replace 192.0.2.1",
        "fdb replace",
        "table inet kube_ipsec_routes",
        "route replace 10.9.0.0/16",
        "rule add",
    ]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    tools.scripts.clear()
    assert asyncio.run(kernel.apply(WANTED, prune=True)) == 0
    assert not tools.scripts
    asyncio.run(kernel.apply(Wanted(), prune=True))
    text = "".join(tools.scripts)
    assert text.index("rule delete") < text.index("route delete") < text.index("neigh delete")
    assert tools.commands[-1] == ("ip", "link", "delete", "kipsec-vx")


def test_without_pruning_nothing_is_taken_away(monkeypatch):
    tools = Tools(monkeypatch)
    tools.routes = ROUTES4
    kernel = Kernel(Settings())

    async def work() -> None:
        await kernel.look()
        await kernel.apply(Wanted(), prune=False)

    asyncio.run(work())
    assert not tools.scripts
    assert len(kernel.actual.routes) == 4


def test_a_device_with_another_number_is_made_anew_with_the_routes_through_it(monkeypatch):
    tools = Tools(monkeypatch)
    kernel = Kernel(Settings())
    asyncio.run(kernel.apply(WANTED, prune=True))
    tools.scripts.clear()
    assert WANTED.vxlan is not None
    asyncio.run(kernel.apply(replace(WANTED, vxlan=replace(WANTED.vxlan, vni=5)), prune=True))
    text = "".join(tools.scripts)
    assert "id 5" in text
    assert "route replace 10.9.0.0/16" in text
    assert "neigh replace" in text


def test_a_stranger_s_route_in_our_table_is_named(monkeypatch):
    tools = Tools(monkeypatch)
    tools.routes = [{"dst": "10.0.0.0/8", "dev": "eth0", "protocol": "80", "flags": []}]
    with pytest.raises(ToolError, match=r"10\.0\.0\.0/8 in table 4502 is of protocol 80.*--table"):
        asyncio.run(Kernel(Settings()).look())


def test_the_message_for_a_loose_check_is_as_rtnetlink_wants_it():
    message = request(7, 2)
    length, kind, flags, _, _ = struct.unpack_from("=IHHII", message)
    assert (length, kind, flags) == (len(message), 19, 5)
    assert struct.unpack_from("=BxHi", message, 16) == (socket.AF_UNSPEC, 0, 7)
    nest = message[32:]
    # IFLA_AF_SPEC { AF_INET { IFLA_INET_CONF { IPV4_DEVCONF_RP_FILTER: 2 } } }
    assert struct.unpack("=HHHHHHHHI", nest) == (20, 26, 16, 2, 12, 1, 8, 8, 2)


@pytest.fixture
def conf(tmp_path, monkeypatch):
    def write(device: str, value: int) -> None:
        (tmp_path / device).mkdir(exist_ok=True)
        (tmp_path / device / "rp_filter").write_text(f"{value}\n")

    monkeypatch.setattr(loose_module, "set_rp_filter", write)
    for device, value in {"all": 0, "eth0": 1, "flannel.1": 0, "cali1": 1}.items():
        write(device, value)
    return tmp_path


def value(conf, device: str) -> int:
    return int((conf / device / "rp_filter").read_text())


def test_only_strict_interfaces_are_loosened_and_put_back(conf):
    it = Loose(conf=conf)
    assert it.keep(["eth0", "flannel.1", "gone0"]) == []
    assert it.before == {"eth0": 1}
    assert [value(conf, d) for d in ("eth0", "flannel.1", "cali1")] == [2, 0, 1]
    it = Loose(it.before, conf=conf)
    it.keep([])
    assert value(conf, "eth0") == 1
    assert it.before == {}


def test_strict_everywhere_needs_every_interface(conf):
    (conf / "all" / "rp_filter").write_text("1")
    it = Loose(conf=conf)
    it.keep(["eth0", "flannel.1"])
    assert it.before == {"eth0": 1, "flannel.1": 0}


def test_what_somebody_else_set_later_stays(conf):
    it = Loose(conf=conf)
    it.keep(["eth0"])
    (conf / "eth0" / "rp_filter").write_text("0")
    it.keep([])
    assert value(conf, "eth0") == 0


def test_a_refusal_is_told_with_the_remedy(conf, monkeypatch):
    def refuse(device: str, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(loose_module, "set_rp_filter", refuse)
    it = Loose(conf=conf)
    assert "sysctl -w net.ipv4.conf.eth0.rp_filter=2" in it.keep(["eth0"])[0]
    assert it.before == {}
