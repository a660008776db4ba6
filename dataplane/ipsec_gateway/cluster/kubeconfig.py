"""A KUBECONFIG of the plain kind: a server, an authority, a token or a client certificate.

Anything else (plugins, providers, passwords) is left to the ``kubernetes`` package.
"""

from __future__ import annotations

import base64
import ssl
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from ipsec_gateway import privatefiles
from ipsec_gateway.cluster.api import Access, NoCluster

_PLAIN_USER: Final = frozenset(
    {
        "token",
        "tokenFile",
        "client-certificate",
        "client-certificate-data",
        "client-key",
        "client-key-data",
    }
)
_PLAIN_CLUSTER: Final = frozenset(
    {
        "server",
        "certificate-authority",
        "certificate-authority-data",
        "insecure-skip-tls-verify",
        "extensions",
    }
)


def plain(path: Path) -> Access | None:
    """Access by this file, None where it asks for more than this module knows. Raises
    NoCluster."""
    try:
        document = yaml.safe_load(path.read_bytes())
        context = _named(document, "context", document["current-context"])
        cluster = _named(document, "cluster", context["cluster"])
        user = _named(document, "user", context["user"])
        server = str(cluster["server"]).rstrip("/")
    except (OSError, yaml.YAMLError, KeyError, TypeError, StopIteration) as exc:
        raise NoCluster(
            f"KUBECONFIG {path} cannot be used ({type(exc).__name__}: {exc}): correct it"
        ) from None
    if set(user) - _PLAIN_USER or set(cluster) - _PLAIN_CLUSTER:
        return None
    try:
        token = str(user.get("token", ""))
        if "tokenFile" in user:
            token = (path.parent / user["tokenFile"]).read_text().strip()
        tls = _context(cluster, user, path.parent) if server.startswith("https:") else None
    except (OSError, ValueError, ssl.SSLError) as exc:
        raise NoCluster(f"KUBECONFIG {path}: {exc}: correct it") from exc
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return Access(server, tls, lambda: headers)


def _named(document: Mapping[str, Any], kind: str, name: str) -> Mapping[str, Any]:
    found = next(entry[kind] for entry in document[f"{kind}s"] if entry["name"] == name)
    return dict(found or {})


def _context(cluster: Mapping[str, Any], user: Mapping[str, Any], folder: Path) -> ssl.SSLContext:
    data = cluster.get("certificate-authority-data")
    file = cluster.get("certificate-authority")
    context = ssl.create_default_context(
        cafile=None if file is None else str(folder / file),
        cadata=None if data is None else base64.b64decode(data, validate=True).decode(),
    )
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    names = ("client-certificate", "client-key")
    if all(f"{name}-data" in user or name in user for name in names):
        # The ssl module takes files alone.
        with tempfile.TemporaryDirectory() as private:
            certificate, key = (_file(user, name, folder, Path(private)) for name in names)
            context.load_cert_chain(certificate, key)
    return context


def _file(user: Mapping[str, Any], name: str, folder: Path, private: Path) -> Path:
    data = user.get(f"{name}-data")
    if data is None:
        return folder / str(user[name])
    path = private / name
    privatefiles.write(path, base64.b64decode(data))
    return path
