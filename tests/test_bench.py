"""The benchmark: what it counts as work that cannot be avoided, and that it runs."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import loc_edit
from loc_edit.prompts.encoding import encode_context, encode_template

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def floors(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from benching import floors

    return floors


def prompt_at(length, subject):
    return loc_edit.Prompt(0, "", "", "", torch.zeros(length, dtype=torch.long), subject)


def test_work_of_a_trace(floors):
    """By hand, for 6 layers, 10 positions, 10 samples, window 5."""
    model = SimpleNamespace(cfg=SimpleNamespace(n_layers=6))
    alone, shared, rows = floors.tracing_work(model, [(prompt_at(10, slice(0, 2)), torch.zeros(10, 2, 1))], [5])
    layers = [6, 6, 6, 5, 4, 3]  # from each window's first on
    assert alone == 10 * sum(range(1, 11)) * sum(layers)
    # Of layer 0's three runs one state is in layers 1 and 2, then 2 and 3; all first layers are one position.
    states = (1 + 1 + 2 + 3 + 3) + 4 + 3 + 2
    assert shared == 10 * (sum(range(1, 11)) * states + 10 * 4)
    assert rows == 10 * 10 * 6


def test_work_of_an_edit(floors, deep, facts):
    """By hand, for 4 layers and two contexts: bare, and one that makes the prompt longer."""
    request = loc_edit.pose(facts[1], "error_injection", deep)
    contexts = ["{}", "Nobody. {}"]
    n, n_target = len(request.prompt), len(request.target_tokens)
    longer = len(encode_context(deep, contexts[1], request.prompt))
    last = request.prompt.last_subject
    tail = n + n_target - 1 - last
    essence = encode_template(deep, "{} is a", facts[1].subject).subject.stop
    work = floors.value_work(deep, [request], contexts, [1], steps=7)
    below = [n + n_target - 1, longer + n_target - 1, essence]
    before = [last, last + longer - n, essence - 1]
    assert work.forward == 2 * sum(below) + 2 * sum(before)
    assert work.both == 7 * 2 * (2 * tail + 1)
    assert work.unembedded_both == 7 * (2 * n_target + 1)
    trained = floors.finetune_work(deep, [request], [1, 2], [5])
    assert (trained.forward, trained.both, trained.updates) == (below[0], 5 * 3 * below[0], 5 * 2)
    cost = {"forward": 1.0, "both": 3.0, "gradients": 20.0, "unembedded": 7.0, "unembedded_both": 7.0, "updates": 100.0}
    assert trained.seconds(cost, ["forward", "both"]) == 46 * below[0]
    assert trained.seconds(cost) == 46 * below[0] + 200
    assert trained.seconds(cost, list(cost)) == 46 * below[0] + 200 + 7 * trained.unembedded_both + 1000


def test_work_of_an_edit_under_fresh_noise(floors, deep, facts):
    """By hand: what noise changes is from the subject's first token on, and it changes at every step."""
    clean, noised = (
        loc_edit.pose(facts[1], problem, deep, noise_scale=0.5) for problem in ("error_injection", "fact_forcing")
    )
    clean = replace(clean, target=noised.target, target_tokens=noised.target_tokens)
    first, last = noised.prompt.subject.start, noised.prompt.last_subject
    assert last > first  # there is something between them
    length = len(noised.prompt) + len(noised.target_tokens) - 1
    least, more = (floors.value_work(deep, [one], ["{}"], [1], steps=7) for one in (clean, noised))
    assert more.both == least.both
    assert more.forward - least.forward == 7 * ((length - first) * 2 + (last - first) * 2)
    trained = floors.finetune_work(deep, [noised], [1, 2], [5])
    copies = len(noised.noise)
    assert trained.forward == first + 5 * copies * (length - first)
    assert trained.both == 5 * 3 * (first + copies * (length - first))


@pytest.mark.slow
def test_it_runs_on_a_tiny_shape_and_its_versions_agree(tmp_path):
    out = tmp_path / "b.json"
    options = ["--shapes", "tiny", "--facts", "1", "--layers", "1", "--rounds", "1", "--samples", "2", "--tf32"]
    options += ["--threads", "1", "2"]
    parts = ["--parts", "tracing", "editing", "growth", "study", "precision", "--out", str(out)]
    command = [sys.executable, str(SCRIPTS / "bench.py"), *options, *parts]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["machine"]["torch"] == torch.__version__
    shape = found["shapes"]["tiny"]
    assert shape["tracing"]["largest difference"] < 1e-5
    for method, one in shape["editing"]["methods"].items():
        assert one["largest difference"]["update"] < 1e-3, method
        assert one["largest difference"]["p"] < 1e-5, method
        assert one["ratios"]["plain / ours"]["low"] > 0
    assert shape["precision"]["tf32"]["restored p"] < 1e-5
    assert shape["study"]["hours"] > 0
    assert shape["study"]["built-in grid, minutes"] > 0
    assert found["machine"]["processor"]
    assert shape["editing"]["methods"]["finetune-1"]["ratios"]["ours / floor with unembedding and optimiser"]["low"] > 0
    assert found["shapes"]["tiny, 2 threads"].keys() == shape.keys()
    assert "rome: ours / block floor" in done.stdout
