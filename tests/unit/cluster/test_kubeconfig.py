"""Plain KUBECONFIGs are read, others are left to the package, bad ones are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ipsec_gateway.cluster.api import NoCluster
from ipsec_gateway.cluster.kubeconfig import plain


def write(folder: Path, user: dict[str, Any], **cluster: Any) -> Path:
    path = folder / "kubeconfig"
    document = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://192.0.2.1:8080/", **cluster}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_token(tmp_path: Path) -> None:
    access = plain(write(tmp_path, {"token": "t"}))
    assert access is not None
    assert access.url == "http://192.0.2.1:8080"
    assert access.headers() == {"Authorization": "Bearer t"}
    (tmp_path / "file").write_text("of a file\n")
    access = plain(write(tmp_path, {"tokenFile": "file"}))
    assert access is not None
    assert access.headers() == {"Authorization": "Bearer of a file"}


def test_other_ways_to_log_in_are_for_the_package(tmp_path: Path) -> None:
    assert plain(write(tmp_path, {"exec": {"command": "aws"}})) is None
    assert plain(write(tmp_path, {"token": "t"}, **{"proxy-url": "http://x"})) is None


@pytest.mark.parametrize(
    "cluster",
    [
        {"server": "https://x", "certificate-authority": "missing"},
        {"server": "https://x", "certificate-authority-data": "%"},
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, cluster: dict[str, Any]) -> None:
    with pytest.raises(NoCluster, match="KUBECONFIG"):
        plain(write(tmp_path, {"token": "t"}, **cluster))


def test_no_context(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    for text in ("", "{}", "current-context: x\ncontexts: []\n", "{"):
        path.write_text(text)
        with pytest.raises(NoCluster, match="KUBECONFIG"):
            plain(path)
