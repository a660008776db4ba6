"""``kube-ipsec operator``: settings, exit codes."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ipsec_lab.kubeapi import serving

CODE = "from ipsec_operator.cli import operator; operator()"


def run(*args: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", CODE, *args],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **env},
    )


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("image: x\n", 0, "good"),
        ("image: x\nimages: y\n", 2, "images"),
        (None, 2, "cannot be read"),
    ],
)
def test_settings_are_checked(tmp_path: Path, text: str | None, code: int, said: str) -> None:
    file = tmp_path / "operator.yaml"
    if text is not None:
        file.write_text(text)
    done = run("--settings", str(file), "--check")
    assert done.returncode == code
    assert said in done.stdout + done.stderr


def test_without_a_cluster_it_says_so(tmp_path: Path) -> None:
    file = tmp_path / "operator.yaml"
    file.write_text("image: x\n")
    done = run("--settings", str(file))
    assert done.returncode == 3
    assert "KUBECONFIG" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_ends_in_good_order_and_gives_the_lease_back(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving() as (server, url):
            kubeconfig = {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": url}}],
                "users": [{"name": "u", "user": {}}],
            }
            (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig))
            settings = tmp_path / "operator.yaml"
            settings.write_text("image: x\nport: 0\n")
            env = {"PATH": "/usr/bin:/bin", "KUBECONFIG": str(tmp_path / "kubeconfig")}
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", CODE, "--settings", str(settings)),
                env={**env, "POD_NAME": "operator-0", "HOME": str(tmp_path)},
                stderr=asyncio.subprocess.PIPE,
            )

            def holder() -> object:
                lease = server.one("leases", "kube-ipsec", "kube-ipsec-operator")
                return lease["spec"]["holderIdentity"]

            watched = False
            while not watched:
                await asyncio.sleep(0.05)
                watched = any((c.verb, c.plural) == ("watch", "ipsecpeers") for c in server.calls)
            assert holder() == "operator-0"
            process.terminate()
            _, said = await process.communicate()
            assert process.returncode == 0, said.decode()
            assert holder() == ""

    asyncio.run(body())
