"""What the grid costs: its share of a run's time, listing a million shards, reading millions of rows, Ray, faults.

    python scripts/measure_grid.py overhead list read ray faults --json grid.json

Times are of this machine, whatever else it does meanwhile; the shares and ratios are what counts.
"""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FACTS, CELLS = 25_000, 1_000
"""Facts and cells of a million shards of 25 facts."""
ROWS, ROWS_OF_A_CELL = 5_000_000, 21_919
KILLS = 20


def small(folder: Path, **options):
    """A part of the built-in full grid: all methods and problems at one layer."""
    from loc_edit.experiment.config import NAMED, ExperimentConfig

    return ExperimentConfig(**{**NAMED["full"], "layers": (3,), "windows": (5,), "out": str(folder), **options})


def measure_overhead(folder: Path) -> dict:
    """The share of bookkeeping in a run: wall time that is no shard's own, loading and statistics not counted."""
    from loc_edit.experiment.experiment import Experiment

    experiment = Experiment(small(folder / "run", facts=12))
    _ = experiment.model, experiment.setup.stats  # not the grid's
    start = time.perf_counter()
    run = experiment.run()
    wall = time.perf_counter() - start
    end = json.loads((run.path / "log.jsonl").read_text().splitlines()[-1])
    start = time.perf_counter()
    experiment.run()
    return {
        "shards": end["shards"],
        "seconds of work": end["working"],
        "seconds of the grid": end["seconds"] - end["working"],
        "overhead %": 100 * (end["seconds"] / end["working"] - 1),
        "with checks before the first shard %": 100 * (wall / end["working"] - 1),
        "seconds to find all done": time.perf_counter() - start,
    }


def measure_list(folder: Path) -> dict:
    """A million planned shards, none done, and half of them done."""
    import numpy as np

    from loc_edit.experiment.schedule import missing_tasks
    from loc_edit.experiment.study import UneditedCell

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cells = {f"{n:016x}": UneditedCell(str(n)) for n in range(CELLS)}
    start = time.perf_counter()
    streams = missing_tasks(cells, FACTS, 25, {})
    seconds = time.perf_counter() - start
    n = sum(map(len, streams))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    del streams
    done = {name: np.zeros(FACTS, dtype=bool) for name in cells}
    for mask in done.values():
        mask[: FACTS // 2 + 10] = True
    start = time.perf_counter()
    half = sum(map(len, missing_tasks(cells, FACTS, 25, done)))
    return {
        "shards": n,
        "seconds": seconds,
        "MB": memory / 1024,
        "shards missing of a half-done run": half,
        "seconds for these": time.perf_counter() - start,
    }


def measure_read(folder: Path) -> dict:
    """Five million edit rows as a frame: a shard per cell, as after `Run.compact`; and what small shards cost."""
    import numpy as np
    import pyarrow as pa

    from loc_edit.analysis.run import Run, load_run
    from loc_edit.store.rows import SCHEMAS
    from loc_edit.store.selection import Selection
    from loc_edit.store.settings import cell_key
    from loc_edit.store.shards import write_table

    def table(cell: int, facts: range) -> pa.Table:
        n, draws = len(facts), np.random.default_rng(cell)
        values = {
            "problem": ["error_injection", "fact_forcing"][cell % 2],
            "method": ["rome", "memit", "finetune"][cell % 3],
            "objective": "raise",
            "status": "done",
            "reason": "",
            "target": "Paris",
            "cell": cell_key({"cell": cell}),
        }
        columns = {name: pa.array([value] * n) for name, value in values.items()}
        for field in SCHEMAS["edits"]:
            if field.name not in columns:
                if pa.types.is_list(field.type):
                    columns[field.name] = pa.array([[0.1, 0.2]] * n, field.type)
                elif pa.types.is_floating(field.type):
                    columns[field.name] = pa.array(draws.random(n))
                else:
                    columns[field.name] = pa.array(np.full(n, cell // 6), field.type) if field.name == "layer" else None
        columns["fact_id"] = pa.array(facts, pa.int64())
        columns["fact_content"] = pa.array([f"{fact:016x}" for fact in facts])
        columns["window"], columns["seed"] = pa.array([5] * n, pa.int32()), pa.array([0] * n, pa.int64())
        return pa.table({field.name: columns[field.name] for field in SCHEMAS["edits"]}, schema=SCHEMAS["edits"])

    def fill(path: Path, n_cells: int, facts: int, size: int) -> None:
        names = [cell_key({"cell": cell}) for cell in range(n_cells)]
        about = {
            name: table(cell, range(1)).select(["problem", "method", "layer", "window"]).to_pylist()[0]
            for cell, name in enumerate(names)
        }
        selection = Selection({}, about, {fact: f"{fact:016x}" for fact in range(facts)})
        with Run.create(path, {"facts": facts}, {"model_fingerprint": "none"}, selection) as run:
            for cell, name in enumerate(names):
                for start in range(0, facts, size):
                    some = range(start, min(start + size, facts))
                    write_table(run.path / "edits", "edits", f"{name}-{start}", table(cell, some))

    def read(path: Path) -> tuple[int, float, float]:
        start = time.perf_counter()
        run = load_run(path)
        run.done("edits")
        checked = time.perf_counter() - start
        return len(run.edits), checked, time.perf_counter() - start

    sync, os.fsync = os.fsync, lambda descriptor: None  # what is measured is reading
    fill(folder / "large", ROWS // ROWS_OF_A_CELL + 1, ROWS_OF_A_CELL, ROWS_OF_A_CELL)
    fill(folder / "small", 20, 2500, 25)
    n, checked, seconds = read(folder / "large")
    n_small, _, seconds_small = read(folder / "small")
    with Run.create(
        folder / "small", {"facts": 2500}, {"model_fingerprint": "none"}, load_run(folder / "small").selection
    ) as run:
        start = time.perf_counter()
        saved = run.compact()
        compacting = time.perf_counter() - start
    _, _, seconds_compact = read(folder / "small")
    os.fsync = sync
    return {
        "rows": n,
        "seconds": seconds,
        "of which checksums": checked,
        "GB in memory at most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "rows in small shards": n_small,
        "seconds for these": seconds_small,
        "files saved by compacting": saved,
        "seconds of compacting": compacting,
        "seconds afterwards": seconds_compact,
    }


def measure_ray(folder: Path) -> dict:
    """Ray with 2 workers and 2 processes against this process, from the first shard to the last."""
    from loc_edit.experiment.experiment import Experiment

    found = {}
    options = {"methods": ("rome", "finetune-1"), "problems": ("error_injection",), "chunk": 5, "facts": 40}
    for name, more in (("1", {}), ("2 processes", {"workers": 2}), ("2 on Ray", {"engine": "ray", "workers": 2})):
        experiment = Experiment(small(folder / name, **options, **more))
        _ = experiment.model, experiment.setup.stats
        experiment.run()
        log = [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
        rows = [(line["elapsed"], line["rows"]) for line in log if line["event"] == "shard"]
        found[f"seconds, {name}"] = log[-1]["seconds"]
        found[f"seconds from the second shard on, {name}"] = rows[-1][0] - rows[1][0]
    base = found["seconds from the second shard on, 1"]
    for name in ("2 processes", "2 on Ray"):
        found[f"speed-up, {name}"] = base / found[f"seconds from the second shard on, {name}"]
    found["load of the machine"] = os.getloadavg()[0]
    return found


RUN = "import sys; from loc_edit import Experiment; Experiment.from_toml(sys.argv[1]).run()"


def measure_faults(folder: Path) -> dict:
    """Real processes of the built-in model, killed 20 times at random moments: rows expected, found, twice."""
    from loc_edit.analysis.run import load_run
    from loc_edit.analysis.tables.rows import without_controls
    from loc_edit.experiment.experiment import Experiment
    from loc_edit.store.rows import KEYS

    options = {"facts": 40, "chunk": 1, "methods": ("finetune-1",), "problems": ("error_injection", "fact_forcing")}
    config = small(folder / "run", **options, essence=False, settings={"finetune": {"steps": 3}})
    (folder / "my.toml").write_text(config.to_toml())
    draw, kills, lost = random.Random(0), 0, 0
    had: set = set()
    while kills < KILLS:
        n = len(list(folder.glob("run/*/*.parquet")))
        process = subprocess.Popen([sys.executable, "-c", RUN, str(folder / "my.toml")], stderr=subprocess.DEVNULL)
        while len(list(folder.glob("run/*/*.parquet"))) <= n and process.poll() is None:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.5))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        rows = load_run(folder / "run").edits
        now = set(rows[list(KEYS["edits"])].itertuples(index=False, name=None))
        lost, had = lost + len(had - now), now
    run = Experiment(config).run()
    edits = run.read("edits", cells="all")
    return {
        "kills": kills,
        "edit rows expected": 40 * 2,
        "found": len(without_controls(edits)),
        "twice": int(edits.duplicated(list(KEYS["edits"])).sum()),
        "lost at any kill": lost,
        "damaged": len(run.damaged),
    }


def main() -> None:
    what = {name.removeprefix("measure_"): f for name, f in globals().items() if name.startswith("measure_")}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=[*what], choices=[*what], metavar=f"{{{','.join(what)}}}")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = {}
    for name in args.what:
        with tempfile.TemporaryDirectory(prefix="measure_grid_") as folder:
            found[name] = what[name](Path(folder))
        print(name)
        for key, value in found[name].items():
            print(f"  {key}: {value:,.3f}" if isinstance(value, float) else f"  {key}: {value:,}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
