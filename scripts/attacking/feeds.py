"""Bad input at every door: configuration, settings, facts, models, calls from Python and the command line."""

import dataclasses
import io
import json
import random
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from inspect import signature
from math import inf, nan
from pathlib import Path
from typing import Any

import torch

import loc_edit
from attacking.world import Attempt, World, described, in_child, judged
from loc_edit.cli.contents import COMMANDS
from loc_edit.cli.main import main
from loc_edit.editing.settings import SETTINGS

ILLEGAL: tuple[Any, ...] = (nan, b"x", {1}, object(), int, 1j)
"""What no setting, key of a configuration or argument of a call may be."""
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, -(2**70), 0.0, -0.5, 0.3, 1e-320, 1e300, inf, -inf,
    "", " ", "0", "-1", "nan", "rome", "rome-", "memit-0", "memit-9999", "s", "s-1", "u", "m1", "swap", "\0", "\ud800",
    "../x", "/nowhere", "s3://nowhere", "{}", "{} {}", "x" * 5000, "\u202e", "<script>", "causal_tracing", "mlp_out",
    [], [None], [[]], [0], [0, 0], [-1], [99], ["x"], [True], [1.5],
    {}, {"a": 1}, {"rome": 1}, {"rome": {"steps": -1}},
    (), (1,), (1, 2, 3), *ILLEGAL,
)  # fmt: skip
"""What somebody may give instead of what was expected."""
LONG = ("run", "tune", "plant", "choose-layer", "benchmark")
"""Commands that take minutes where their words are right."""
SAVED = ("gpt2", "llama", "qwen2", "gemma3", "olmo2")
"""Kinds of small random models in the format of Hugging Face, see tests/checkpoints.py."""


def feed(world: World, number: int, draws: random.Random, folder: Path) -> Attempt:
    """One bad input at a door drawn at random; in a forked process, as it may be accepted and take long."""
    door = draws.choices(
        (_config, _toml, _settings, _facts, _call, _command, _model), weights=(4, 2, 3, 4, 5, 4, 1), k=1
    )[0]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    what, names, work = door(world, draws, folder)
    answer = in_child(work)
    if answer is None:
        return Attempt(number, "feed", what, "hung")
    if answer in ("accepted", "illegal", "named"):
        return Attempt(number, "feed", what, answer)
    return Attempt(number, "feed", what, *judged(answer, *names))


def _accepted(value: Any) -> str:
    """The outcome where a value was accepted."""
    return "illegal" if any(value is one for one in ILLEGAL) else "accepted"


def _shown(value: Any) -> str:
    return repr(value)[:60]


def _config(world: World, draws: random.Random, folder: Path) -> tuple[str, list[str], Callable[[], str]]:
    name, value = draws.choice(sorted(loc_edit.ExperimentConfig.model_fields)), draws.choice(VALUES)

    def work() -> str:
        loc_edit.ExperimentConfig(**{name: value})
        return _accepted(value)

    return f"ExperimentConfig({name}={_shown(value)})", [name], work


def _toml(world: World, draws: random.Random, folder: Path) -> tuple[str, list[str], Callable[[], str]]:
    path = folder / "mine.toml"
    good = Path(__file__).parents[1] / "experiments" / "smollm2.toml"
    data = bytearray(good.read_bytes())
    for _ in range(draws.randint(1, 3)):
        start = draws.randrange(len(data))
        data[start : start + draws.choice((0, 1, 5))] = draws.choice(
            (b'"', b"[", b"=", b"\n", b"-", b"\xff", b"9", b"[[a]]")
        )

    def work() -> str:
        path.write_bytes(data)
        loc_edit.ExperimentConfig.from_toml(path)
        return "accepted"

    return "a configuration file with other bytes", [path.name], work


def _settings(world: World, draws: random.Random, folder: Path) -> tuple[str, list[str], Callable[[], str]]:
    record = draws.choice(list(SETTINGS.values()))
    name, value = draws.choice([field.name for field in dataclasses.fields(record)]), draws.choice(VALUES)

    def work() -> str:
        record(**{name: value})
        return _accepted(value)

    return f"{record.__name__}({name}={_shown(value)})", [name], work


def _facts(world: World, draws: random.Random, folder: Path) -> tuple[str, list[str], Callable[[], str]]:
    lines = [json.loads(line) for line in (world.folder / "facts.jsonl").read_text(encoding="utf-8").splitlines()]
    path, what = folder / draws.choice(("mine.jsonl", "mine.json", "mine.csv", "mine.tsv")), "facts"
    for _ in range(draws.randint(1, 2)):
        line, value = draws.choice(lines), draws.choice(VALUES)
        name = draws.choice([*sorted(line), "other"])
        what += f", {name}={_shown(value)}"
        line[name] = value if isinstance(value, str | int | float | list | dict | None) else str(value)
    text = "\n".join(json.dumps(line) for line in lines)
    if path.suffix == ".json":
        text = f"[{','.join(text.splitlines())}]"
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    if draws.random() < 0.3:
        what += ", and other bytes"
        data[draws.randrange(len(data))] = draws.randrange(256)

    def work() -> str:
        path.write_bytes(data)
        facts = loc_edit.load_facts(path)
        for fact in facts[:3]:
            loc_edit.encode(world.model, fact)
        return "accepted"

    return f"{path.name}: {what}", [path.name, "fact "], work


def _call(world: World, draws: random.Random, folder: Path) -> tuple[str, list[str], Callable[[], str]]:
    model, fact = world.model, world.facts[0]
    prompt = loc_edit.encode(model, fact)
    noise = loc_edit.subject_noise(model, prompt, scale=1.0, samples=2)
    good: dict[str, dict[str, Any]] = {
        "encode": {"model": model, "fact": fact},
        "subject_noise": {"model": model, "prompt": prompt, "scale": 1.0, "samples": 2, "seed": 0},
        "trace": {"model": model, "prompt": prompt, "target": fact.target_true, "noise": noise, "window": 1,
                  "site": "mlp_out", "metric": "probability"},
        "localize": {"model": model, "prompt": prompt, "target": fact.target_true, "noise": noise, "window": 1,
                     "localizer": "attribution"},
        "pose": {"fact": fact, "problem": "error_injection", "model": model, "noise_scale": 1.0, "seed": 0},
        "rome": {"model": model, "request": world.request, "layer": 2, "settings": loc_edit.RomeSettings(steps=1),
                 **world.given},
        "memit": {"model": model, "request": world.request, "layers": [2], "settings": loc_edit.MemitSettings(steps=1),
                  **world.given},
        "finetune": {"model": model, "request": world.request, "layers": [2],
                     "settings": loc_edit.FinetuneSettings(steps=1)},
        "score": {"model": model, "fact": fact, "request": world.request, "edit": world.edit},
        "load_facts": {"source": "builtin", "limit": 2, "seed": 0},
        "load_run": {"path": world.whole / "run"},
        "key_stats": {"model": model, "layers": [1], "corpus": ["It was a quiet day in the city."], "tokens": 100},
        "window_layers": {"center": 2, "window": 3, "n_layers": 8},
        "verify": {"path": world.whole / "run"},
    }  # fmt: skip
    function = draws.choice(sorted(good))
    name = draws.choice(list(good[function]))
    value = draws.choice((*VALUES, torch.zeros(2, 3), torch.full((1, 1), nan), fact, prompt, world.edit))
    arguments = good[function] | {name: value}
    names = [name, name.rstrip("s"), "fact", "edit", "noise"]

    def work() -> str:
        called = getattr(loc_edit, function)
        signature(called).bind(**arguments)
        called(**arguments)
        return _accepted(value)

    return f"{function}({name}={_shown(value)})", [*names, str(value)[:20]], work


def _command(world: World, draws: random.Random, folder: Path) -> tuple[str, list[str], Callable[[], Any]]:
    words = [str(value) for value in VALUES if isinstance(value, str | int | float)]
    names = [name for name in COMMANDS if name not in LONG]
    options = (
        "--model",
        "--data",
        "--layers",
        "--out",
        "--config",
        "--fact",
        "--window",
        "--seed",
        "--json",
        "--draws",
    )
    args = [draws.choice(names)]
    for _ in range(draws.randint(1, 4)):
        args.append(draws.choice(options) if draws.random() < 0.5 else draws.choice(words))
    if draws.random() < 0.2:
        args.insert(1, str(folder))

    def work() -> Any:
        words = io.StringIO()
        try:
            with redirect_stdout(words), redirect_stderr(words):
                status = main(args)
        except SystemExit as stop:  # tyro: an option that does not parse
            status = stop.code
        except Exception as error:
            return described(error) | {"clean": ""}  # a command catches what is clean
        if status and not words.getvalue().strip():
            raise RuntimeError(f"exit status {status} without a word")
        return "named" if status else "accepted"

    return "loc-edit " + " ".join(map(_shown, args)), [], work


def _model(world: World, draws: random.Random, folder: Path) -> tuple[str, list[str], Callable[[], str]]:
    from checkpoints import CONFIGS, save_random

    name = draws.choice([name for name in SAVED if name in CONFIGS])
    place = folder / name
    save_random(CONFIGS[name](), world.model.tokenizer, place)
    path = place / draws.choice(("config.json", "config.json", "tokenizer_config.json", "generation_config.json"))
    if not path.exists():
        path = place / "config.json"
    record = json.loads(path.read_text())
    key = draws.choice([*sorted(record), "other"])
    value = draws.choice([value for value in VALUES if isinstance(value, str | int | float | list | dict | None)])
    record[key] = value
    path.write_text(json.dumps(record))

    def work() -> str:
        loc_edit.load_model(place, device="cpu")
        return "accepted"

    return f"{name}: {path.name} with {key}={_shown(value)}", [str(place), key], work
