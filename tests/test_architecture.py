"""What keeps the code small and safe: who may import whom, what no file may hold. Read from the syntax trees."""

from __future__ import annotations

import ast
import inspect
import statistics
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import diabolo
from diabolo import registry
from diabolo.config import COMPONENTS, PRESETS
from test_contracts import DATA, ELSEWHERE, NETWORKS, OBJECTIVES

PACKAGE = Path(diabolo.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in FILES]
every_file = pytest.mark.parametrize("path", FILES, ids=NAMES)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if for_type_checkers(child):
            for other in child.orelse:
                yield from running_nodes(other)
        else:
            yield from running_nodes(child)


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules that a file imports anywhere, functions included: `from diabolo import runs` counts as diabolo.runs."""
    found: set[str] = set()
    for node in running_nodes(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "diabolo"}
    return frozenset(found)


def reached(path: Path, *modules: str) -> set[str]:
    return {name for name in imports(path) if any(name == m or name.startswith(m + ".") for m in modules)}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef))


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=120, check=False)


# ------------------------------------------------------------------------------------------------ who imports whom
MODELS = [path for path in FILES if path.parent == PACKAGE / "models"]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_models_import_torch_the_standard_library_and_the_registry(path):
    allowed = {"diabolo.registry", "diabolo.errors", "diabolo.models"}
    for name in imports(path):
        inside = any(name == a or name.startswith(a + ".") for a in allowed)
        assert inside or name.partition(".")[0] in {"torch", "__future__"} | sys.stdlib_module_names, name
    assert not reached(path, "json", "logging", "pathlib", "os", "io"), "models read no files and write no logs"


def test_metrics_and_plots_know_no_configuration_and_no_runs():
    for name in ("metrics.py", "plots.py"):
        above = ("config", "runs", "training", "evaluation", "report", "cli")
        assert not reached(PACKAGE / name, *(f"diabolo.{module}" for module in above))


def test_reading_a_run_never_imports_training():
    readers = ("report.py", "plots.py", "compare.py", "explore.py", "export.py", "evaluation.py", "metrics.py")
    for name in (*readers, "diagnosis.py", "examination.py"):
        if (PACKAGE / name).exists():
            assert not reached(PACKAGE / name, "diabolo.training"), name


@every_file
def test_nothing_imports_the_command_line(path):
    if path.name != "__main__.py":
        assert not reached(path, "diabolo.cli")


@every_file
def test_no_torchvision_and_no_pickle(path):
    assert not reached(path, "torchvision", "pickle", "cPickle", "dill", "joblib", "shelve", "marshal")


def test_importing_every_module_leaves_torchvision_out():
    modules = [module_of(path) for path in FILES if path.name != "__main__.py"]
    done = python(
        f"import sys, importlib\nfor module in {modules!r}: importlib.import_module(module)\n"
        "sys.exit('torchvision' in sys.modules)"
    )
    assert done.returncode == 0, done.stderr


def test_help_imports_no_torch():
    done = python(
        "import sys\nfrom diabolo.cli import main\nsys.argv = ['diabolo', '--help']\ntry:\n    main()\n"
        "except SystemExit:\n    pass\nsys.exit(3 if 'torch' in sys.modules else 0)"
    )
    assert done.returncode == 0, done.stderr or "torch was imported"
    assert "train" in done.stdout


# ------------------------------------------------------------------------------------------------ what no file may hold
@every_file
def test_only_the_command_line_prints(path):
    if path.name == "cli.py":
        return
    talks = {"print", "input", "sys.stdout.write", "sys.stderr.write"}
    assert not [node.lineno for name, node in calls(path) if name in talks]


FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "torch.save",
    "np.load",
    "numpy.load",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "shutil.unpack_archive",
}


@every_file
def test_nothing_executes_what_it_reads(path):
    for name, node in calls(path):
        assert name not in FORBIDDEN, f"line {node.lineno}: {name}"
        assert not name.endswith((".extractall", ".extract")), f"line {node.lineno}: {name}"
        shell = [k for k in node.keywords if k.arg == "shell"]
        assert not shell, f"line {node.lineno}: shell="


def opens_text(name: str, node: ast.Call) -> bool:
    if name.endswith((".read_text", ".write_text")):
        return True
    if name != "open" and not name.endswith(".open"):
        return False
    position = 1 if name == "open" else 0
    given = [k.value for k in node.keywords if k.arg == "mode"] or node.args[position : position + 1]
    mode = given[0] if given else None
    return mode is None or (isinstance(mode, ast.Constant) and isinstance(mode.value, str) and "b" not in mode.value)


#: Objects whose `open` is no file of text.
NOT_FILES = ("tarfile.", "gzip.", "Image.", "webbrowser.", "urllib.", "opener.")


@every_file
def test_text_is_read_and_written_as_utf8(path):
    for name, node in calls(path):
        if opens_text(name, node) and not name.startswith(NOT_FILES):
            encodings = [ast.literal_eval(k.value) for k in node.keywords if k.arg == "encoding"]
            assert encodings == ["utf-8"], f"line {node.lineno}: {ast.unparse(node)}"


@every_file
def test_source_is_ascii(path):
    path.read_text(encoding="utf-8").encode("ascii")


@every_file
def test_no_loose_ends(path):
    with path.open("rb") as file:
        comments = [token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
    assert not [c for c in comments if any(word in c for word in ("TODO", "FIXME", "XXX", "HACK"))]


#: What models/ may take the length of: lists and shapes, by the names they have there.
LISTS = {
    *("self.event_shape", "path", "inference.latents", "self.latents", "latents", "sizes"),
    *("spec.classes", "widths", "image", "code", "shape", "latent_shape", "self.latent_shape"),
}


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_models_take_no_len_of_a_tensor(path):
    """len(tensor) would freeze the batch size of an export."""
    for name, node in calls(path):
        if name == "len":
            assert ast.unparse(node.args[0]) in LISTS, f"line {node.lineno}"


# ------------------------------------------------------------------------------------------------ registered parts
PARTS = [(slot, name) for slot in registry.SLOTS for name in registry.names(slot)]
every_part = pytest.mark.parametrize(("slot", "name"), PARTS, ids=map("-".join, PARTS))


@every_part
def test_registered_constructors_take_named_parameters_only(slot, name):
    constructor = registry.get(slot, name)
    written = vars(constructor).get("__init__") if isinstance(constructor, type) else constructor
    if written is None:
        return
    kinds = {p.kind for p in inspect.signature(written).parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    assert len(registry.signature(slot, name)) <= 10


def in_presets() -> set[tuple[str, str]]:
    found = set()
    for path in PRESETS.glob("*.toml"):
        preset = tomllib.loads(path.read_text(encoding="utf-8"))
        for component, slot in COMPONENTS.items():
            part = preset
            for word in component.split("."):
                part = part[word]
            found.add((slot, part["name"]))
    return found


@every_part
def test_every_registered_name_stands_in_a_preset_or_a_contract_test(slot, name):
    """Every metric is in every evaluation, which the contract tests read; test_features goes through all features."""
    contracts = {("likelihood", key) for key in DATA} | {("objective", key) for key in OBJECTIVES}
    contracts |= {("network", key) for key in NETWORKS}
    assert slot in {"metric", "features"} or (slot, name) in in_presets() | contracts | ELSEWHERE.keys()


@every_part
def test_every_registered_part_is_documented(slot, name):
    assert len(registry.summary(slot, name)) > 20


@every_file
def test_every_module_and_public_class_has_a_docstring(path):
    assert ast.get_docstring(tree(path)), "the module"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


#: Public callables of the first reading path: each says what it does.
READING_PATH = ("models/autoencoder.py", "models/objectives.py", "training.py")


@pytest.mark.parametrize("name", READING_PATH)
def test_the_reading_path_exists_and_its_public_functions_are_documented(name):
    for node in tree(PACKAGE / name).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


# ------------------------------------------------------------------------------------------------ size
def length(node: ast.FunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_functions_are_short():
    lengths = {f"{path.name}:{node.name}": length(node) for path in FILES for node in functions(path)}
    assert 3 <= statistics.median(lengths.values()) <= 10
    assert not {name: lines for name, lines in lengths.items() if lines >= 60}


@every_file
def test_files_hold_one_idea(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 700, "far past the guide of 450 lines"


def test_there_are_no_import_cycles_at_module_level():
    graph: dict[str, set[str]] = {}
    known = {module_of(path) for path in FILES}
    for path in FILES:
        found: set[str] = set()
        for node in tree(path).body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inside = {f"{node.module}.{alias.name}" for alias in node.names} & known
                found |= inside or {str(node.module)}
        graph[module_of(path)] = (found & known) - {module_of(path)}
    done: set[str] = set()
    while ready := {module for module, needs in graph.items() if module not in done and needs <= done}:
        done |= ready
    assert done == set(graph), sorted(set(graph) - done)


# ------------------------------------------------------------------------------------------------ the checks themselves
PLANTED = [
    (test_nothing_imports_the_command_line, "from diabolo import cli"),
    (test_nothing_imports_the_command_line, "def f():\n    import diabolo.cli"),
    (test_models_import_torch_the_standard_library_and_the_registry, "from diabolo.config import resolve"),
    (test_models_import_torch_the_standard_library_and_the_registry, "import numpy"),
    (test_models_import_torch_the_standard_library_and_the_registry, "from pathlib import Path"),
    (test_no_torchvision_and_no_pickle, "from torchvision.datasets import MNIST"),
    (test_no_torchvision_and_no_pickle, "import pickle"),
    (test_only_the_command_line_prints, "def f():\n    print(1)"),
    (test_nothing_executes_what_it_reads, "x = eval('1')"),
    (test_nothing_executes_what_it_reads, "import torch\nx = torch.load('x')"),
    (test_nothing_executes_what_it_reads, "archive.extractall('x')"),
    (test_nothing_executes_what_it_reads, "import subprocess\nsubprocess.run('x', shell=True)"),
    (test_text_is_read_and_written_as_utf8, "open('x')"),
    (test_text_is_read_and_written_as_utf8, "open('x', 'w', encoding='latin-1')"),
    (test_text_is_read_and_written_as_utf8, "path.open('a')"),
    (test_text_is_read_and_written_as_utf8, "path.read_text()"),
    (test_source_is_ascii, "x = '\u00e9'"),
    (test_no_loose_ends, "x = 1  # TO" + "DO: later"),
    (test_models_take_no_len_of_a_tensor, "n = len(x)"),
    (test_every_module_and_public_class_has_a_docstring, "x = 1"),
    (test_every_module_and_public_class_has_a_docstring, "'''doc'''\nclass A:\n    pass"),
]


@pytest.mark.parametrize(("check", "code"), PLANTED)
def test_each_check_catches_what_it_is_for(check, code, tmp_path):
    path = tmp_path / "planted.py"
    path.write_text(code, encoding="utf-8")
    with pytest.raises((AssertionError, UnicodeEncodeError)):
        check(path)


def test_the_checks_let_binary_files_and_type_checking_imports_pass(tmp_path):
    path = tmp_path / "fine.py"
    path.write_text(
        "'''doc'''\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from diabolo.data.spec import DataSpec\n"
        "path.open('rb')\nopen('x', 'wb')\npath.open('w', encoding='utf-8')\n",
        encoding="utf-8",
    )
    test_text_is_read_and_written_as_utf8(path)
    test_models_import_torch_the_standard_library_and_the_registry(path)
