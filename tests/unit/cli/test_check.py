"""The tests of helm test: what is judged, and what is said."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner
from kubernetes import client

from ipsec_cli import check
from ipsec_cli.ping import NoPing, TooBig


def peer(name="hq", status=None, conditions=None, **spec):
    states = [
        {"type": kind, "status": value, "reason": "Because", "message": f"{kind} {value}"}
        for kind, value in (conditions or {}).items()
    ]
    return {
        "metadata": {"namespace": "team", "name": name},
        "spec": {"address": "203.0.113.9", "remoteSubnets": ["10.20.0.0/16"], **spec},
        "status": {"conditions": states, **(status or {})},
    }


def judged(findings):
    return [(f.what, f.good, f.text) for f in findings]


def test_accepted_needs_both_conditions():
    fine = {"Accepted": "True", "ResolvedRefs": "True"}
    assert judged(check.accepted([peer(conditions=fine)]))[0][1] is True
    missing = peer(conditions={"Accepted": "True", "ResolvedRefs": "False"})
    (finding,) = check.accepted([missing])
    assert finding.good is False
    assert finding.text == "Because: ResolvedRefs False"
    (finding,) = check.accepted([{**peer(), "status": {}}])
    assert finding.good is False
    assert "does the operator run?" in finding.text


def test_established_is_asked_of_those_that_we_call():
    peers = [
        peer("up", conditions={"Established": "True"}),
        peer("down", conditions={"Established": "False"}),
        peer("off", disabled=True),
        peer("waits", passive=True),
    ]
    assert [f.good for f in check.established(peers)] == [True, False, None, None]


def test_addresses_are_hosts_that_are_in_use():
    peers = [
        peer(address="vpn.example.org"),
        peer(address="192.0.2.0/24", passive=True),
        {**peer(), "spec": {"passive": True}},
        peer(address="192.0.2.1", disabled=True),
    ]
    assert list(check.addresses(peers)) == ["vpn.example.org"]


def test_places_come_from_the_targets_or_from_the_probes():
    peers = [
        peer(status={"effectiveMTU": 1400}, probe={"targets": ["10.20.0.1", "10.20.0.2"]}),
        peer("off", disabled=True, probe={"targets": ["10.20.0.3"]}),
    ]
    assert list(check.places(peers, [])) == [
        check.Place("10.20.0.1", 1400),
        check.Place("10.20.0.2", 1400),
    ]
    # Elsewhere than in a remote network nobody knows the MTU, but all links have 1280.
    assert list(check.places(peers, ["10.99.0.1", "10.99.0.1"])) == [check.Place("10.99.0.1", 1280)]


@pytest.fixture
def pings(monkeypatch):
    """``pings[address]``: the largest packet that passes; with ``told`` its sender hears of it."""
    limits = {}

    def ping(address, size=84, *, dont_fragment=False):
        limit, told = limits.get(address, (0, False))
        if not dont_fragment or size <= limit:
            return 0.01 if limit else None
        if told:
            raise TooBig
        return None

    monkeypatch.setattr(check, "ping", ping)
    return limits


def test_sizes(pings):
    place = check.Place("10.20.0.1", 1400)
    pings["10.20.0.1"] = (1400, False)
    assert check.fits(place).good
    pings["10.20.0.1"] = (1399, False)
    assert "vanish" in check.fits(place).text
    pings["10.20.0.1"] = (1399, True)
    assert "takes less" in check.fits(place).text
    del pings["10.20.0.1"]
    assert check.fits(place).text == "no answer to ping of any size"


def test_one_address_of_a_name_is_enough(pings, monkeypatch):
    monkeypatch.setattr(check, "_resolved", lambda _: ["192.0.2.1", "192.0.2.2"])
    assert not check.answers("vpn.example.org").good
    pings["192.0.2.2"] = (1500, False)
    assert check.answers("vpn.example.org").good


class TestCommand:
    @pytest.fixture
    def peers(self, monkeypatch):
        found = []
        monkeypatch.setattr(check, "_read", lambda namespaces: found)
        return found

    def run(self, *arguments):
        return CliRunner().invoke(check.check, arguments)

    def test_fails_where_one_fails(self, peers):
        peers += [peer(conditions={"Established": "False"}), peer("off", disabled=True)]
        done = self.run("established")
        assert done.exit_code == 1
        assert "bad team/hq: Because: Established False" in done.output
        assert "-   team/off: disabled" in done.output

    @pytest.mark.parametrize("test", ["config", "established", "gateway", "ping", "size"])
    def test_nothing_to_test_is_said(self, test, peers):
        done = self.run(test)
        assert done.exit_code == 0
        assert "nothing to test" in done.output

    def test_no_ping_socket_is_one_line(self, peers, monkeypatch):
        def refuse(*_, **__):
            raise NoPing("the kernel allows no ping here")

        monkeypatch.setattr(check, "ping", refuse)
        done = self.run("ping", "--target=10.20.0.1")
        assert done.exit_code == 1
        assert done.output == "Error: the kernel allows no ping here\n"

    def test_a_target_is_an_address(self, peers):
        assert self.run("ping", "--target=router").exit_code == 2


class TestRead:
    """Against an API server that has one peer in each of two namespaces."""

    @pytest.fixture
    def asked(self, monkeypatch):
        paths = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                paths.append(self.path)
                team = "/namespaces/b/" not in self.path
                text = json.dumps({"items": [peer("one" if team else "two")]}).encode()
                self.send_response(403 if "/namespaces/closed/" in self.path else 200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                """Not into the output of the tests."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            configuration = client.Configuration(host=f"http://127.0.0.1:{server.server_port}")
            made = client.ApiClient
            monkeypatch.setattr(check.config, "load_config", lambda: None)
            monkeypatch.setattr(check.client, "ApiClient", lambda: made(configuration))
            yield paths
            server.shutdown()

    def test_everywhere(self, asked):
        assert [p["metadata"]["name"] for p in check._read([])] == ["one"]
        assert asked == ["/apis/kubeipsec.dev/v1alpha1/ipsecpeers"]

    def test_in_namespaces(self, asked):
        assert [p["metadata"]["name"] for p in check._read(["a", "b"])] == ["one", "two"]
        assert asked == [
            f"/apis/kubeipsec.dev/v1alpha1/namespaces/{name}/ipsecpeers" for name in "ab"
        ]

    def test_a_refusal_is_one_line(self, asked):
        done = CliRunner().invoke(check.check, ["config", "--namespace=closed"])
        assert done.exit_code == 1
        assert done.output.startswith("Error: the API server refuses (403 Forbidden)")
