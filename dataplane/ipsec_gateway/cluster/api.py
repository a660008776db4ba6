"""A small client of the Kubernetes API: JSON in and out, watches, and errors with a cause.

It is the gateway's and the route agent's, which run on every node, and not the ``kubernetes``
package that the operator uses, because importing that costs half a second and 20 MiB (45 MiB with
its classes for Secrets) beyond aiohttp.

In a pod it needs nothing but the files of the service account. A plain KUBECONFIG is read by
``kubeconfig``; only for one that asks for plugins or other ways to log in that package is imported.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

#: Files of the service account.
ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
#: Seconds for which those files count before they are read again: the kubelet replaces them.
_FILES_AGE: Final = 60.0
#: Seconds for one ordinary request; for the next octet of a watch.
REQUEST: Final = 5.0
_CONNECT: Final = 4.0
#: Octets of the longest event of a watch: a Secret has 1 MiB of data at most, in base64.
_LONGEST: Final = 4 << 20

APPLY: Final = "application/apply-patch+yaml"


class NoCluster(Exception):
    """There is no API server to be found; the text has the remedy."""


class ApiError(Exception):
    """A request failed. ``status`` 0: the API server was not reached."""

    def __init__(self, status: int, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status: Final = status
        #: Seconds to wait, if the API server says so.
        self.retry_after: Final = retry_after


class Silent(ApiError):
    """A watch was silent for too long: nothing has changed, or the connection is dead."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is and how to prove who we are."""

    url: str
    ssl: ssl.SSLContext | None
    headers: Callable[[], Mapping[str, str]]


def in_cluster(environ: Mapping[str, str], account: Path = ACCOUNT, *, instead: str) -> Access:
    """Access of a pod. Raises NoCluster; ``instead``: what else could be done, for its text."""
    host = environ.get("KUBERNETES_SERVICE_HOST")
    if not host:
        raise NoCluster(
            "this is no pod (KUBERNETES_SERVICE_HOST is not set): run it in the cluster, or"
            f" {instead}"
        )
    ca = account / "ca.crt"
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except OSError as exc:
        raise NoCluster(f"{ca} cannot be used ({exc}): mount the service account") from exc
    if ":" in host:
        host = f"[{host}]"
    port = environ.get("KUBERNETES_SERVICE_PORT", "443")
    return Access(f"https://{host}:{port}", context, _Account(account / "token", ca, context))


class _Account:
    """The bearer token, read again from time to time; the old one stays if that fails. So is the
    authority: an API server with a certificate of the next one is known, too."""

    def __init__(self, token: Path, ca: Path, context: ssl.SSLContext) -> None:
        self._path: Final = token
        self._ca: Final = ca
        self._context: Final = context
        self._token = ""
        self._read = float("-inf")

    def __call__(self) -> Mapping[str, str]:
        if time.monotonic() - self._read > _FILES_AGE:
            try:
                self._token = self._path.read_text().strip()
                self._context.load_verify_locations(self._ca)
                self._read = time.monotonic()
            except OSError as exc:
                if not self._token:
                    raise ApiError(0, f"{self._path} cannot be read ({exc.strerror})") from exc
        return {"Authorization": f"Bearer {self._token}"}


async def from_kubeconfig(path: Path) -> Access:
    """Access with a KUBECONFIG. Raises NoCluster."""
    from kubernetes.aio import client, config

    configuration = client.Configuration()
    try:
        await config.load_kube_config(  # type: ignore[no-untyped-call]  # it has no types
            config_file=str(path), client_configuration=configuration, persist_config=False
        )
    except (config.ConfigException, OSError) as exc:
        raise NoCluster(f"KUBECONFIG {path} cannot be used ({exc}): correct it") from exc
    context = None
    if configuration.host.startswith("https:"):
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, configuration.key_file)
        if not configuration.verify_ssl:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
    token = await configuration.get_api_key_with_prefix("BearerToken")
    headers = {"Authorization": token} if token else {}
    return Access(configuration.host, context, lambda: headers)


class Api:
    """Requests. All raise ApiError."""

    def __init__(self, access: Access) -> None:
        self._access: Final = access
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """End all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """GET."""
        return await self._request("GET", path, params or {}, None, None)

    async def apply(self, path: str, body: Mapping[str, Any], *, manager: str) -> dict[str, Any]:
        """Server-side apply; fields that another one owns are taken over."""
        # What we write has no unknown fields. To look for them the server would read it twice.
        params = {"fieldManager": manager, "force": "true", "fieldValidation": "Ignore"}
        return await self._request("PATCH", path, params, body, APPLY)

    async def _request(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        body: Mapping[str, Any] | None,
        kind: str | None,
    ) -> dict[str, Any]:
        try:
            async with self._open().request(
                method,
                self._access.url + path,
                params=dict(params),
                data=None if body is None else json.dumps(body).encode(),
                headers=self._headers(kind),
                timeout=aiohttp.ClientTimeout(total=REQUEST, connect=_CONNECT),
                ssl=self._access.ssl or True,
            ) as response:
                await _check(response)
                document = json.loads(await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as exc:
            raise _unreachable(exc) from exc
        if not isinstance(document, dict):
            raise ApiError(0, "the answer is no object")
        return document

    async def watch(
        self,
        path: str,
        params: Mapping[str, str],
        *,
        silence: float,
        opened: Callable[[], None] = lambda: None,
    ) -> AsyncIterator[dict[str, Any]]:
        """Events, until the API server ends the stream. ``opened`` is called once the server has
        answered; ``silence``: seconds without an octet after which it raises Silent."""
        timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT, sock_read=silence)
        answered = False
        try:
            async with self._open().get(
                self._access.url + path,
                params={**params, "watch": "true"},
                headers=self._headers(None),
                timeout=timeout,
                ssl=self._access.ssl or True,
            ) as response:
                await _check(response)
                answered = True
                opened()
                rest = b""
                async for chunk in response.content.iter_any():
                    *rows, rest = (rest + chunk).split(b"\n")
                    if len(rest) > _LONGEST:
                        raise ApiError(0, "an event of the watch is too long")
                    for row in rows:
                        if row:
                            yield json.loads(row)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as exc:
            if answered and isinstance(exc, asyncio.TimeoutError):
                raise Silent(0, f"nothing heard for {silence:.0f} s") from exc
            raise _unreachable(exc) from exc

    def _headers(self, kind: str | None) -> dict[str, str]:
        headers = {"Accept": "application/json", **self._access.headers()}
        if kind is not None:
            headers["Content-Type"] = kind
        return headers

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=16, keepalive_timeout=30),
                headers={"User-Agent": "kube-ipsec"},
            )
        return self._session


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    text = (await response.read())[:4096]
    try:
        message = str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        message = response.reason or "no reason given"
    after = response.headers.get("Retry-After", "")
    wait = float(after) if after.isdecimal() else 0.0
    raise ApiError(response.status, f"{response.status}: {message}", retry_after=wait)


def _unreachable(exc: Exception) -> ApiError:
    if isinstance(exc, asyncio.TimeoutError):
        return ApiError(0, "the API server does not answer")
    return ApiError(0, f"the API server cannot be reached: {exc}")
