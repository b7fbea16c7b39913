"""What the files around the package promise: its wheel, its dependencies, its version."""

from __future__ import annotations

import re
import tomllib
from functools import cache

from reading import ROOT, sources


@cache
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def package_name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_the_wheel_holds_the_embedded_bases() -> None:
    wheel = project()["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["src/rankwise"]
    assert "src/rankwise/models/embedded/**" in wheel["artifacts"], "a line in .gitignore could drop the weights"
    assert not wheel.keys() & {"exclude", "only-include", "only-packages"}, "nothing of the package is left out"


def test_each_dependency_has_a_reason_and_a_version() -> None:
    needed = {package_name(line) for line in project()["project"]["dependencies"]}
    core = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").split("## Extras")[0]
    assert {package_name(name) for name in re.findall(r"^\| `([\w-]+)` \|", core, flags=re.MULTILINE)} == needed
    extras = project()["project"]["optional-dependencies"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {package_name(line) for line in lines if "==" in line and not line.startswith("#")}
    assert pinned == needed | {
        package_name(line) for extra in ("text", "report", "quant", "dev") for line in extras[extra]
    }


def test_every_extra_is_in_all_and_in_the_page() -> None:
    extras = project()["project"]["optional-dependencies"]
    named = set(re.findall(r"[\w-]+", extras["all"][0].partition("[")[2]))
    assert named == extras.keys() - {"all", "dev"}
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").split("## Extras")[1]
    assert set(re.findall(r"^\| `([\w-]+)` \|", page, flags=re.MULTILINE)) == extras.keys()


def test_one_version_everywhere() -> None:
    version = project()["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for source in sources():
        for written in re.findall(r'^__version__\s*=\s*"(.*)"', source.text, flags=re.MULTILINE):
            assert written == version, source.at(1, f"says version {written}")
