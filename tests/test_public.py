"""The public names, and the lines that a notebook begins with, on the built-in model."""

import importlib
import subprocess
import sys
from dataclasses import is_dataclass

import pandas as pd
import pytest
import torch

import loc_edit
from loc_edit import FinetuneSettings, MemitSettings, RomeSettings

NAMES = [
    "BadFact",
    "BadModel",
    "Edit",
    "EditRequest",
    "EditScore",
    "Experiment",
    "ExperimentConfig",
    "Fact",
    "FinetuneSettings",
    "Fit",
    "KeyStats",
    "MemitSettings",
    "Prompt",
    "RomeSettings",
    "Run",
    "Trace",
    "WeightUpdate",
    "analyze",
    "corruption_hooks",
    "encode",
    "finetune",
    "fit",
    "key_stats",
    "layer_correlations",
    "load_facts",
    "load_model",
    "load_run",
    "memit",
    "memit_joint",
    "noise_scale",
    "pose",
    "restoration_hooks",
    "rome",
    "sample_contexts",
    "save_facts",
    "score",
    "subject_noise",
    "trace",
]


@pytest.fixture(scope="module")
def model():
    return loc_edit.load_model("builtin")


@pytest.fixture(scope="module")
def fact():
    return loc_edit.load_facts("builtin", limit=4)[0]


@pytest.fixture(scope="module")
def stats(model):
    return loc_edit.key_stats(model, layers=[0, 1, 2, 3, 4], corpus="builtin", tokens=2000)


@pytest.fixture(scope="module")
def contexts(model):
    return loc_edit.sample_contexts(model)[:3]


# Names


@pytest.mark.parametrize("name", NAMES)
def test_the_name_is_public(name):
    assert getattr(loc_edit, name) is getattr(importlib.import_module(loc_edit._homes()[name]), name)
    assert name in loc_edit.__all__
    assert name in dir(loc_edit)


def test_every_public_name_can_be_had_and_says_what_it_is():
    for name in loc_edit.__all__:
        value = getattr(loc_edit, name)
        if callable(value):
            assert value.__doc__, name
    assert len(set(loc_edit.__all__)) == len(loc_edit.__all__)


def test_records_cannot_be_changed():
    records = [value for value in map(loc_edit.__getattr__, loc_edit.__all__) if is_dataclass(value)]
    assert len(records) > 20
    assert not [record.__name__ for record in records if not record.__dataclass_params__.frozen]


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'roem'"):
        _ = loc_edit.roem


def test_the_version_is_the_package_s():
    assert loc_edit.__version__.count(".") >= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "lines",
    [
        "import loc_edit; dir(loc_edit)",
        "import loc_edit; loc_edit.load_facts('builtin')",
        "import loc_edit; loc_edit.load_run, loc_edit.fit, loc_edit.layer_correlations, loc_edit.ExperimentConfig()",
        "import loc_edit.cli.main",
    ],
)
def test_reading_a_run_needs_no_torch(lines):
    code = f"{lines}\nimport sys\nprint([n for n in ('torch', 'transformer_lens', 'transformers') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# The lines of a notebook


def test_a_trace(model):
    facts = loc_edit.load_facts("builtin")
    fact = loc_edit.Fact(template="{} is located in", subject="The Louvre", target_true="Paris")
    prompt = loc_edit.encode(model, fact)
    noise = loc_edit.subject_noise(model, prompt, scale="s3", facts=facts, samples=3, seed=0)
    trace = loc_edit.trace(model, prompt, fact.target_true, noise=noise, site="mlp_out", window=5)
    assert tuple(trace.p_restored.shape) == (model.cfg.n_layers, len(prompt))
    assert trace.effect.shape == trace.fraction.shape == trace.p_restored.shape
    assert len(trace.by_layer()) == model.cfg.n_layers
    assert set(trace.to_frame()) >= {
        "fact_id",
        "layer",
        "pos",
        "window",
        "site",
        "p_restored",
        "p_clean",
        "p_corrupted",
    }
    assert type(trace.plot()).__name__ == "Figure"


def test_the_same_patches_by_hooks(model, fact):
    prompt = loc_edit.encode(model, fact)
    noise = loc_edit.subject_noise(model, prompt, scale=0.2, samples=2)
    tokens = prompt.tokens.expand(2, -1)
    _, clean_cache = model.run_with_cache(prompt.tokens[None])
    target = loc_edit.target_tokens(model, prompt.text, fact.target_true)[0]

    def p(hooks):
        with model.hooks(fwd_hooks=hooks):
            return model(tokens)[:, -1].softmax(-1)[:, target].mean().item()

    corrupted = loc_edit.corruption_hooks(prompt, noise)
    pos = prompt.last_subject
    hooks = corrupted + loc_edit.restoration_hooks(clean_cache, layers=[3, 4], pos=[pos], site="mlp_out")
    trace = loc_edit.trace(model, prompt, fact.target_true, noise=noise, window=2)
    assert loc_edit.window_layers(4, 2, 8) == range(3, 5)
    if len(loc_edit.target_tokens(model, prompt.text, fact.target_true)) == 1:
        assert p(corrupted) == pytest.approx(trace.p_corrupted, rel=1e-3)
        assert p(hooks) == pytest.approx(trace.p_restored[4, pos].item(), rel=1e-3)
    assert p(hooks) != p(corrupted)


def edits(model, request, stats, contexts):
    yield loc_edit.rome(model, request, layer=2, stats=stats, contexts=contexts, settings=RomeSettings(steps=3))
    yield loc_edit.memit(
        model, request, layers=[0, 1, 2, 3, 4], stats=stats, contexts=contexts, settings=MemitSettings(steps=3)
    )
    yield loc_edit.finetune(model, request, layers=[2], settings=FinetuneSettings(eps=1e-4, steps=3))


@pytest.mark.slow
def test_edits(model, fact, stats, contexts, tmp_path):
    request = loc_edit.pose(fact, "error_injection", model)
    before = model.state_dict()["blocks.2.mlp.W_out"].clone()
    for edit in edits(model, request, stats, contexts):
        with edit.applied(model):
            assert not torch.equal(model.blocks[2].mlp.W_out, before)
        assert torch.equal(model.blocks[2].mlp.W_out, before)
        edit.save(tmp_path / "e.safetensors")
        loaded = loc_edit.Edit.load(tmp_path / "e.safetensors")
        assert all(torch.equal(loaded.delta(layer), edit.delta(layer)) for layer in edit.layers)
        score = loc_edit.score(model, fact, request, edit, essence=False)
        assert score.after.rewrite != score.before.rewrite
        assert 0 <= score.overall <= 1


def test_defaults_will_do(model, fact):
    request = loc_edit.pose(fact, "fact_erasure", model)
    edit = loc_edit.finetune(model, request, layers=[2])
    assert edit.delta(2).abs().max() <= 1e-4 + 1e-9


def test_lists_of_requests_and_many_facts_in_one_edit(model, stats, contexts):
    requests = [loc_edit.pose(fact, "error_injection", model) for fact in loc_edit.load_facts(limit=2)]
    many = loc_edit.rome(model, requests, layer=2, stats=stats, contexts=contexts, settings=RomeSettings(steps=2))
    assert [edit.about["fact_id"] for edit in many] == [request.fact_id for request in requests]
    settings = MemitSettings(steps=2)
    joint = loc_edit.memit_joint(model, requests, layers=[1, 2], stats=stats, contexts=contexts, settings=settings)
    assert joint.layers == (1, 2)


def test_problems_with_noise(model, fact):
    for problem in ("tracing_reversal", "fact_forcing"):
        request = loc_edit.pose(fact, problem, model, noise_scale=0.3, seed=0)
        assert (request.noise is not None) == (problem == "fact_forcing")
    with pytest.raises(ValueError, match="noise"):
        loc_edit.pose(fact, "fact_forcing", model)


def test_refusals_are_value_errors(model, fact):
    from dataclasses import replace

    hopeless = replace(fact, target_true="Zanzibar instrument")
    with pytest.raises(ValueError, match="nothing to erase"):
        loc_edit.pose(hopeless, "fact_erasure", model)
    for error in ("BadFact", "BadModel", "BadPrompt", "SubjectNotFound", "NotEligible", "BadKeyStats", "EditMismatch"):
        assert issubclass(getattr(loc_edit, error), ValueError), error


def test_key_statistics_from_elsewhere(model):
    moment = torch.eye(model.cfg.d_mlp)
    stats = loc_edit.KeyStats.from_moments({2: moment}, n_tokens=10_000)
    assert stats.n_tokens == 10_000
    assert torch.equal(stats.second_moment(2), moment)


def test_a_run_is_read_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = loc_edit.ExperimentConfig(
        facts=8, layers=(2, 3), noise_samples=2, corpus_tokens=2000, essence=False, settings={"rome": {"steps": 2}}
    )
    loc_edit.Experiment(config).run("runs/demo")
    run = loc_edit.load_run("runs/demo")
    wanted = "fact_id problem method layer window status rewrite paraphrase neighborhood essence overall"
    assert set(wanted.split()) <= set(run.edits.columns)
    assert len(run.traces)
    assert isinstance(loc_edit.layer_correlations(run.frame()), pd.DataFrame)
    found = loc_edit.fit(run.frame(), outcome="rewrite")
    assert found.r2_both >= found.r2_layer - 1e-12
    assert "Run runs/demo" in repr(run)
    assert "16 done" in repr(run)


# What is seen in a notebook


def test_reprs_say_what_a_thing_is(model, fact, stats, contexts):
    prompt = loc_edit.encode(model, fact)
    noise = loc_edit.subject_noise(model, prompt, scale=0.2, samples=2)
    trace = loc_edit.trace(model, prompt, fact.target_true, noise=noise)
    request = loc_edit.pose(fact, "error_injection", model)
    edit = loc_edit.finetune(model, request, [2], settings=FinetuneSettings(steps=2))
    score = loc_edit.score(model, fact, request, essence=False)
    seen = {
        repr(fact): (fact.subject, fact.target_true),
        repr(prompt): (prompt.text, fact.subject, "tokens"),
        repr(trace): ("Trace", "window"),
        repr(request): (fact.target_new, "raise"),
        repr(edit): ("finetune", fact.target_new, "layers=[2]", "norm="),
        repr(score): ("rewrite=0.0", "neighborhood=1.0"),
        repr(stats): ("KeyStats", "tokens"),
        repr(RomeSettings()): ("RomeSettings(steps=20", "clamp=4.0"),
    }
    for text, words in seen.items():
        assert all(word in text for word in words), text
        assert len(text) < 1500
        assert "tensor([[" not in text
    assert fact.target_new in edit._repr_html_()
