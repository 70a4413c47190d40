"""The house: arrows between rooms, no circles between files, no torch in the paper wing, and a name for every room."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "loc_edit"
LEAVES = {"arguments", "names", "contract", "files", "effects", "events"}
ARROWS = {
    "views": LEAVES,
    "facts": LEAVES,
    "models": LEAVES,
    "store": LEAVES,
    "prompts": {"facts", "models"},
    "keys": {"facts", "models"},
    "localization": {"prompts", "views"},
    "editing": {"prompts", "keys", "views"},
    "scoring": {"editing", "views"},
    "analysis": {"store", "facts", "views"},
    "report": {"analysis"},
    "experiment": {"localization", "scoring", "analysis", "store"},
    "explore": {"experiment", "report"},
    "cli": {"experiment", "report", "explore"},
}
"""From which rooms a room may import, besides those that these import from.  docs/architecture.md draws it."""
WITHOUT_TORCH = (
    "arguments",
    "names",
    "contract",
    "files",
    "effects",
    "events",
    "views",
    "facts",
    "store",
    "analysis",
    "report",
)
PUBLIC = {"cli", "__main__"}
"""Rooms that may `import loc_edit`, whose public names come from everywhere."""
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def below(room):
    """All rooms that a room may import from, itself included."""
    return {room}.union(*(below(other) for other in ARROWS.get(room, ())))


def dotted(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module):
    """The room of a dotted name in the package: `loc_edit.editing.rome` is in `editing`."""
    return module.split(".")[1]


def imports(path):
    """Every module that a file imports, also inside functions and for type checkers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            own = node.module == "loc_edit" or node.module.startswith("loc_edit.")
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if own else (node.module,)


def files_imported(path, known):
    """The package's own files that a file imports."""
    for module in imports(path):
        if module.startswith("loc_edit."):
            target = module if module in known else module.rpartition(".")[0]
            if target in known and target != dotted(path):
                yield target


def test_there_are_the_rooms_and_leaves_and_nothing_else():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {*ARROWS, "data"}
    assert not list((PACKAGE / "data").rglob("*.py")), "data/ holds files that are read, and no code"
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*LEAVES, "__init__", "__main__"}


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_follow_the_arrows(path):
    here = room(dotted(path))
    for module in imports(path):
        if module.startswith("loc_edit.") and here not in PUBLIC:
            assert room(module) in below(here) | LEAVES, f"{dotted(path)} imports {module}"
        elif module == "loc_edit":
            assert here in PUBLIC, f"{dotted(path)} imports the public names"


def circle(graph):
    """Some circle of the graph as a path, or None."""
    finished = set()

    def visit(name, above):
        if name in above:
            return [*above, name]
        if name in finished:
            return None
        finished.add(name)
        return next((found for target in sorted(graph[name]) if (found := visit(target, [*above, name]))), None)

    return next((found for name in sorted(graph) if (found := visit(name, []))), None)


def test_there_are_no_circles_between_files():
    known = {dotted(path) for path in MODULES}
    graph = {dotted(path): set(files_imported(path, known)) for path in MODULES}
    assert circle(graph) is None
    graph["loc_edit.names"].add("loc_edit.experiment.config")  # and with one arrow turned round there is one
    turned = circle(graph)
    assert turned[-1] in turned[:-1]


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=dotted)
def test_a_room_s_init_is_empty_or_lazy(path):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        name = node.module if isinstance(node, ast.ImportFrom) else ""
        assert not (name or "").startswith("loc_edit"), f"{dotted(path)} loads {name} whoever imports the room"


def test_only_the_models_room_knows_the_model_class():
    for path in MODULES:
        if room(dotted(path)) != "models":
            names = {n.id for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Name)}
            assert "HookedTransformer" not in names, f"{dotted(path)}: say `Model`"


def test_the_picture_in_the_docs_has_the_same_arrows():
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = set(re.findall(r"^\s*(\w+) --> (\w+)$", text, re.MULTILINE))
    assert drawn == {(lower, upper) for upper, lowers in ARROWS.items() for lower in lowers if lower not in LEAVES}


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_paper_wing_and_the_configuration_need_no_torch():
    modules = [dotted(path) for path in MODULES if room(dotted(path)) in WITHOUT_TORCH]
    modules += ["loc_edit", "loc_edit.experiment.config", "loc_edit.editing.settings", "loc_edit.cli.main"]
    result = python(
        f"import sys, importlib\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    for heavy in ('torch', 'transformer_lens', 'transformers'):\n"
        "        assert heavy not in sys.modules, f'{name} imports {heavy}'\n"
    )
    assert result.returncode == 0, result.stderr


def test_importing_the_package_is_cheap_and_its_names_are_there():
    result = python(
        "import sys, loc_edit\n"
        "heavy = {'torch', 'pandas', 'numpy', 'matplotlib', 'statsmodels', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert {'load_model', 'trace', 'rome', 'Fact'} <= set(dir(loc_edit))\n"
    )
    assert result.returncode == 0, result.stderr


def test_every_public_name_exists():
    import loc_edit

    for name in loc_edit.__all__:
        assert name.isupper() or getattr(loc_edit, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = loc_edit.nothing


def test_no_room_is_a_lumber_room():
    for path in MODULES:
        assert path.stem not in ("utils", "types", "constants", "base", "helpers", "common", "misc"), path.name
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 350, f"{dotted(path)} has {lines} lines: look for the second noun"


def test_nothing_unpickles():
    for path in MODULES:
        modules = {module.split(".")[0] for module in imports(path)}
        assert not modules & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, dotted(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = f"{node.value.id}.{node.attr}"
                assert name not in ("torch.load", "torch.save", "pd.read_pickle", "np.load"), f"{dotted(path)}: {name}"


def test_only_the_leaf_for_files_writes_temporary_files():
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        if dotted(path) != "loc_edit.files":
            assert not re.search(r"\bos\.replace\(|\.tmp\"|fsync\(", text), f"{dotted(path)}: use `files.writing`"


def test_annotations_are_checked_at_run_time():
    """`from __future__ import annotations` would silence the shape checks."""
    for path in MODULES:
        assert "__future__" not in {module.split(".")[0] for module in imports(path)}, dotted(path)
