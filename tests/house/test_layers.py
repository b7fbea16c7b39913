"""Who may know what: parameters have one owner, the floors below the papers know no method, classes are shallow."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache

import pytest
from reading import PACKAGE, Check, Source, dotted, everywhere, refuse, sees, sources

BELOW_PAPERS = ("learning", "adapters", "strategies", "objectives", "streams", "models")
# The exceptions, each with its reason. A file is added here together with the reason, or the code is changed.
OWNS_PARAMETERS = {
    "adapters/bank.py",  # the one place where a tensor of an adapter is made, as trainable or frozen
    "adapters/model.py",  # freezes the base when a branch is put at its sites
    "adapters/overlay.py",  # puts a checkpoint's head, embedding or bias in the place of the base's, frozen
    "models/base.py",  # a base is loaded frozen
}


def parameter_owning(source: Source) -> Iterator[str]:
    for call in source.nodes(ast.Call):
        name = dotted(call.func).split(".")[-1]
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        if name == "Parameter" or method == "requires_grad_":
            yield source.at(call, f"calls {name or method}()")
    for node in source.nodes(ast.Attribute):
        frozen_by_hand = node.attr == "requires_grad" and isinstance(node.ctx, ast.Store)
        if node.attr == "data" or frozen_by_hand:
            yield source.at(node, f"touches .{node.attr}")


@cache
def slugs() -> frozenset[str]:
    """The methods' names: files and folders of papers/, as they are written in Python and in a config."""
    papers = PACKAGE / "papers"
    paths = [path for path in papers.glob("*") if path.suffix == ".py" or (path / "__init__.py").is_file()]
    stems = {path.stem for path in paths if not path.stem.startswith("_")}
    stems -= {path.stem for path in (PACKAGE / "strategies").glob("*.py")}  # a strategy's own word in a config
    return frozenset(stems | {stem.replace("_", "-") for stem in stems})


def method_names(source: Source) -> Iterator[str]:
    for node in source.nodes(ast.Constant):
        if isinstance(node.value, str) and node.value in slugs():
            yield source.at(node, f"names the method {node.value!r}")


def too_deep(package: Iterable[Source], depth: int) -> Iterator[str]:
    classes = {node.name: (source, node) for source in package for node in source.nodes(ast.ClassDef)}

    def levels(name: str, seen: frozenset[str] = frozenset()) -> int:
        """How many classes of the package stand above this one in its longest line."""
        if name not in classes or name in seen:
            return 0
        bases = [dotted(base).split(".")[-1] for base in classes[name][1].bases]
        return max((1 + levels(base, seen | {name}) for base in bases if base in classes), default=0)

    for name, (source, node) in classes.items():
        if levels(name) > depth:
            yield source.at(node, f"{name} stands {levels(name)} levels below its first class of the package")


def test_inheritance_is_shallow() -> None:
    refuse(too_deep(sources(), 2), "at most two levels of inheritance within the package")


def test_parameters_are_owned_in_one_place() -> None:
    owners = ", ".join(sorted(OWNS_PARAMETERS))
    refuse(everywhere(parameter_owning, OWNS_PARAMETERS), f"parameters are made and frozen in {owners}")


def test_no_method_is_named_below_papers() -> None:
    below = (source for source in sources() if source.path.split("/")[0] in BELOW_PAPERS)
    refuse((line for source in below for line in method_names(source)), "the floors below papers know no method")


def test_levels_of_inheritance_are_counted() -> None:
    text = "class A(nn.Module): ...\nclass B(A): ...\nclass C(other.B): ...\nclass D(C): ..."
    assert [line.split()[1] for line in too_deep([Source("x.py", text, ast.parse(text))], 2)] == ["D"]


BREACHES = [
    (parameter_owning, "x = nn.Parameter(y)"),
    (parameter_owning, "x.requires_grad_(False)"),
    (parameter_owning, "x.requires_grad = False"),
    (parameter_owning, "x.data.zero_()"),
]


@pytest.mark.parametrize(("check", "text"), BREACHES)
def test_each_rule_sees_its_breach(check: Check, text: str) -> None:
    sees(check, text)
