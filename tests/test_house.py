"""The rules of the house, checked over the text of src/rankwise: one test a rule, naming file and line of each breach.

Everything is read with `ast`; nothing of the package is imported here, so these tests cost no torch import.
"""

from __future__ import annotations

import ast
import os
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "rankwise"
BELOW_PAPERS = ("learning", "adapters", "strategies", "objectives", "streams", "models")
HEAVY = ("torch", "transformers", "datasets", "accelerate")

# The exceptions, each with its reason. A file is added here together with the reason, or the code is changed.
IMPORTS_BY_NAME = {
    "papers/__init__.py",  # its own method files, by listing its own folder, and a module named on the command line
    "claims/__init__.py",  # its own files of claims, by listing its own folder
    "learning/__init__.py",  # sys.modules[__name__]: makes itself callable; nothing is imported
}
OWNS_PARAMETERS = {
    "adapters/bank.py",  # the one place where a tensor of an adapter is made, as trainable or frozen
    "adapters/model.py",  # freezes the base when a branch is put at its sites
    "adapters/overlay.py",  # puts a checkpoint's head, embedding or bias in the place of the base's, frozen
    "models/base.py",  # a base is loaded frozen
}

# Each of these can run code that came out of a file, however it is called here (`import torch as t; t.load`).
CODE_RUNNING_MODULES = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "yaml", "imp", "runpy"),
    *("codeop", "ctypes", "hydra", "jsonpickle", "pandas"),
}
CODE_RUNNING = {
    *("eval", "exec", "compile", "builtins", "__builtins__", "torch.load", "torch.serialization", "torch.hub"),
    *("torch.package", "torch.jit.load", "torch.export.load", "torch.utils.cpp_extension", "os.system", "os.popen"),
    *(
        "numpy.fromfile",
        "numpy.lib.format.read_array",
        "types.FunctionType",
        "types.CodeType",
        "transformers.dynamic_module_utils",
    ),
}
SAFE_VALUES = {
    "allow_pickle": {"False"},
    "weights_only": {"True"},
    "use_safetensors": {"True"},
    "trust_remote_code": {"False", "trust_remote_code"},  # as the user said it under [model], handed on by that name
}
"""Arguments by which libraries run code or read pickles, with what may be written for each."""
NAME_IMPORTING = {
    *("__import__", "importlib.import_module", "importlib.__import__", "importlib.reload", "importlib.machinery"),
    *("importlib.util.spec_from_file_location", "importlib.util.module_from_spec", "pkgutil.resolve_name"),
    *("pydoc.locate", "sys.modules", "zipimport"),
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One file of the package: its path from the package's folder, its text and its tree."""

    path: str
    text: str
    tree: ast.Module

    def at(self, node: ast.AST | int, what: str) -> str:
        line = node if isinstance(node, int) else node.lineno
        return f"src/rankwise/{self.path}:{line}: {what}"

    def nodes(self, *kinds: type[ast.AST]) -> Iterator:
        return (node for node in ast.walk(self.tree) if isinstance(node, kinds))

    def functions(self) -> Iterator[Function]:
        return self.nodes(ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def sources() -> tuple[Source, ...]:
    files = sorted(PACKAGE.rglob("*.py"))
    texts = [(path, path.read_text(encoding="utf-8")) for path in files]
    return tuple(Source(path.relative_to(PACKAGE).as_posix(), text, ast.parse(text)) for path, text in texts)


def refuse(breaches: Iterable[str], rule: str) -> None:
    found = list(breaches)
    assert not found, f"{rule}\n" + "\n".join(found)


def dotted(node: ast.expr) -> str:
    """`a.b.c` for a chain of names, else the empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def imported(source: Source) -> Iterator[tuple[ast.stmt, str]]:
    for node in source.nodes(ast.Import):
        yield from ((node, alias.name) for alias in node.names)
    for node in source.nodes(ast.ImportFrom):
        yield from ((node, f"{node.module or ''}.{alias.name}") for alias in node.names)


def aliases(source: Source) -> dict[str, str]:
    """What each imported name stands for, in full: {"np": "numpy", "load": "torch.load"}."""
    found = {}
    for node in source.nodes(ast.Import):
        found |= {alias.asname: alias.name for alias in node.names if alias.asname}
    for node in source.nodes(ast.ImportFrom):
        found |= {alias.asname or alias.name: f"{node.module or ''}.{alias.name}" for alias in node.names}
    return found


def imports(source: Source, wanted: set[str]) -> Iterator[str]:
    return (source.at(node, f"imports {name}") for node, name in imported(source) if within(name, wanted))


def used(source: Source, wanted: set[str]) -> Iterator[str]:
    """Each import, mention or call of a name in `wanted` or below it, under whatever alias."""
    yield from imports(source, wanted)
    known = aliases(source)
    inner = {id(node.value) for node in source.nodes(ast.Attribute)}
    for node in source.nodes(ast.Attribute, ast.Name):
        first, dot, rest = dotted(node).partition(".")
        name = f"{known.get(first, first)}{dot}{rest}"
        direct = isinstance(node, ast.Name) and first in known  # the import of it was named above
        if id(node) not in inner and isinstance(node.ctx, ast.Load) and not direct and within(name, wanted):
            yield source.at(node, f"uses {name}")


def within(name: str, wanted: set[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in wanted)


def code_running(source: Source) -> Iterator[str]:
    yield from imports(source, CODE_RUNNING_MODULES)
    yield from used(source, CODE_RUNNING)
    words = [(word.arg, word.value) for call in source.nodes(ast.Call) for word in call.keywords]
    for table in source.nodes(ast.Dict):
        words += [(key.value, value) for key, value in zip(table.keys, table.values, strict=True) if text(key)]
    for word, value in words:
        if ast.unparse(value) not in SAFE_VALUES.get(word, {ast.unparse(value)}):
            yield source.at(value, f"passes {word}={ast.unparse(value)}")


def text(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def name_importing(source: Source) -> Iterator[str]:
    return used(source, NAME_IMPORTING)


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
    first, lines = function.body[0], function.end_lineno - function.lineno + 1
    documented = ast.get_docstring(function, clean=False) is not None
    return lines - (first.end_lineno - first.lineno + 1) if documented else lines


def too_deep(depth: int) -> Iterator[str]:
    classes = {node.name: (source, node) for source in sources() for node in source.nodes(ast.ClassDef)}

    def levels(name: str, seen: frozenset[str] = frozenset()) -> int:
        """How many classes of the package stand above this one in its longest line."""
        if name not in classes or name in seen:
            return 0
        bases = [dotted(base).split(".")[-1] for base in classes[name][1].bases]
        return max((1 + levels(base, seen | {name}) for base in bases if base in classes), default=0)

    for name, (source, node) in classes.items():
        if levels(name) > depth:
            yield source.at(node, f"{name} stands {levels(name)} levels below its first class of the package")


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


def other_words(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines(), start=1):
        for word in re.findall(r"\b(?:experience|session|episode)s?\b", line, flags=re.IGNORECASE):
            yield source.at(number, f"says {word!r}; the words are task, stream and run")


def everywhere(check: Callable[[Source], Iterator[str]], besides: Iterable[str] = ()) -> Iterator[str]:
    for source in sources():
        if source.path not in besides:
            yield from check(source)


def test_the_package_is_found() -> None:
    assert any(source.path == "errors.py" for source in sources())


def test_nothing_read_from_a_file_can_run() -> None:
    refuse(everywhere(code_running), "no pickle, YAML, eval or exec: safetensors, JSON, TOML and numpy without pickle")


def test_nothing_is_imported_by_a_name_found_in_data() -> None:
    refuse(everywhere(name_importing, IMPORTS_BY_NAME), f"imports by name only in {sorted(IMPORTS_BY_NAME)}")


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
    refuse((source.at(1, f"{lines} lines") for source, lines in counted if lines > 400), "at most 400 lines a file")


def test_inheritance_is_shallow() -> None:
    refuse(too_deep(2), "at most two levels of inheritance within the package")


def test_parameters_are_owned_in_one_place() -> None:
    owners = ", ".join(sorted(OWNS_PARAMETERS))
    refuse(everywhere(parameter_owning, OWNS_PARAMETERS), f"parameters are made and frozen in {owners}")


def test_no_method_is_named_below_papers() -> None:
    below = (source for source in sources() if source.path.split("/")[0] in BELOW_PAPERS)
    refuse((line for source in below for line in method_names(source)), "the floors below papers know no method")


def test_one_name_for_each_thing() -> None:
    refuse(everywhere(other_words), "use the words of the field that the house has chosen")


BREACHES = [
    (code_running, "from pickle import loads"),
    (code_running, "import yaml"),
    (code_running, "x = torch.load(path)"),
    (code_running, "x = eval(text)"),
    (code_running, "x = np.load(path, allow_pickle=True)"),
    (code_running, "import torch as t\nx = t.load(path)"),
    (code_running, "from torch import load as read\nx = read(path)"),
    (code_running, "read = torch.load"),
    (code_running, "from torch import serialization"),
    (code_running, "x = torch.hub.load(name)"),
    (code_running, "x = map(eval, texts)"),
    (code_running, "x = builtins.exec(text)"),
    (code_running, "import ruamel, yaml as y"),
    (code_running, "x = AutoModel.from_pretrained(name, trust_remote_code=True)"),
    (code_running, "x = AutoModel.from_pretrained(name, use_safetensors=False)"),
    (code_running, "x = f(path, weights_only=False)"),
    (code_running, "options = {'trust_remote_code': config['trust_remote_code']}"),
    (name_importing, "x = importlib.import_module(name)"),
    (name_importing, "import importlib as i\nx = i.import_module(name)"),
    (name_importing, "from importlib import import_module as f\nx = f(name)"),
    (name_importing, "x = __import__(name)"),
    (name_importing, "x = sys.modules[name]"),
    (name_importing, "x = importlib.util.spec_from_file_location(name, path)"),
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
    (parameter_owning, "x = nn.Parameter(y)"),
    (parameter_owning, "x.requires_grad_(False)"),
    (parameter_owning, "x.requires_grad = False"),
    (parameter_owning, "x.data.zero_()"),
    (other_words, "# in this Episode"),
]


@pytest.mark.parametrize(("check", "text"), BREACHES)
def test_each_rule_sees_its_breach(check: Callable[[Source], Iterator[str]], text: str) -> None:
    found = list(check(Source("x.py", text, ast.parse(text))))
    assert len(found) == 1, found
    assert re.match(r"src/rankwise/x\.py:\d+: .", found[0])


def test_length_leaves_out_the_docstring() -> None:
    function = ast.parse("def f():\n    '''One.\n\n    Two.\n    '''\n    x = 1\n    return x").body[0]
    assert body_length(function) == 3


def test_levels_of_inheritance_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "class A(nn.Module): ...\nclass B(A): ...\nclass C(other.B): ...\nclass D(C): ..."
    monkeypatch.setattr(sys.modules[__name__], "sources", lambda: (Source("x.py", text, ast.parse(text)),))
    assert [line.split()[1] for line in too_deep(2)] == ["D"]


# What the files around the package promise.


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


def test_pages_name_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for page in pages():
        named = {match for line in code_lines(page) for match in re.findall(r"\bmake ([a-z][a-z-]*)", line)}
        assert named <= targets, f"{page.name} names no target of the Makefile: {sorted(named - targets)}"


def test_pages_link_to_files_that_exist() -> None:
    for page in pages():
        links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        inside = [link for link in links if "://" not in link and not link.startswith("mailto:")]
        missing = [link for link in inside if not (page.parent / link).exists()]
        assert not missing, f"{page.relative_to(ROOT)} links to files that do not exist: {missing}"


def pages() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def code_lines(page: Path) -> Iterator[str]:
    """The lines of a page that a reader would type: in a code block, or between backticks."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```.*?^```", text, flags=re.MULTILINE | re.DOTALL):
        yield from block.splitlines()[1:-1]
    yield from re.findall(r"^ {4}(\S.*)$", text, flags=re.MULTILINE)
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


# The command line: light, and as the pages say.

COMMAND = "import sys; sys.argv[0] = 'rankwise'; from rankwise.cli import main; sys.exit(main())"


def in_fresh_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_line_loads_nothing_heavy() -> None:
    done = in_fresh_python(f"import sys, rankwise.cli; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stdout + done.stderr


def test_help_answers_at_once() -> None:
    """Seconds of processor time, median of three: on a busy machine the clock on the wall measures the neighbours.

    RANKWISE_HELP_SECONDS sets another bar for a slower machine.
    """
    bar = float(os.environ.get("RANKWISE_HELP_SECONDS", "0.5"))
    times = sorted(processor_seconds("--help") for _ in range(3))
    assert times[1] <= bar, f"rankwise --help took {times[1]:.2f} s of {bar} s (three runs: {times})"


def processor_seconds(*arguments: str) -> float:
    before = os.times()
    done = in_fresh_python(COMMAND, *arguments)
    after = os.times()
    assert done.returncode == 0, done.stderr
    return (after.children_user - before.children_user) + (after.children_system - before.children_system)


def test_pages_name_commands_that_exist() -> None:
    shown = {line for page in pages() for line in code_lines(page)}
    verbs = {match for line in shown for match in re.findall(r"(?:^|[\s/])rankwise ([a-z]+)(?=\s|$)", line)}
    unknown = [verb for verb in sorted(verbs) if in_fresh_python(COMMAND, verb, "--help").returncode != 0]
    assert not unknown, f"a page names commands that do not exist: {unknown}"
