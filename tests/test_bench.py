"""The benchmark: what it counts as work that cannot be avoided, and that it runs."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import loc_edit
from loc_edit.models.adapter import VERSION
from loc_edit.models.decoding import sample_tokens
from loc_edit.prompts.encoding import encode_context, encode_template
from loc_edit.scoring.measuring import Meter
from loc_edit.scoring.probes import make_probes

SCRIPTS = Path(__file__).parents[1] / "scripts"
pytestmark = pytest.mark.skipif(VERSION >= 4, reason="the benchmark compares with HookedTransformer")


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


@pytest.mark.long
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


# scripts/bench_real.py


@pytest.fixture
def counts(floors):
    from benching import counts

    return counts


def different_inputs(model, runs, start=0):
    """How many inputs of keys, MLPs and the unembedding differ between plain runs, from a layer on.

    Each run is (tokens, hooks, places not needed, answers).  An input that differs between runs must be computed with
    for each.  One whose output a patch overwrites is not needed: a place is a layer and a position.  Nor are positions
    of the last layer that are not answers, but for their keys.
    """
    n_layers, seen = model.cfg.n_layers, {name: Different() for name in ("k", "up", "unembed")}
    for tokens, hooks, unneeded, answers in runs:
        with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
            _, cache = model.run_with_cache(tokens[None])
        for layer in range(start, n_layers):
            keys, inner = (cache[f"blocks.{layer}.{name}"][0].flatten(1) for name in ("attn.hook_k", "mlp.hook_pre"))
            used = range(len(tokens)) if layer < n_layers - 1 else answers
            seen["k"].add(layer, keys)
            seen["up"].add(layer, [inner[pos] for pos in used if (layer, pos) not in unneeded])
        final = cache[f"blocks.{n_layers - 1}.hook_resid_post"][0]
        seen["unembed"].add(n_layers, [final[pos] for pos in answers])
    return {name: sum(map(len, inputs.values())) for name, inputs in seen.items()}


class Different(dict):
    """By layer, the vectors that differ by more than rounding."""

    def add(self, layer, vectors):
        known = self.setdefault(layer, [])
        for vector in vectors:
            if not known or (torch.stack(known) - vector).abs().amax(1).min() > 2e-5:
                known.append(vector)


def some_of(count):
    return {name: count[name] for name in ("k", "up", "unembed")}


def overwriting(names, values, pos):
    """Hooks that overwrite one position by the values of other runs."""

    def overwrite(value, hook, own):
        value = value.clone()
        value[:, pos] = own[:, pos]
        return value

    return [
        (name, lambda value, hook, own=own: overwrite(value, hook, own))
        for name, own in zip(names, values, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "template"),
    [("gpt2_deep", "In the north, {} belongs to"), ("llama", "{} belongs to"), ("gptj", "In the north, {}")],
)
def test_products_of_a_trace_are_the_different_inputs_of_plain_runs(counts, shapes, facts, shape, template):
    model, fact, windows = shapes[shape], replace(facts[2], template=template), [1, 3]
    prompt = loc_edit.encode(model, fact)
    noise = loc_edit.subject_noise(model, prompt, scale=1.5, samples=2)
    target = loc_edit.target_tokens(model, prompt.text, fact.target_true)
    tokens, answers = torch.cat([prompt.tokens, target[:-1]]), range(len(prompt) - 1, len(prompt) + len(target) - 1)
    names = [f"blocks.{layer}.hook_mlp_out" for layer in range(model.cfg.n_layers)]
    _, clean = model.run_with_cache(tokens[None], names_filter=names)
    runs = [(tokens, [], set(), answers)]
    for sample in noise:
        corrupt = loc_edit.corruption_hooks(prompt, sample[None])
        runs.append((tokens, corrupt, set(), answers))
        for window in windows:
            for center in range(model.cfg.n_layers):
                layers = loc_edit.window_layers(center, window, model.cfg.n_layers)
                for pos in range(prompt.subject.start, len(prompt)):
                    restore = loc_edit.restoration_hooks(clean, layers=layers, pos=[pos])
                    runs.append((tokens, corrupt + restore, {(layer, pos) for layer in layers}, answers))
    asked = counts.Asked(prompt, len(target), len(noise))
    assert some_of(counts.trace_count(model, [asked], windows)) == different_inputs(model, runs)


@pytest.mark.parametrize("localizer", ["zero_ablation", "severed_mlp"])
def test_products_of_a_localizer_are_the_different_inputs_of_plain_runs(counts, deep, facts, localizer):
    prompt, n_layers = loc_edit.encode(deep, facts[1]), deep.cfg.n_layers
    noise, answers = loc_edit.subject_noise(deep, prompt, scale=1.5, samples=1), [len(prompt) - 1]
    names = [f"blocks.{layer}.hook_mlp_out" for layer in range(n_layers)]
    corrupt = loc_edit.corruption_hooks(prompt, noise)
    with deep.hooks(fwd_hooks=corrupt):
        _, corrupted = deep.run_with_cache(prompt.tokens[None], names_filter=names)
    _, clean = deep.run_with_cache(prompt.tokens[None], names_filter=names)
    runs = [(prompt.tokens, hooks, set(), answers) for hooks in ([], corrupt)]
    severed = localizer == "severed_mlp"
    for center in range(n_layers):
        layers = list(loc_edit.window_layers(center, 3, n_layers))
        values = [clean[names[layer]] if severed else torch.zeros_like(clean[names[layer]]) for layer in layers]
        if severed:
            layers += (later := list(range(layers[-1] + 1, n_layers)))
            values += [corrupted[names[layer]] for layer in later]
        for pos in range(prompt.subject.start if severed else 0, len(prompt)):
            patch = overwriting([names[layer] for layer in layers], values, pos)
            runs.append((prompt.tokens, corrupt * severed + patch, {(layer, pos) for layer in layers}, answers))
    asked = counts.Asked(prompt, 1, 1)
    assert some_of(counts.localizer_count(deep, localizer, [asked], 3)) == different_inputs(deep, runs)


def probes_of(model, facts, essence=()):
    requests = [loc_edit.pose(fact, "error_injection", model) for fact in facts]
    pairs = zip(facts, requests, strict=True)
    return requests, [make_probes(model, fact, request, essence) for fact, request in pairs]


def test_products_of_scores_are_the_different_inputs_of_plain_runs(counts, deep, facts):
    from benching.real_floors import small_edits

    texts = list(torch.randint(len(deep.tokenizer), (3, 9), generator=torch.Generator().manual_seed(0)))
    texts[1][:4] = texts[0][:4]  # they begin alike, as real ones do
    _, probes = probes_of(deep, facts[:3:2], texts)
    total = Counter()
    edits = small_edits(SimpleNamespace(model=deep), 2, 0)
    for edit, of_request in zip(edits, probes, strict=True):
        rows = [(torch.cat([p.prompt.tokens, p.target[:-1]]), len(p.prompt) - 1) for p in of_request.probes]
        rows += [(text[:-1], 0) for text in texts]
        with edit.applied(deep):
            runs = [(tokens, [], set(), range(first, len(tokens))) for tokens, first in rows]
            total += Counter(different_inputs(deep, runs, start=1))
    assert some_of(counts.scoring_count(deep, probes, 1)) == total


def test_products_of_edits_by_hand(counts, deep, facts):
    """Of 4 layers and two contexts: bare, and one that makes the prompt longer."""
    requests, _ = probes_of(deep, facts[1:2])
    contexts, target = ["{}", "Nobody. {}"], requests[0].target_tokens
    n, last = len(requests[0].prompt), requests[0].prompt.last_subject
    longer = len(encode_context(deep, contexts[1], requests[0].prompt)) - n
    essence = encode_template(deep, "{} is a", facts[1].subject).subject.stop
    rows = [n + len(target) - 1, n + longer + len(target) - 1, essence]
    before, tails = [last, last + longer, essence - 1], n + len(target) - 1 - last  # of each context
    answers = 2 * len(target) + 1
    rome = counts.value_count(deep, requests, contexts, [1], steps=7)
    steps = 2 * 7
    again = 2  # the essence row's one position through layers 2 and 3, before the edit
    behind = 2 * (tails - 1)  # positions whose keys in layer 2 no step changes
    assert rome["up"] == 2 * sum(rows) + sum(before) + again + steps * ((2 * tails + 1) + answers)
    assert rome["k"] == 2 * sum(rows) + 2 * sum(before) + again + behind + steps * (3 + 2 * tails + 1)
    assert rome["unembed"] == 1 + steps * answers
    memit = counts.value_count(deep, requests, contexts, [0, 1], steps=7)
    assert memit["up"] == rome["up"] + (last + 1) + (last + longer + 1)  # the context rows once more through layer 1
    tuned = counts.finetune_count(deep, requests, [1, 2], steps=5)
    assert tuned["up"] == 2 * rows[0] + 5 * 2 * (rows[0] + len(target))
    assert tuned["down"] == rows[0] + 5 * (2 * (rows[0] + len(target)) + 3 * rows[0])
    twice = counts.value_count(deep, [*requests, *requests], contexts, [1], steps=0)
    assert twice == counts.value_count(deep, requests, contexts, [1], steps=0)  # equal rows are computed once


@pytest.mark.slow
def test_nothing_computes_fewer_products_than_its_floor(counts, deep, facts, contexts, stats_of):
    from benching.products import matrices
    from benching.real_cases import flops
    from benching.real_floors import small_edits

    facts, common = facts[:2], {"stats": stats_of(deep), "contexts": contexts[:2]}
    requests, probes = probes_of(deep, facts)
    prompts, targets = [loc_edit.encode(deep, f) for f in facts], [f.target_true for f in facts]
    noises = [loc_edit.subject_noise(deep, prompt, scale=1.5, samples=2) for prompt in prompts]
    asked = [
        counts.Asked(prompt, len(loc_edit.target_tokens(deep, prompt.text, target)), 2)
        for prompt, target in zip(prompts, targets, strict=True)
    ]
    meter, edits = Meter(deep, probes, [0]), small_edits(SimpleNamespace(model=deep), 2, 0)
    rome, tuned = loc_edit.RomeSettings(steps=4), loc_edit.FinetuneSettings(steps=3, eps=1e-6)
    memit = loc_edit.MemitSettings(steps=4)
    pairs = {
        "trace": (
            lambda: loc_edit.trace_many(deep, prompts, targets, noises=noises, windows=[1, 3]),
            counts.trace_count(deep, asked, [1, 3]),
        ),
        "rome": (
            lambda: loc_edit.rome(deep, requests, 1, settings=rome, **common),
            counts.value_count(deep, requests, contexts[:2], [1], 3),
        ),
        "memit": (
            lambda: loc_edit.memit(deep, requests, [0, 1, 2], settings=memit, **common),
            counts.value_count(deep, requests, contexts[:2], [0, 1, 2], 3),
        ),
        "finetune": (
            lambda: loc_edit.finetune(deep, requests, [0, 1], settings=tuned),
            counts.finetune_count(deep, requests, [0, 1], 3),
        ),
        "scores": (lambda: meter.measure(edits), counts.scoring_count(deep, probes, 1)),
        "before": (lambda: Meter(deep, probes), counts.scoring_count(deep, probes, 0, edited=False)),
    }
    for name in loc_edit.LOCALIZERS:
        given = loc_edit.LOCALIZERS[name]
        options = {"reference": prompts} if given.references else {"facts": facts} if given.facts else {}

        def localized(name=name, given=given, options=options):
            foil = {"foil": facts[0].target_new} if given.metric == "logit_difference" else {}
            more = {"localizer": name, "metric": given.metric, **given.options, **options, **foil}
            loc_edit.localize(deep, prompts[0], targets[0], noise=noises[0], window=3, **more)

        draws = given.options.get("steps", given.options.get("samples", 1))
        others = [prompts[1:]] if given.references else ()
        pairs[name] = (localized, counts.localizer_count(deep, name, asked[:1], 3, others, draws))
    sizes = {name: 2 * weight.numel() for name, weight in matrices(deep, 0).items()}
    for name, (run, count) in pairs.items():
        least = sum(rows * sizes.get(matrix, 0) for matrix, rows in count.items())
        assert 0 < least <= flops(run), name


def test_the_peer_of_the_built_in_model_says_the_same(floors):
    from benching.peers import generate, make_peer

    model = loc_edit.load_model("builtin", device="cpu")
    prompts = [loc_edit.encode(model, fact).tokens for fact in loc_edit.load_facts("builtin")[:40:20]]
    peer, same = make_peer("builtin", model)
    ours = sample_tokens(model, prompts, [torch.zeros(6)] * 2, top_k=1)
    assert same
    assert generate(peer, prompts, 6) == [row[-6:].tolist() for row in ours]


@pytest.mark.long
def test_every_part_of_a_real_model_s_benchmark_runs(tmp_path):
    out, plot = tmp_path / "b.json", tmp_path / "growth.png"
    options = ["--models", "tiny-llama", "--quick", "--rounds", "1", "--memory-shape", "tiny", "--flops"]
    command = [sys.executable, str(SCRIPTS / "bench_real.py"), *options, "--out", str(out), "--plot", str(plot)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [found] = json.loads(out.read_text())["models"].values()
    parts = "filter sampling keys trace edits scoring localizers memory growth bf16"
    assert {row["part"] for row in found["rows"]} == set(parts.split())
    timed = [row for row in found["rows"] if "ratio" in row]
    assert all(0 < row["ratio"]["low"] <= row["ratio"]["high"] for row in timed)
    assert all(row["computed / floor, FLOP"] >= 1 for row in timed if row["peer"] == "floor")
    assert all(value > 0 for row in found["rows"] for value in row.get("beyond, MB", {}).values())
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "edits: FT-5, 2 facts" in done.stdout
