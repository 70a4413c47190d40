"""The seam for TransformerLens 4, where `TransformerBridge` takes the place of `HookedTransformer`.

The package pins TransformerLens 3, so this is skipped there.  In an environment of its own:

    pip install 'transformer-lens>=4' pytest beartype ... && pip install --no-deps -e .
    pytest --noconftest tests/test_bridge.py

(`conftest.py` builds models that version 4 does not have.)  What is shown: loading, prompts, fingerprints, Causal
Tracing with the public hooks, fine-tuning, `Edit.applied`, scores and key statistics run on a bridge.  `trace`, `rome`
and `memit` do not yet: their fast paths reach into the attention's cache, which a bridge leaves to Hugging Face.
"""

import sys
import types
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

if int(version("transformer-lens").split(".")[0]) < 4:
    pytest.skip(
        f"TransformerLens {version('transformer-lens')} has HookedTransformer; the bridge's turn comes with version 4",
        allow_module_level=True,
    )

import transformer_lens
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

LAYERS = 4


class Model(TransformerBridge):
    """A bridge that stops after its last layer when told to, as `HookedTransformer` does; it would go on to logits."""

    def forward(self, *args, stop_at_layer=None, **kwargs):
        if stop_at_layer != self.cfg.n_layers:
            return super().forward(*args, stop_at_layer=stop_at_layer, **kwargs)
        final = []

        def keep(value, hook):
            final[:] = [value]
            return value

        with self.hooks(fwd_hooks=[(f"blocks.{self.cfg.n_layers - 1}.hook_resid_post", keep)]):
            super().forward(*args, **kwargs)
        return final[0]


transformer_lens.HookedTransformer = Model
transformer_lens.HookedTransformerConfig = TransformerBridgeConfig
transformer_lens.loading_from_pretrained = types.ModuleType("transformer_lens.loading_from_pretrained")
sys.modules["transformer_lens.loading_from_pretrained"] = transformer_lens.loading_from_pretrained

import loc_edit  # noqa: E402 (the names above are what it imports)
from loc_edit import models  # noqa: E402

SIZES = {"vocab_size": 3072, "bos_token_id": 0, "eos_token_id": 0}
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
    vocabulary = Path(models.BUILTIN) / "tokenizer.json"
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    PreTrainedTokenizerFast(tokenizer_file=str(vocabulary), **special).save_pretrained(folder)
    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
    bridge.__class__ = Model
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
    final = model(tokens, stop_at_layer=LAYERS)
    torch.testing.assert_close(models.logits_at(model, final), logits, rtol=1e-4, atol=1e-4)
    for layer in range(LAYERS):
        key, W = cache[f"blocks.{layer}.mlp.hook_post"], models.W_out(model, layer)
        bias = models.b_out(model, layer) if models.has_output_bias(model) else 0
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
    before, W, first = model(tokens), models.W_out(model, LAYERS - 1), loc_edit.fingerprint(model)
    saved = W.detach().clone()
    with edit.applied(model):
        torch.testing.assert_close(models.W_out(model, LAYERS - 1), saved + edit.delta(LAYERS - 1))
        p = model(tokens)[0, -1].softmax(-1)[target].item()
        assert loc_edit.fingerprint(model) != first
    assert p == pytest.approx(score.after.rewrite, rel=1e-3)
    assert torch.equal(models.W_out(model, LAYERS - 1), saved)
    assert torch.equal(model(tokens), before)
    assert loc_edit.fingerprint(model) == first
