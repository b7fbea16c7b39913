"""How the code is written: whole annotations, docstrings, short functions, the words of the field."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator

import pytest
from reading import Check, Function, Source, dotted, everywhere, imported, refuse, sees, sources


def star_imports(source: Source) -> Iterator[str]:
    return (source.at(node, "import *") for node, name in imported(source) if name.endswith(".*"))


def broad_excepts(source: Source) -> Iterator[str]:
    for handler in source.nodes(ast.ExceptHandler):
        caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        names = ["" if kind is None else dotted(kind) for kind in caught]
        if any(name in ("", "Exception", "BaseException") for name in names):
            yield source.at(handler, f"except {' | '.join(names)}".rstrip())


def guesses(source: Source) -> Iterator[str]:
    for call in source.nodes(ast.Call):
        name = dotted(call.func)
        if name == "hasattr" or (name == "getattr" and len(call.args) == 3):
            yield source.at(call, f"calls {name}() to guess what an object is")


def unfinished(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines(), start=1):
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line):
            yield source.at(number, line.strip())
    for node in source.nodes(ast.Raise):
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        if raised is not None and dotted(raised) == "NotImplementedError":
            yield source.at(node, "raises NotImplementedError (an abstract method says so with abc or Protocol)")


def missing_annotations(source: Source) -> Iterator[str]:
    methods = {id(item) for owner in source.nodes(ast.ClassDef) for item in owner.body}
    for function in source.functions():
        static = any(dotted(mark) == "staticmethod" for mark in function.decorator_list)
        ordered = [*function.args.posonlyargs, *function.args.args]
        bound = 1 if id(function) in methods and not static else 0
        rest = [function.args.vararg, *function.args.kwonlyargs, function.args.kwarg]
        bare = [arg.arg for arg in [*ordered[bound:], *rest] if arg is not None and arg.annotation is None]
        if bare or function.returns is None:
            yield source.at(function, f"{function.name}: no annotation for {', '.join(bare) or 'the result'}")


def public_parts(body: list[ast.stmt]) -> Iterator[Function | ast.ClassDef]:
    for node in body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        marks = {dotted(mark).split(".")[-1] for mark in node.decorator_list}
        if not marks & {"overload", "override", "setter"}:
            yield node
        if isinstance(node, ast.ClassDef):
            yield from public_parts(node.body)


def missing_docstrings(source: Source) -> Iterator[str]:
    if not ast.get_docstring(source.tree) and source.text.strip():
        yield source.at(1, "the module has no docstring")
    for node in public_parts(source.tree.body):
        if not ast.get_docstring(node):
            yield source.at(node, f"{node.name} has no docstring")


def body_length(function: Function) -> int:
    """Lines from `def` to the end, the docstring not counted."""
    documented = ast.get_docstring(function, clean=False) is not None
    return lines(function) - (lines(function.body[0]) if documented else 0)


def lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def other_words(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines(), start=1):
        for word in re.findall(r"\b(?:experience|session|episode)s?\b", line, flags=re.IGNORECASE):
            yield source.at(number, f"says {word!r}; the words are task, stream and run")


def test_the_package_is_found() -> None:
    assert any(source.path == "errors.py" for source in sources())


def test_no_star_imports() -> None:
    refuse(everywhere(star_imports), "each imported name is written out")


def test_no_broad_except() -> None:
    refuse(everywhere(broad_excepts), "an except clause names what it expects")


def test_no_guessing_of_attributes() -> None:
    refuse(everywhere(guesses), "no hasattr, no getattr with a default: state the type, or use a Protocol")


def test_nothing_is_left_unfinished() -> None:
    refuse(everywhere(unfinished), "no unfinished marks")


def test_every_function_is_annotated() -> None:
    refuse(everywhere(missing_annotations), "every argument and every result has a type")


def test_everything_public_has_a_docstring() -> None:
    refuse(everywhere(missing_docstrings), "every public module, class and function has a docstring")


def test_functions_are_short() -> None:
    sized = [(body_length(function), source, function) for source in sources() for function in source.functions()]
    long = [source.at(node, f"{node.name}: {size} lines") for size, source, node in sized if size > 60]
    refuse(long, "at most 60 lines a function, its docstring not counted")
    lengths = sorted(size for size, _, _ in sized)
    p95 = lengths[int(0.95 * (len(lengths) - 1))]
    longest = [source.at(node, f"{node.name}: {size} lines") for size, source, node in sized if size > 35]
    assert p95 <= 35, f"95th percentile of function length is {p95}, more than 35\n" + "\n".join(longest)
    assert statistics.median(lengths) <= 8, f"median function length is {statistics.median(lengths)}, more than 8"


def test_files_are_short() -> None:
    counted = ((source, source.text.count("\n")) for source in sources())
    refuse((source.at(1, f"{count} lines") for source, count in counted if count > 400), "at most 400 lines a file")


def test_one_name_for_each_thing() -> None:
    refuse(everywhere(other_words), "use the words of the field that the house has chosen")


def test_length_leaves_out_the_docstring() -> None:
    function = ast.parse("def f():\n    '''One.\n\n    Two.\n    '''\n    x = 1\n    return x").body[0]
    assert isinstance(function, Function)
    assert body_length(function) == 3


BREACHES = [
    (star_imports, "from os import *"),
    (broad_excepts, "try:\n    pass\nexcept Exception:\n    pass"),
    (broad_excepts, "try:\n    pass\nexcept (OSError, Exception):\n    pass"),
    (broad_excepts, "try:\n    pass\nexcept:\n    pass"),
    (guesses, "x = getattr(y, 'z', None)"),
    (guesses, "x = hasattr(y, 'z')"),
    (unfinished, "x = 1  # FIX" + "ME"),
    (unfinished, "def f():\n    raise NotImplementedError"),
    (missing_annotations, "def f(x) -> None: ..."),
    (missing_annotations, "def f(x: int): ..."),
    (missing_annotations, "class A:\n    def f(self, *x) -> None: ..."),
    (missing_docstrings, "x = 1"),
    (missing_docstrings, "'''Doc.'''\nclass A:\n    '''Doc.'''\n    def f(self): ..."),
    (other_words, "# in this Episode"),
]


@pytest.mark.parametrize(("check", "text"), BREACHES)
def test_each_rule_sees_its_breach(check: Check, text: str) -> None:
    sees(check, text)
