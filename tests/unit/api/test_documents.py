"""YAML as users write it, well and badly: errors name the place and the remedy, never the value."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ipsec_api.documents import _LIBYAML, InvalidObject, collect, loader, parse, parse_object
from ipsec_api.snapshot import IPsecPeer, Secret

Make = Callable[..., dict[str, Any]]

PEER = """\
apiVersion: kubeipsec.dev/v1alpha1
kind: IPsecPeer
metadata: {name: NAME}
spec:
  address: 203.0.113.9
  authentication: {method: preSharedKey, secretRef: {name: hq-psk}}
  remoteSubnets: [10.20.0.0/16]
"""
HQ = PEER.replace("NAME", "hq")


def errors(text: str) -> list[str]:
    return [str(e) for e in parse(text, file="east/peer.yaml").errors]


def test_several_documents_of_all_kinds(make: Make) -> None:
    text = f"""\
---
{HQ}
---
# nothing in here
---
apiVersion: v1
kind: Secret
metadata: {{name: hq-psk, namespace: default}}
type: Opaque
data: {{psk: {base64.b64encode(b"from data").decode()}, other: aGk=}}
stringData: {{psk: from stringData}}
---
apiVersion: kubeipsec.dev/v1alpha1
kind: IPsecPolicy
metadata: {{name: web}}
spec: {{peerRef: {{name: hq}}, srcAddress: 10.1.0.0/24, dstAddress: 10.2.0.0/24}}
---
apiVersion: kubeipsec.dev/v1alpha1
kind: ModeConfig
metadata: {{name: pool}}
spec: {{responder: true, address: 10.9.0.1}}
"""
    found = collect({"a.yaml": text})
    assert not found.errors
    snapshot = found.snapshot
    assert [p.metadata.name for p in snapshot.peers] == ["hq"]
    assert [p.metadata.name for p in snapshot.policies] == ["web"]
    assert [m.metadata.name for m in snapshot.mode_configs] == ["pool"]
    assert dict(snapshot.secrets[0].data) == {"psk": b"from stringData", "other": b"hi"}


def test_metadata_is_kept() -> None:
    text = HQ.replace(
        "{name: hq}",
        "{name: hq, namespace: vpn, uid: u-1, generation: 7, labels: {a: b}, annotations: {c: d},"
        " creationTimestamp: 2027-01-01T00:00:00Z, resourceVersion: '9', managedFields: []}",
    )
    (peer,) = parse(text).objects
    meta = peer.metadata
    assert (meta.name, meta.namespace, meta.uid, meta.generation) == ("hq", "vpn", "u-1", 7)
    assert (meta.labels, meta.annotations) == ({"a": "b"}, {"c": "d"})
    assert meta.creation_timestamp == "2027-01-01T00:00:00Z"
    assert isinstance(peer, IPsecPeer)
    assert str(peer.ref) == "IPsecPeer vpn/hq"
    assert (peer.ref.uid, peer.ref.generation) == ("u-1", 7)


def test_a_list_is_flattened() -> None:
    items = "".join(
        "- " + PEER.replace("NAME", name).replace("\n", "\n  ").rstrip() + "\n" for name in "ab"
    )
    found = parse(f"apiVersion: v1\nkind: List\nitems:\n{items}")
    assert not found.errors
    assert [o.metadata.name for o in found.objects] == ["a", "b"]


def test_status_is_not_looked_at() -> None:
    assert not errors(HQ + "status: {anything: [1, 2]}\n")


def test_unrelated_kinds_are_a_warning() -> None:
    found = parse(HQ + "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: c}}\n", file="f")
    assert len(found.objects) == 1
    assert not found.errors
    assert [str(w) for w in found.warnings] == [
        "f: document 2: ConfigMap default/c: ignored: only IPsecPeer, IPsecPolicy, ModeConfig and"
        " Secret are read here"
    ]


def test_one_bad_document_does_not_stop_the_others() -> None:
    bad = PEER.replace("NAME", "bad").replace("203.0.113.9", "203.0.113.9.1")
    text = f"{HQ}---\n{bad}---\n{PEER.replace('NAME', 'last')}"
    found = parse(text, file="east/peer.yaml")
    assert [o.metadata.name for o in found.objects] == ["hq", "last"]
    assert [str(e) for e in found.errors] == [
        "east/peer.yaml: document 2: IPsecPeer default/bad: spec.address: not an IP address,"
        " network or DNS name: write 192.0.2.1, 192.0.2.0/24 or vpn.example.com"
    ]
    rejection = found.errors[0].rejection
    assert rejection is not None
    assert str(rejection.source) == "IPsecPeer default/bad"
    assert (rejection.field, rejection.reason) == ("spec.address", "Invalid")


def test_what_is_not_yaml_ends_the_file_and_keeps_what_came_before() -> None:
    found = parse(f"{HQ}---\nkind: 'never closed\n", file="f")
    assert [o.metadata.name for o in found.objects] == ["hq"]
    assert len(found.errors) == 1
    assert str(found.errors[0]).startswith("f: document 2: not YAML at line ")
    assert found.errors[0].rejection is None


SPEC = "IPsecPeer default/hq: spec"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("  address:", "  adress:", f"{SPEC}.adress: unknown field: did you mean address?"),
        (
            "secretRef: {name: hq-psk}",
            "secretRef: {name: hq-psk, kye: a}",
            f"{SPEC}.authentication.secretRef.kye: unknown field: did you mean key?",
        ),
        ("  address:", "  zzz: 1\n  address:", f"{SPEC}.zzz: unknown field: remove it"),
        ("spec:", "foo: 1\nspec:", "IPsecPeer default/hq: foo: unknown field: remove it, or move"),
        (
            "  address:",
            "  port: '500'\n  address:",
            f"{SPEC}.port: not a whole number: write it without quotes",
        ),
        (
            "  address:",
            "  port: 5.5\n  address:",
            f"{SPEC}.port: not a whole number: write it without quotes",
        ),
        ("  address:", "  port: 0\n  address:", f"{SPEC}.port: too small: write at least 1"),
        ("  address:", "  mtu: 9001\n  address:", f"{SPEC}.mtu: too large: write at most 9000"),
        (
            "  address:",
            "  passive: 'yes'\n  address:",
            f"{SPEC}.passive: neither true nor false: write one of them without quotes",
        ),
        (
            "address: 203.0.113.9",
            "address: 5",
            f"{SPEC}.address: not text: put the value in quotes",
        ),
        (
            "[10.20.0.0/16]",
            "10.20.0.0/16",
            f"{SPEC}.remoteSubnets: not a list: write one - VALUE line for each entry",
        ),
        (
            "[10.20.0.0/16]",
            "[10.20.0.0/16, 10.20.0.0/16]",
            f"{SPEC}.remoteSubnets: an entry occurs twice: remove one of them",
        ),
        (
            "method: preSharedKey",
            "method: psk",
            f"{SPEC}.authentication.method: not one of the possible values: write 'preSharedKey', ",
        ),
        ("method: preSharedKey, ", "", f"{SPEC}.authentication.method: missing: set it"),
        (
            "authentication: {method: preSharedKey, secretRef: {name: hq-psk}}",
            "authentication: psk",
            f"{SPEC}.authentication: not an object: write KEY: VALUE lines under it",
        ),
        (
            "{name: hq-psk}",
            "{name: HQ_psk}",
            f"{SPEC}.authentication.secretRef.name: not of the form ",
        ),
        ("{name: hq-psk}", "{name: ''}", f"{SPEC}.authentication.secretRef.name: empty: set a"),
        (
            "address: 203.0.113.9",
            f"address: {'a.' * 130}b",
            f"{SPEC}.address: too long: at most 253 characters are possible",
        ),
        (
            "[10.20.0.0/16]",
            str([f"10.{n}.0.0/16" for n in range(65)]),
            f"{SPEC}.remoteSubnets: too many entries: at most 64 are possible",
        ),
        (
            "authentication: {method: preSharedKey, secretRef: {name: hq-psk}}",
            "identities: []",
            f"{SPEC}.identities: too few entries: at least 1 are needed",
        ),
        ("v1alpha1", "v1", "IPsecPeer default/hq: apiVersion: this version is not known: set kube"),
        ("kubeipsec.dev/v1alpha1", "v1", "IPsecPeer default/hq: apiVersion: set apiVersion: kube"),
        ("IPsecPeer", "IPSecPeer", "IPSecPeer default/hq: apiVersion: set apiVersion: kubeipsec"),
        ("kind: IPsecPeer\n", "", "document 1: not a Kubernetes object: set apiVersion, kind, "),
        ("{name: hq}", "{}", "IPsecPeer: metadata.name: missing or not a name: use lower-case"),
        ("{name: hq}", "{name: ../../etc/passwd}", "IPsecPeer: metadata.name: missing or not a"),
        ("{name: hq}", "{name: hq, namespace: ../x}", "metadata.namespace: not a name: use lower"),
        ("{name: hq}", "{name: hq, labels: {a: 1}}", "metadata.labels: not a map of texts: put"),
        ("metadata: {name: hq}\n", "", "IPsecPeer: metadata: missing: set metadata.name"),
        (
            "  address:",
            "  address: 1.1.1.1\n  address:",
            "line 6: a key is there twice: remove one",
        ),
        ("address: 203.0.113.9", "address: !!binary aGk=", "remove the YAML tag"),
        ("  address:", "  5: 6\n  address:", "a key is not text: put it in quotes"),
    ],
)
def test_messages(before: str, after: str, message: str) -> None:
    assert before in HQ
    (text,) = errors(HQ.replace(before, after, 1))
    assert text.startswith("east/peer.yaml: document 1: ")
    assert message in text


@pytest.mark.parametrize("text", ["just text", "[1, 2]", "5", "kind: 5", "{kind: IPsecPeer}"])
def test_what_is_no_object(text: str) -> None:
    assert len(errors(text)) == 1


def test_an_object_that_is_there_twice() -> None:
    found = collect({"b.yaml": HQ, "a.yaml": HQ.replace("203.0.113.9", "192.0.2.1")})
    assert [p.spec.address for p in found.snapshot.peers] == ["192.0.2.1"]
    assert [str(e) for e in found.errors] == [
        "b.yaml: IPsecPeer default/hq: the same object is in a.yaml already: remove one of the two"
    ]


@pytest.mark.parametrize(
    ("part", "field", "message"),
    [
        ("data: {psk: 'SECRET not base64'}", "data.psk", "not base64: encode it, or move it to"),
        ("data: {psk: 12345678}", "data.psk", "not text: put the value in quotes"),
        ("stringData: {psk: 12345678}", "stringData.psk", "not text: put the value in quotes"),
        ("stringData: [SECRET]", "stringData", "not a map: write KEY: VALUE lines under it"),
    ],
)
def test_bad_secrets(part: str, field: str, message: str) -> None:
    (text,) = errors(f"apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\n{part}\n")
    assert f"Secret default/s: {field}: {message}" in text
    assert "SECRET" not in text
    assert "12345678" not in text


MARK = "xyzzy-secret-9731"


@pytest.mark.parametrize(
    "text",
    [
        f"psk: {MARK}",
        f"kind: {MARK}!",
        f"psk: '{MARK}",
        f"psk: !{MARK} a",
        f"psk: *{MARK}",
        f"psk: &{MARK} [*{MARK}]",
        f"? [{MARK}]\n: b",
        f"%{MARK}",
        f"apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\ndata: {{psk: {MARK}}}",
        f"apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\nstringData: [{MARK}]",
        f"apiVersion: v1\nkind: Secret\nmetadata: {{name: {MARK}!}}",
        HQ.replace("203.0.113.9", f"{MARK}!"),
        HQ.replace("preSharedKey", MARK),
        HQ.replace("preSharedKey", f"preSharedKey, secret: {MARK}"),
        HQ.replace("10.20.0.0/16", f"{MARK}/8"),
        HQ.replace("{name: hq-psk}", f"{MARK}!"),
        HQ.replace("name: hq-psk", f"name: '{MARK}!'"),
        HQ.replace("[10.20.0.0/16]", f"[10.20.0.0/16]\n  profile: {{lifetime: {MARK}}}"),
        HQ.replace("[10.20.0.0/16]", f"[10.20.0.0/16]\n  mtu: {MARK}"),
    ],
)
def test_values_are_never_repeated(text: str) -> None:
    found = parse(text)
    assert found.errors
    assert MARK not in repr(found)
    assert MARK not in "".join(map(str, found.errors))


def test_secret_objects_hide_their_data(secret_text: str) -> None:
    text = (
        f"apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\nstringData: {{psk: {secret_text}}}"
    )
    found = parse(text)
    (secret,) = found.objects
    assert isinstance(secret, Secret)
    assert secret.data["psk"] == secret_text.encode()
    assert secret_text not in f"{found!r} {found} {secret!r} {secret} {collect({'f': text})!r}"


def test_aliases_cannot_blow_up() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    bomb = "  " + "\n  ".join(lines)
    (text,) = errors(HQ.replace("spec:", f"spec:\n{bomb}"))
    assert "too large or too deep: split it, and use no YAML aliases" in text


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "{" * 100_000,
        "- " * 100_000,
        "a: \x00",
        HQ.replace("address:", "x: &a [*a]\n  address:"),
    ],
)
def test_nesting_without_end(text: str) -> None:
    assert len(errors(text)) == 1


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    parse(text)
    parse(HQ + "---\n" + text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3),
    max_leaves=8,
)
FIELDS = ["address", "passive", "profile", "identities", "remoteSubnets", "mtu", "nat", "routing"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
def test_any_spec_is_read_or_refused(changes: dict[str, Any]) -> None:
    spec: dict[str, Any] = {
        "address": "192.0.2.1",
        "authentication": {"method": "preSharedKey", "secretRef": {"name": "s"}},
        **changes,
    }
    raw = {
        "apiVersion": "kubeipsec.dev/v1alpha1",
        "kind": "IPsecPeer",
        "metadata": {"name": "hq"},
        "spec": spec,
    }
    with contextlib.suppress(InvalidObject):
        parse_object(raw)


@pytest.mark.skipif(_LIBYAML is None, reason="PyYAML was built without libyaml: one loader")
def test_both_loaders_read_the_same() -> None:
    quick, thorough = loader(HQ), loader("[" * 100)
    assert quick is not thorough
    text = "on: 2001-12-14\nyes: [0o14, 0x1F, 1e3, ~, .inf, 'x']\nm: {a: &a 1, b: *a}\n"
    assert yaml.load(text, Loader=quick) == yaml.load(text, Loader=thorough)
    for each in (quick, thorough):
        with pytest.raises(yaml.YAMLError, match="twice"):
            yaml.load("a: 1\na: 2\n", Loader=each)
