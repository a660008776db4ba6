"""Any cluster: the one that KUBECONFIG names, with its own API server as the judge.

A control plane without nodes is enough. Everything is done in a namespace of its own, which goes
afterwards; CRDs that were there before stay as they were found, and must be those of this tree.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config

from ipsec_lab.cluster import Cluster, until
from ipsec_lab.operator_process import OperatorProcess
from ipsec_lab.release import Release, installed, occupied

CRDS = sorted((Path(__file__).parents[2] / "crds").glob("*.yaml"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that install the chart come first: it is for clusters that have not our CRDs yet, which
    others make for the rest of the run."""
    folder = Path(__file__).parent
    places = [n for n, item in enumerate(items) if item.path.is_relative_to(folder)]
    ordered = sorted((items[n] for n in places), key=lambda item: "install" not in _fixtures(item))
    for place, item in zip(places, ordered, strict=True):
        items[place] = item


def _fixtures(item: pytest.Item) -> list[str]:
    return item.fixturenames if isinstance(item, pytest.Function) else []


@pytest.fixture(scope="session")
def api() -> Iterator[client.ApiClient]:
    """A client with the rights of KUBECONFIG, which have to be those of an administrator."""
    with config.new_client_from_config(os.environ["KUBECONFIG"]) as made:
        yield made


@pytest.fixture(scope="session")
def crds(api: client.ApiClient) -> Iterator[dict[str, Any]]:
    """Our CRDs by kind, established in the cluster."""
    extensions = client.ApiextensionsV1Api(api)
    definitions = [yaml.safe_load(path.read_text()) for path in CRDS]

    def found() -> dict[str, Any]:
        items = extensions.list_custom_resource_definition().items
        ours = {definition["metadata"]["name"] for definition in definitions}
        return {each.metadata.name: each.metadata for each in items if each.metadata.name in ours}

    # Those that are on their way out are not there: somebody has deleted them a moment ago.
    until(lambda: not any(m.deletion_timestamp for m in found().values()), "old CRDs are gone")
    there = found()
    made = []
    for definition in definitions:
        name = definition["metadata"]["name"]
        if name not in there:
            made.append(name)
        extensions.patch_custom_resource_definition(
            name,
            definition,
            field_manager="kube-ipsec-tests",
            force=True,
            _content_type="application/apply-patch+yaml",
        )
    yield {each["spec"]["names"]["kind"]: each for each in definitions}
    for name in made:
        extensions.delete_custom_resource_definition(name)


@pytest.fixture(scope="session")
def namespace(api: client.ApiClient) -> Iterator[str]:
    """A namespace for this run."""
    core = client.CoreV1Api(api)
    name = f"kube-ipsec-test-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name}})
    yield name
    core.delete_namespace(name)


# -- the chart installed, and its operator as a process of this machine


@pytest.fixture(scope="session")
def install(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``with install() as release``: the chart in a cluster that has none, gone afterwards."""

    @contextmanager
    def install(version: str = "") -> Iterator[Release]:
        with closing(Cluster(Path(os.environ["KUBECONFIG"]))) as cluster:
            if problem := occupied(cluster):
                pytest.skip(problem)
            with installed(cluster, tmp_path_factory.mktemp("release"), version) as release:
                yield release

    return install


@pytest.fixture(scope="module")
def release(install: Callable[..., Any]) -> Iterator[Release]:
    """The chart installed, for a module."""
    with install() as made:
        yield made


@pytest.fixture(scope="module")
def operator(release: Release) -> Iterator[OperatorProcess]:
    """Its operator, which leads."""
    with release.operator() as running:
        running.wait_leading()
        yield running
