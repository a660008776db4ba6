"""What the README shows is true."""

import re
from pathlib import Path

import pytest

from ipsec_api import compile as compiler
from ipsec_api.documents import collect

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()


def yaml_of_the_readme() -> str:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    return str(block)


def test_the_peer_of_the_readme_becomes_one_tunnel() -> None:
    collected = collect({"README.md": yaml_of_the_readme()})
    assert not collected.errors
    result = compiler.compile(collected.snapshot, discovered_subnets=["10.1.0.0/16"])
    assert not result.rejections
    (tunnel,) = result.tunnels
    assert [s.dst for p in tunnel.policies for s in p.selectors] == ["10.20.0.0/16"]


def test_the_peer_of_the_readme_has_five_lines_of_spec() -> None:
    peer = yaml_of_the_readme().partition("---")[0]
    assert len(peer.partition("spec:\n")[2].splitlines()) == 5


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_architecture_names_files_that_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    names = set(re.findall(r"`([a-z_/]+\.py)`", text)) - {"operator/__init__.py"}
    assert names
    for name in names:
        assert any(path.match(name) for path in ROOT.glob("*/ipsec_*/**/*.py")), name
