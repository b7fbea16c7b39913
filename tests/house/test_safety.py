"""Nothing that was read can run: no module and no call that executes or imports what data says."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from reading import Check, Source, dotted, everywhere, imported, refuse, sees

# The exceptions, each with its reason. A file is added here together with the reason, or the code is changed.
IMPORTS_BY_NAME = {
    "papers/__init__.py",  # its own method files, by listing its own folder, and a module named on the command line
    "claims/__init__.py",  # its own files of claims, by listing its own folder
    "learning/__init__.py",  # sys.modules[__name__]: makes itself callable; nothing is imported
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


def test_nothing_read_from_a_file_can_run() -> None:
    refuse(everywhere(code_running), "no pickle, YAML, eval or exec: safetensors, JSON, TOML and numpy without pickle")


def test_nothing_is_imported_by_a_name_found_in_data() -> None:
    refuse(everywhere(name_importing, IMPORTS_BY_NAME), f"imports by name only in {sorted(IMPORTS_BY_NAME)}")


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
]


@pytest.mark.parametrize(("check", "text"), BREACHES)
def test_each_rule_sees_its_breach(check: Check, text: str) -> None:
    sees(check, text)
