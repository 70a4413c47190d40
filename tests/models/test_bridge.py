"""The package on TransformerLens 4, in which `TransformerBridge` replaces `HookedTransformer`.

The package pins TransformerLens 3, so this is skipped there.  In an environment of its own:

    pip install 'transformer-lens>=4' pytest beartype ... && pip install --no-deps -e .
    pytest --noconftest tests/models/test_bridge.py

(`conftest.py` builds models that version 4 does not have.)  Everything that the package computes runs on a bridge:
Causal Tracing by `trace` and by the public hooks, the three editors, `Edit.applied`, scores, sampled texts, key
statistics.  The numbers are those of the slow versions in `oracles.py`, which a `HookedTransformer` is held to as well,
and those of the reference, where its files are beside the project.
"""

import json
import sys
import types
from importlib.metadata import version
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch

if int(version("transformer-lens").split(".")[0]) < 4:
    pytest.skip(
        f"TransformerLens {version('transformer-lens')} has HookedTransformer; the bridge is tested with version 4",
        allow_module_level=True,
    )

import transformer_lens
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

LAYERS = 4


transformer_lens.HookedTransformer = TransformerBridge
transformer_lens.HookedTransformerConfig = TransformerBridgeConfig
transformer_lens.loading_from_pretrained = types.ModuleType("transformer_lens.loading_from_pretrained")
sys.modules["transformer_lens.loading_from_pretrained"] = transformer_lens.loading_from_pretrained

import loc_edit  # noqa: E402 (the names above are what it imports)
from loc_edit.models.decoding import sample_tokens  # noqa: E402
from loc_edit.models.loading import BUILTIN  # noqa: E402
from loc_edit.models.model import W_out, b_out, has_output_bias, logits_at  # noqa: E402
from loc_edit.models.passes import run_layers, takes_past  # noqa: E402
from loc_edit.prompts.encoding import tokenize  # noqa: E402

SIZES = {"vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 0}
CONFIGS = {
    "gpt2": GPT2Config(**SIZES, n_positions=64, n_embd=16, n_layer=LAYERS, n_head=2, initializer_range=0.3),
    "llama": LlamaConfig(
        **SIZES,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """A bridge as the package sees it, and Hugging Face's model of the same checkpoint."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[request.param]).save_pretrained(folder)
    vocabulary = BUILTIN / "tokenizer.json"
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    PreTrainedTokenizerFast(tokenizer_file=str(vocabulary), **special).save_pretrained(folder)
    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
    hf_model = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    return loc_edit.load_model(bridge, device="cpu", prepend_bos=False), hf_model


@pytest.fixture(scope="module")
def fact():
    return loc_edit.Fact(
        template="{} is located in the city of",
        subject="The Golden Bridge",
        target_true="Paris",
        target_new="Rome",
        neighbors=("The old bridge is in",),
    )


def layers_of(hf_model):
    return hf_model.transformer.h if hasattr(hf_model, "transformer") else hf_model.model.layers


def test_the_parts_are_where_the_rooms_look_for_them(pair, fact):
    model, hf_model = pair
    tokens = loc_edit.encode(model, fact).tokens[None]
    logits, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(logits, hf_model(tokens).logits, rtol=1e-4, atol=1e-4)
    final = run_layers(model, tokens, stop=LAYERS)
    torch.testing.assert_close(logits_at(model, final), logits, rtol=1e-4, atol=1e-4)
    for layer in range(LAYERS):
        key, W = cache[f"blocks.{layer}.mlp.hook_post"], W_out(model, layer)
        bias = b_out(model, layer) if has_output_bias(model) else 0
        torch.testing.assert_close(cache[f"blocks.{layer}.hook_mlp_out"], key @ W + bias, rtol=1e-4, atol=1e-5)


def test_causal_tracing_with_the_public_hooks(pair, fact):
    """Against Hugging Face's own forward hooks."""
    model, hf_model = pair
    prompt = loc_edit.encode(model, fact)
    noise = loc_edit.subject_noise(model, prompt, scale=1.0, samples=3)
    tokens, window, pos = prompt.tokens[None], [1, 2], prompt.last_subject
    _, clean = model.run_with_cache(tokens)

    def run(hooks):
        with model.hooks(fwd_hooks=hooks):
            return model(tokens)

    corrupt = loc_edit.corruption_hooks(prompt, noise)
    restore = loc_edit.restoration_hooks(clean, layers=window, pos=[pos], site="mlp_out")
    corrupted, restored = run(corrupt), run(corrupt + restore)
    assert (restored - corrupted).abs().max() > 1e-2

    def add_noise(module, inputs, output):
        output = output.clone()
        output[:, prompt.subject] += noise
        return output

    def overwrite(layer):
        def put(module, inputs, output):
            output = output.clone()
            output[:, pos] = clean[f"blocks.{layer}.hook_mlp_out"][:, pos]
            return output

        return put

    handles = [hf_model.get_input_embeddings().register_forward_hook(add_noise)]
    batch = tokens.expand(len(noise), -1)
    try:
        torch.testing.assert_close(corrupted, hf_model(batch).logits, rtol=1e-4, atol=1e-4)
        handles += [layers_of(hf_model)[layer].mlp.register_forward_hook(overwrite(layer)) for layer in window]
        torch.testing.assert_close(restored, hf_model(batch).logits, rtol=1e-4, atol=1e-4)
    finally:
        for handle in handles:
            handle.remove()
    everything = range(prompt.subject.start, len(prompt))
    whole = loc_edit.restoration_hooks(clean, layers=[0], pos=list(everything), site="resid_post")
    torch.testing.assert_close(run(corrupt + whole), model(batch), rtol=1e-4, atol=1e-4)


def test_an_edit_and_its_undo(pair, fact):
    model, _ = pair
    request = loc_edit.pose(fact, "error_injection", model)
    edit = loc_edit.finetune(model, request, [LAYERS - 1], settings=loc_edit.FinetuneSettings(eps=1.0, lr=0.1))
    score = loc_edit.score(model, fact, request, edit, essence=False)
    assert score.after.rewrite > 5 * score.before.rewrite
    tokens, target = request.prompt.tokens[None], request.target_tokens[0]
    before, W, first = model(tokens), W_out(model, LAYERS - 1), loc_edit.fingerprint(model)
    saved = W.detach().clone()
    with edit.applied(model):
        torch.testing.assert_close(W_out(model, LAYERS - 1), saved + edit.delta(LAYERS - 1))
        p = model(tokens)[0, -1].softmax(-1)[target].item()
        assert loc_edit.fingerprint(model) != first
    assert p == pytest.approx(score.after.rewrite, rel=1e-3)
    assert torch.equal(W_out(model, LAYERS - 1), saved)
    assert torch.equal(model(tokens), before)
    assert loc_edit.fingerprint(model) == first


CONTEXTS = ["{}", "It was raining all day. {}", "Nobody crossed the river. {}"]


def relative(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


def test_a_bridge_takes_no_past(pair):
    model, _ = pair
    assert not takes_past(model)


@pytest.mark.parametrize(("site", "window"), [("mlp_out", 1), ("mlp_out", 3), ("attn_out", 2), ("resid_post", 1)])
def test_traces_are_those_of_the_slow_version(pair, fact, site, window):
    model, _ = pair
    prompt = loc_edit.encode(model, fact)
    noise = loc_edit.subject_noise(model, prompt, scale=1.0, samples=3)
    answer = loc_edit.target_tokens(model, prompt.text, fact.target_true)
    found = loc_edit.trace(
        model, prompt, fact.target_true, noise=noise, site=site, window=window, metric="log_probability"
    )
    p_clean, p_corrupted, grid = oracles.trace(model, prompt.tokens, prompt.subject, answer, noise, site, window)
    assert found.effect.abs().max() > 0.1
    assert (found.p_clean, found.p_corrupted) == pytest.approx((p_clean, p_corrupted), rel=1e-5)
    torch.testing.assert_close(found.p_restored.double(), grid, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def moments(pair):
    model, _ = pair
    width = W_out(model, 0).shape[0]
    keys = torch.randn(LAYERS, 4 * width, width, generator=torch.Generator().manual_seed(0))
    return {layer: k.T @ k / len(k) for layer, k in enumerate(keys)}


@pytest.mark.parametrize("layer", [0, LAYERS - 2])
def test_rome_is_the_slow_version(pair, fact, moments, layer):
    model, _ = pair
    request, settings = loc_edit.pose(fact, "error_injection", model), loc_edit.RomeSettings(steps=5)
    stats = loc_edit.KeyStats.from_moments(moments, n_tokens=10_000)
    edit = loc_edit.rome(model, request, layer, stats=stats, contexts=CONTEXTS, settings=settings)
    slow = oracles.rome(model, request, layer, moments[layer], CONTEXTS, settings)
    assert relative(edit.delta(layer), slow) < 1e-4
    score = loc_edit.score(model, fact, request, edit)
    with edit.applied(model):
        p = model(request.prompt.tokens[None])[0, -1].softmax(-1)[request.target_tokens[0]].item()
    assert score.after.rewrite == pytest.approx(p, rel=1e-4)
    assert score.before.rewrite != pytest.approx(p, rel=1e-4)
    assert len(score.after.essence) == 5


def test_memit_is_the_slow_version(pair, fact, moments):
    model, _ = pair
    request = loc_edit.pose(fact, "error_injection", model)
    settings, layers = loc_edit.MemitSettings(steps=5, moment_weight=20.0), [0, 1, 2]
    stats = loc_edit.KeyStats.from_moments(moments, n_tokens=10_000)
    edit = loc_edit.memit(model, request, layers, stats=stats, contexts=CONTEXTS, settings=settings)
    slow = oracles.memit(model, request, layers, moments, CONTEXTS, settings)
    assert all(relative(edit.delta(layer), slow[layer]) < 1e-4 for layer in layers)


def test_key_statistics(pair, tmp_path):
    model, _ = pair
    text = "The old bridge is in the north, and the river is in the city."
    stats = loc_edit.key_stats(model, [1, LAYERS - 1], [text], tokens=10, cache=tmp_path, ridge=1.0)
    tokens = tokenize(model, text)[:10]
    _, cache = model.run_with_cache(tokens[None])
    for layer in (1, LAYERS - 1):
        keys = cache[f"blocks.{layer}.mlp.hook_post"][0]
        torch.testing.assert_close(stats.second_moment(layer), keys.T @ keys / len(keys), rtol=1e-4, atol=1e-5)


def test_sampled_texts_are_greedy_where_they_should_be(pair):
    """Against Hugging Face's own cache."""
    model, hf_model = pair
    tokens = torch.tensor([5, 9, 300, 41])
    mine = sample_tokens(model, [tokens], [torch.zeros(6)], top_k=1)[0]
    theirs = hf_model.generate(tokens[None], max_new_tokens=6, do_sample=False, eos_token_id=None)[0]
    assert torch.equal(mine, theirs)


@pytest.fixture(scope="module")
def golden():
    folder = (Path(__file__).parents[2] / ".." / "shared" / "golden").resolve()
    if not (folder / "golden.json").is_file():
        pytest.skip("no ../shared/golden beside the project")
    bridge = TransformerBridge.boot_transformers(str(folder / "tiny-gpt2"), device="cpu")
    model = loc_edit.load_model(bridge, device="cpu", prepend_bos=False)
    expected = json.loads((folder / "golden.json").read_text())
    return model, expected, np.load(folder / "golden.npz"), np.load(folder / "key_second_moment.npz")


def fact_of(expected, case_id):
    (record,) = (record for record in expected["facts"] if record["case_id"] == case_id)
    asked = record["requested_rewrite"]
    true, new = asked["target_true"]["str"], asked["target_new"]["str"]
    return loc_edit.Fact(
        fact_id=case_id, template=asked["prompt"], subject=asked["subject"], target_true=true, target_new=new
    )


def test_traces_are_those_of_the_reference(golden):
    model, expected, arrays, _ = golden
    sites = {"resid": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}
    for one in expected["trace"][:6]:
        fact = fact_of(expected, one["case_id"])
        prompt, (begin, end) = loc_edit.encode(model, fact), one["subject"]
        noise = torch.from_numpy(0.1 * np.random.RandomState(1).randn(10, end - begin, model.cfg.d_model)).float()
        found = loc_edit.trace(
            model, prompt, fact.target_true, noise=noise, site=sites[one["site"]], window=one["window"]
        )
        wanted = torch.from_numpy(arrays[one["scores"]]).float().T
        torch.testing.assert_close(found.p_restored[:, begin:], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["rome", "memit"])
def test_updates_are_those_of_the_reference(golden, method):
    model, expected, arrays, moments = golden
    layers = {int(name.removeprefix("layer_")): torch.from_numpy(moments[name]) for name in moments.files}
    stats = loc_edit.KeyStats.from_moments(layers, n_tokens=14895)
    contexts = [
        "{}",
        "The old bridge was heavy. {}",
        "They painted a green table after lunch. {}",
        "A teacher is gentle and quiet. {}",
        "Nobody crossed the river. {}",
    ]
    one = next(e for e in expected["edit"] if e["method"] == method and e["center"] == 2 and e["objective"] == "raise")
    request = loc_edit.pose(fact_of(expected, one["case_id"]), "error_injection", model)
    common = {"stats": stats, "contexts": contexts}
    if method == "rome":
        edit = loc_edit.rome(model, request, 2, settings=loc_edit.RomeSettings(), **common)
    else:
        settings = loc_edit.MemitSettings(steps=20, moment_weight=20.0)
        edit = loc_edit.memit(model, request, one["layers"], settings=settings, **common)
    for update in one["updates"]:
        wanted = torch.outer(*(torch.from_numpy(arrays[update[name]]) for name in ("left", "right")))
        assert relative(edit.delta(update["layer"]), wanted) < 1e-3
