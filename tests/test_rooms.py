"""The house: imports go one way, the paper wing needs no torch, every room has its size and its name."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "loc_edit"
ORDER = (
    "cache", "download", "facts", "data", "corpora", "settings", "models", "prompts", "noise", "batching", "tracing",
    "localizers", "problems", "keys", "editing", "exporting", "sampling", "known", "probing", "scores", "views",
    "tables", "store", "progress", "telling", "config", "workbench", "units", "controls", "grid", "worker", "ticker",
    "contexts", "engine", "planning", "experiment", "tuning", "replay", "regress", "figures", "analysis", "report",
    "cli", "__main__",
)  # fmt: skip
"""A room may import from rooms to its left."""
LATE = {
    ("facts", "data"), ("tracing", "tables"), ("tracing", "figures"), ("tracing", "views"), ("editing", "views"),
}  # fmt: skip
"""Imports to the right, allowed inside a function only: the built-in facts are facts; `plot` and `show` draw."""
MODEL_WING = {
    "models", "prompts", "noise", "batching", "tracing", "localizers", "problems", "keys", "editing", "exporting",
    "sampling", "known", "probing", "scores", "views", "workbench", "units", "controls", "grid", "worker", "ticker",
    "contexts", "planning", "experiment", "tuning", "replay",
}  # fmt: skip
PAPER_WING = ("tables", "store", "progress", "telling", "regress", "figures", "analysis", "report")
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(module):
    """The room of a dotted name in the package: `loc_edit.editing.rome` is in `editing`."""
    return module.split(".")[1]


def dotted(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """[(module, whether inside a function)] of every import of this package or another."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late = {
        id(node)
        for scope in ast.walk(tree)
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(scope)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            whole = node.module == "loc_edit" or node.module.startswith("loc_edit.")
            yield from ((name if whole else node.module, id(node) in late) for name in names)


def own(path):
    """[(room imported from, late)]; `import loc_edit` itself (the public names) is for the outermost rooms."""
    for module, late in imports(path):
        if module == "loc_edit":
            assert room(dotted(path)) in ("cli", "report", "__main__"), f"{path.name} imports the public names"
        elif module.startswith("loc_edit."):
            yield room(module), late


def test_every_room_has_its_place():
    rooms = {room(dotted(path)) for path in MODULES}
    assert rooms <= set(ORDER), f"say in ORDER where these rooms stand: {rooms - set(ORDER)}"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_go_one_way(path):
    here = room(dotted(path))
    for there, late in own(path):
        if there != here and not (late and (here, there) in LATE):
            assert ORDER.index(there) < ORDER.index(here), f"{dotted(path)} imports from {there}"


def test_the_wings_meet_only_through_files():
    for path in MODULES:
        if room(dotted(path)) in PAPER_WING:
            strangers = {there for there, _ in own(path)} & MODEL_WING
            assert not strangers, f"{dotted(path)} imports from the model wing: {strangers}"


def test_no_cycles_between_modules():
    graph = {dotted(path): set() for path in MODULES}
    for path in MODULES:
        for module, late in imports(path):
            target = module if module in graph else module.rpartition(".")[0]
            if not late and target in graph and target != dotted(path):
                graph[dotted(path)].add(target)
    # a package's own modules may be gathered by its __init__: edges from a module to its package are no loop
    for name, targets in graph.items():
        targets -= {t for t in targets if name.startswith(t + ".")}
    done = set()

    def visit(name, path):
        assert name not in path, f"imports in a circle: {' -> '.join([*path, name])}"
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, [*path, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_public_package_and_the_paper_wing_need_no_torch():
    rooms = [name for name in PAPER_WING if any(room(dotted(path)) == name for path in MODULES)]
    assert {"tables", "store", "regress", "figures"} <= set(rooms)
    wanted = ["loc_edit", *(f"loc_edit.{name}" for name in ("facts", "data.builtin", "settings", "config", *rooms))]
    result = python(
        f"import sys, importlib\n"
        f"for name in {wanted!r}:\n"
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
        modules = {module.split(".")[0] for module, _ in imports(path)}
        assert not modules & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, dotted(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = f"{node.value.id}.{node.attr}"
                assert name not in ("torch.load", "torch.save", "pd.read_pickle", "np.load"), f"{dotted(path)}: {name}"


def test_annotations_are_checked_at_run_time():
    """`from __future__ import annotations` would silence the shape checks."""
    for path in MODULES:
        assert "__future__" not in {module.split(".")[0] for module, _ in imports(path)}, dotted(path)
