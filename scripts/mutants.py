"""Changes the code in one small place and asks whether its tests notice; again and again, for an hour.

    make mutants                               # installs cosmic-ray and pytest-cov first
    python scripts/mutants.py [--rooms editing store] [--seed 0] [--minutes 60] [--workers 2] [--out mutants.csv]

Each mutant is a random change at a random place of one of the rooms: an operator, a comparison, a number, a condition,
a decorator (the changes are those of cosmic-ray).  Left out are annotations; `strict=True` of a zip, which never fails;
and figures, which are judged by eye.  A mutant is killed if one of the tests of these rooms
fails that run its line, tried from the quickest on, without those marked `long`.  Mutants are tried in copies of the
working tree, by processes forked from one that has imported torch already.  Which tests run which lines is found out
first, by coverage.py; `--map FILE` keeps it.

Prints what became of each mutant, and the share that was killed by room.  The places depend on the seed and the code
alone; a table that `--out` names is gone on with.
"""

import argparse
import ast
import csv
import difflib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
ROOMS = ("editing", "localization", "store", "analysis")
LONGEST = 900.0
"""Seconds after which a mutant that hangs counts as killed."""


@dataclass(frozen=True)
class Mutant:
    """A place in the code, and the operator that changes it there.

    Attributes:
        file: relative to the repository.
        line: of the place, from 1.
        operator: of cosmic-ray.
        occurrence: which of the places in the file that this operator can change, from 0.
    """

    file: str
    line: int
    operator: str
    occurrence: int

    @property
    def room(self) -> str:
        return Path(self.file).parts[1]

    def code(self, source: str) -> str:
        """The file's text with the change."""
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        return mutate_code(source, get_operator(self.operator)(), self.occurrence)


@dataclass(frozen=True)
class Outcome(Mutant):
    """What became of a mutant: a row of the table.

    Attributes:
        before, after: the changed lines.
        outcome: killed or survived.
        by: the first test that failed.
        seconds: that it took.
    """

    before: str
    after: str
    outcome: str
    by: str
    seconds: float


def mutants(rooms: list[str], seed: int) -> list[Mutant]:
    """All places of the rooms in random order, each with one of the operators that can change it."""
    by_place: dict[tuple[str, tuple[int, int]], list[Mutant]] = {}
    for path in sorted(path for room in rooms for path in (ROOT / "loc_edit" / room).rglob("*.py")):
        if path.parent.name == "figures":
            continue
        file = path.relative_to(ROOT).as_posix()
        for operator, occurrence, start in _places(path.read_text(encoding="utf-8")):
            by_place.setdefault((file, start), []).append(Mutant(file, start[0], operator, occurrence))
    draws = random.Random(seed)
    chosen = [draws.choice(options) for _, options in sorted(by_place.items())]
    draws.shuffle(chosen)
    return chosen


def _places(source: str) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """(operator, occurrence, (line, column)) of each place outside annotations and `strict=`."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    nodes = list(ast_nodes(get_ast(source)))
    for name in operator_names():
        if get_operator(name).arguments():
            continue
        operator, occurrence = get_operator(name)(), -1
        for node in nodes:
            for start, _ in operator.mutation_positions(node):
                occurrence += 1
                if not _left_out(node):
                    yield name, occurrence, start


def _left_out(node) -> bool:
    """Whether a node of the syntax tree is part of an annotation, which runs nothing, or of `strict=`."""
    while node.parent is not None:
        parent = node.parent
        if parent.type == "argument" and parent.get_first_leaf().value == "strict":
            return True
        if parent.type == "tfpdef" or (parent.type == "annassign" and node is parent.children[1]):
            return True
        if parent.type == "funcdef" and node is parent.annotation:
            return True
        node = parent
    return False


def copy_tree(folder: Path) -> Path:
    """A copy of the files that git knows, beside a link to the shared data where there is one."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    tree = folder / "tree"
    for name in filter(None, names.split("\0")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    if (ROOT.parent / "shared").is_dir():
        (folder / "shared").symlink_to(ROOT.parent / "shared")
    return tree


def record(rooms: list[str], file: Path) -> None:
    """Runs the tests of the rooms, and writes which of them run each line, with their seconds, as JSON.

    The lines are those at which statements begin: {file: {line: [test, ...]}}, the quickest test first.
    """
    from coverage import CoverageData

    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tree(Path(folder))
        (tree / ".coveragerc").write_text("[run]\nrelative_files = true\nsource = loc_edit\n")
        options = ["--cov", "--cov-context=test", "--cov-report=", "--cov-config=.coveragerc", "--junitxml=times.xml"]
        code, by = run_tests(tree, [*(f"tests/{room}" for room in rooms), *options], 3600.0)
        if code:
            sys.exit(f"the tests fail without a change: {by}")
        data = CoverageData(str(tree / ".coverage"))
        data.read()
        seconds: dict[str, float] = {}
        for case in ElementTree.parse(tree / "times.xml").iter("testcase"):
            test = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
            seconds[test] = float(case.get("time", 0))
        lines: dict[str, dict[str, list[str]]] = {}
        for name in sorted(data.measured_files()):
            lines[name] = {}
            for line, contexts in data.contexts_by_lineno(name).items():
                tests = {context.partition("|")[0] for context in contexts if context}
                lines[name][str(line)] = sorted(tests, key=lambda test: (seconds.get(test, 0.0), test))
    file.write_text(json.dumps(lines))


def tests_of(mutant: Mutant, source: str, runs: dict[str, dict[str, list[str]]]) -> list[str]:
    """The tests that run the statement of a mutant; all of its room, if it runs at import."""
    statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    around = [node.lineno for node in statements if node.lineno <= mutant.line <= (node.end_lineno or node.lineno)]
    return runs[mutant.file].get(str(max(around, default=0))) or [f"tests/{mutant.room}"]


def run_tests(tree: Path, tests: list[str], longest: float = LONGEST) -> tuple[int, str]:
    """The exit status of pytest in a forked process (-1 if it hung), and the line that names what failed."""
    log = tree.parent / "log"
    process = get_context("fork").Process(target=_pytest, args=(tree, tests, log))
    process.start()
    process.join(longest)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return -1, "hangs"
    lines = log.read_text(errors="replace").splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return process.exitcode, failed[0].partition(" - ")[0] if failed else f"exit status {process.exitcode}"


def _pytest(tree: Path, tests: list[str], log: Path) -> None:
    """Runs tests of a tree in this process, and ends it with their exit status."""
    os.setsid()
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    os.environ["PYTHONPATH"] = str(tree)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    import pytest

    sys.exit(int(pytest.main([*tests, "-x", "-p", "no:cacheprovider", "--durations=0", "--tb=no"])))


def judge(tree: Path, mutant: Mutant, runs: dict[str, dict[str, list[str]]]) -> Outcome | None:
    """Tries one mutant in a copy of the tree; None if cosmic-ray cannot make it."""
    path, start = tree / mutant.file, time.monotonic()
    source = path.read_text(encoding="utf-8")
    try:
        changed = mutant.code(source)
    except AttributeError:  # an exception with a dotted name
        return None
    changes = [line for line in difflib.ndiff(source.splitlines(), changed.splitlines()) if line[0] in "-+"]
    before, after = (" ".join(line[2:].strip() for line in changes if line[0] == sign) for sign in "-+")
    path.write_text(changed, encoding="utf-8")
    try:
        code, by = run_tests(tree, tests_of(mutant, source, runs))
    finally:
        path.write_text(source, encoding="utf-8")
    if code == 5:
        raise RuntimeError(f"no tests of {mutant.file}")
    outcome = "survived" if code == 0 else "killed"
    return Outcome(**asdict(mutant), before=before, after=after, outcome=outcome, by="" if code == 0 else by,
                   seconds=round(time.monotonic() - start, 1))  # fmt: skip


def work(todo: list[Mutant], runs: dict[str, dict[str, list[str]]], deadline: float, queue) -> None:
    """Tries mutants until the time is up."""
    import pandas  # noqa: F401
    import torch
    import transformer_lens  # noqa: F401

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tree(Path(folder))
        try:
            for mutant in todo:
                if time.monotonic() > deadline:
                    break
                if found := judge(tree, mutant, runs):
                    queue.put(found)
        finally:
            queue.put(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=list(ROOMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--map", type=Path, default=None, help="which tests run which lines; made if it is not there")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    names = [field.name for field in fields(Outcome)]
    rows: list[dict[str, str]] = []
    if options.out and options.out.exists():
        with options.out.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    known = {(row["file"], row["operator"], row["occurrence"]) for row in rows}
    places = mutants(options.rooms, options.seed)
    todo = [one for one in places if (one.file, one.operator, str(one.occurrence)) not in known]
    print(f"{len(places)} places, {len(places) - len(todo)} tried before")
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        lines = options.map or Path(folder) / "lines.json"
        if not lines.exists():
            recording = context.Process(target=record, args=(list(ROOMS), lines))
            recording.start()
            recording.join()
        if not lines.exists():
            sys.exit(1)
        runs = json.loads(lines.read_text())
    deadline = time.monotonic() + 60 * options.minutes
    queue = context.Queue()
    shares = [todo[i :: options.workers] for i in range(options.workers)]
    processes = [context.Process(target=work, args=(share, runs, deadline, queue)) for share in shares]
    for process in processes:
        process.start()
    at_work = len(processes)
    try:
        while at_work:
            found = queue.get()
            if found is None:
                at_work -= 1
                continue
            rows.append({name: str(value) for name, value in asdict(found).items()})
            what = f"{found.file}:{found.line}  {found.before}  ->  {found.after}"
            print(f"{found.outcome:9} {found.seconds:6.1f} s  {what}", flush=True)
            if options.out:
                with options.out.open("w", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, names, lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)
    finally:
        for process in processes:
            process.terminate()
    for room in options.rooms:
        counts = Counter(row["outcome"] for row in rows if Path(row["file"]).parts[1] == room)
        total = sum(counts.values())
        print(f"{room}: {counts['killed']} of {total} killed" + (f" ({counts['killed'] / total:.0%})" if total else ""))


if __name__ == "__main__":
    main()
