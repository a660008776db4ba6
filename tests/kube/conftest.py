"""Any cluster: the one that KUBECONFIG names, with its own API server as the judge.

A control plane without nodes is enough. Everything is done in a namespace of its own, which goes
afterwards; CRDs that were there before stay as they were found, and must be those of this tree.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config

CRDS = sorted((Path(__file__).parents[2] / "crds").glob("*.yaml"))


@pytest.fixture(scope="session")
def api() -> Iterator[client.ApiClient]:
    """A client with the rights of KUBECONFIG, which have to be those of an administrator."""
    with config.new_client_from_config(os.environ["KUBECONFIG"]) as made:
        yield made


@pytest.fixture(scope="session")
def crds(api: client.ApiClient) -> Iterator[dict[str, Any]]:
    """Our CRDs by kind, established in the cluster."""
    extensions = client.ApiextensionsV1Api(api)
    there = {each.metadata.name for each in extensions.list_custom_resource_definition().items}
    definitions = [yaml.safe_load(path.read_text()) for path in CRDS]
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
