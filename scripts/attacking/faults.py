"""Kills at random moments, and damage of random files: nothing is lost, doubled, or silently wrong."""

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import loc_edit
from attacking.world import Attempt, World, in_child, judged
from loc_edit.cli.main import stop_on_signals
from loc_edit.store.layout import BadRun

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def kill(world: World, number: int, draws: random.Random, folder: Path) -> Attempt:
    """Goes on with the run in `folder` and kills it; if it ends before, its rows must be right, and another begins."""
    before = _rows_there(world, folder)
    sent, delay = draws.choice(SIGNALS), draws.expovariate(1 / 1.0)
    what = f"{sent.name} after {delay:.2f} s with {len(before)} rows"

    def strike(pid: int) -> None:
        deadline = time.monotonic() + delay
        while time.monotonic() < deadline:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return
            time.sleep(0.005)
        os.kill(pid, sent)

    def work() -> str:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop_on_signals()
        world.experiment(folder).run()
        return "done"

    answer = in_child(work, strike)
    if isinstance(answer, dict) and answer["kind"] not in ("KeyboardInterrupt", "Stopped"):
        return Attempt(number, "kill", what, *judged(answer, str(folder)))
    try:
        after = _rows_there(world, folder)
    except AssertionError as error:
        return Attempt(number, "kill", what, "doubled", str(error))
    if lost := before.keys() - after.keys():
        return Attempt(number, "kill", what, "lost", sorted(lost)[0])
    wrong = [key for key, digest in after.items() if world.rows.get(key) != digest]
    if wrong or (answer == "done" and after != world.rows):
        return Attempt(number, "kill", what, "silent", f"{len(after)} rows, wrong: {wrong[:2]}")
    if answer == "done":
        shutil.rmtree(folder)
        what += ", too late"
    return Attempt(number, "kill", what, "right")


def _rows_there(world: World, folder: Path) -> dict[str, str]:
    try:
        return world.rows_of(loc_edit.load_run(folder / "run"))
    except BadRun:
        if list(folder.glob("run/*/*.parquet")):
            raise
        return {}


def damage(world: World, number: int, draws: random.Random, folder: Path) -> Attempt:
    """Damages one file of a copy of everything, and uses it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world.whole, folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in (".lock", ".writer")]
    rows = [path for path in files if path.suffix == ".parquet"]
    others = [path for path in files if path.suffix != ".parquet" and path.name != "log.jsonl"]
    path = draws.choice(draws.choice((rows, others)))
    how = draws.choice((_flip, _flip, _cut, _zeros, _empty, _garbage, _remove, _exchange))
    how(path, draws, files)
    name = path.relative_to(folder).as_posix()
    if name.startswith("cache/"):
        shutil.rmtree(folder / "run")
        use = "run"
    elif path.name == "edit.safetensors":
        use = "load"
    else:
        use = draws.choice(("read", "run", "verify"))
    what = f"{how.__name__.strip('_')} {name}, then {use}"
    answer = in_child(lambda: _use(world, use, folder))
    if answer is None:
        return Attempt(number, "damage", what, "hung")
    if "kind" in answer:
        return Attempt(number, "damage", what, *judged(answer, path.name, str(folder / "run"), path.name.split(".")[0]))
    if answer["named"]:
        return Attempt(number, "damage", what, "named")
    wrong = [key for key, digest in answer["rows"].items() if world.rows.get(key) != digest]
    complete = len(answer["rows"]) == len(world.rows)
    # rows that are gone without a trace are rows that were not computed yet: a reader cannot know better
    if wrong or not (complete or how in (_remove, _exchange)):
        return Attempt(number, "damage", what, "silent", f"{len(answer['rows'])} rows, wrong: {wrong[:2]}")
    return Attempt(number, "damage", what, "right")


def _use(world: World, use: str, folder: Path) -> dict[str, Any]:
    """Uses the files of a folder: the digests of its rows, and whether something was found to be damaged."""
    if use == "load":
        edit = loc_edit.Edit.load(folder / "edit.safetensors", world.model)
        same = all((edit.delta(layer) == world.edit.delta(layer)).all() for layer in world.edit.layers)
        return {"rows": world.rows if same else {}, "named": False}
    named = False
    if use == "verify":
        named = any(finding.is_broken for finding in loc_edit.verify(folder))
    run = world.experiment(folder).run() if use == "run" else loc_edit.load_run(folder / "run")
    rows = world.rows_of(run)
    return {"rows": rows, "named": named or bool(run.damaged)}


def _flip(path: Path, draws: random.Random, files: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
    path.write_bytes(data)


def _cut(path: Path, draws: random.Random, files: list[Path]) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draws.randrange(len(data) + 1)])


def _zeros(path: Path, draws: random.Random, files: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    start = draws.randrange(len(data) + 1)
    end = min(len(data), start + draws.randint(1, 512))
    data[start:end] = bytes(end - start)
    path.write_bytes(data)


def _empty(path: Path, draws: random.Random, files: list[Path]) -> None:
    path.write_bytes(b"")


def _garbage(path: Path, draws: random.Random, files: list[Path]) -> None:
    path.write_bytes(draws.randbytes(draws.randint(1, 4096)))


def _remove(path: Path, draws: random.Random, files: list[Path]) -> None:
    path.unlink()


def _exchange(path: Path, draws: random.Random, files: list[Path]) -> None:
    """Puts another file of its kind in its place."""
    path.write_bytes(draws.choice([file for file in files if file.suffix == path.suffix]).read_bytes())
