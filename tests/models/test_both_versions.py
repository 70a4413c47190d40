"""The same numbers with TransformerLens 3 and 4: traces, edits, scores, fingerprints, and users' own hooks.

`both_versions.json` has the numbers of TransformerLens 3.9; `python tests/models/test_both_versions.py` writes it
there.  Either version is compared with them, so that an equality of both needs one environment at a time.
"""

import ast
import json
import re
import sys
import tempfile
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from checkpoints import CONFIGS, VARIANTS
from transformers import PreTrainedTokenizerFast
from transformers.models.auto import AutoModelForCausalLM

import loc_edit
from loc_edit.editing.changes import WeightUpdate
from loc_edit.models.adapter import VERSION
from loc_edit.models.loading import BUILTIN
from loc_edit.models.model import W_out

FILE = Path(__file__).with_name("both_versions.json")
SHAPES = {"gpt2": CONFIGS["gpt2"], "gptj": CONFIGS["gptj"], "llama": VARIANTS["llama, grouped, wide heads"]}
SHAPES |= {"neox": CONFIGS["neox"], "qwen3": CONFIGS["qwen3"], "gemma3": VARIANTS["gemma3"], "olmo2": VARIANTS["olmo2"]}
MODELS = ("builtin", *SHAPES)
FACT = loc_edit.Fact(
    fact_id=3,
    template="{} is located in the city of",
    subject="The Golden Bridge",
    target_true="Paris",
    target_new="Rome",
    paraphrases=("Nobody crossed it. The Golden Bridge is in",),
    neighbors=("The old bridge is in",),
)
CONTEXTS = ["{}", "It was raining all day. {}"]


def save(name, folder):
    """A checkpoint whose weights depend on nothing but their names."""
    config = SHAPES[name]()
    config.vocab_size = 4096
    hf_model = AutoModelForCausalLM.from_config(config).eval()
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, p in sorted(hf_model.named_parameters()):
            noise = torch.randn(p.shape, generator=draws)
            norm = p.ndim == 1 and not key.endswith("bias")
            p.copy_(0.2 * noise + ("gemma" not in name) if norm else 0.3 * noise)
    hf_model.save_pretrained(folder)
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    PreTrainedTokenizerFast(tokenizer_file=str(BUILTIN / "tokenizer.json"), **special).save_pretrained(folder)


def load(name):
    if name == "builtin":
        return loc_edit.load_model("builtin", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        save(name, folder)
        return loc_edit.load_model(folder, device="cpu")


def measured(model):
    """What is compared, as lists of numbers."""
    prompt = loc_edit.encode(model, FACT)
    noise = loc_edit.subject_noise(model, prompt, scale="s1", facts=[FACT], samples=3)
    n_layers, m = model.cfg.n_layers, model.cfg.d_mlp
    numbers = {"noise": noise.flatten().tolist()[:20]}
    for site, window in (("mlp_out", 3), ("attn_out", 1), ("resid_post", 1)):
        trace = loc_edit.trace(
            model, prompt, FACT.target_true, noise=noise, site=site, window=window, metric="log_probability"
        )
        numbers[f"trace {site}"] = [trace.p_clean, trace.p_corrupted, *trace.p_restored.flatten().tolist()]
    for localizer in ("attribution", "direct", "relp"):
        found = loc_edit.localize(
            *(model, prompt, FACT.target_true),
            noise=noise,
            localizer=localizer,
            metric="logit_difference",
            foil=FACT.target_new,
        )
        numbers[localizer] = found.effect.flatten().tolist()
    _, clean = model.run_with_cache(prompt.tokens[None])
    hooks = loc_edit.corruption_hooks(prompt, noise)
    hooks += loc_edit.restoration_hooks(clean, layers=[1], pos=[prompt.last_subject], site="mlp_out")
    with model.hooks(fwd_hooks=hooks):
        numbers["hooks"] = model(prompt.tokens[None])[:, -1, :5].flatten().tolist()
    draws = torch.Generator().manual_seed(0)
    keys = {layer: torch.randn(4 * m, m, generator=draws) for layer in range(n_layers)}
    stats = loc_edit.KeyStats.from_moments({layer: k.T @ k / len(k) for layer, k in keys.items()}, n_tokens=10_000)
    request = loc_edit.pose(FACT, "error_injection", model)
    given = {"stats": stats, "contexts": CONTEXTS}
    edits = {
        "rome": loc_edit.rome(model, request, 1, settings=loc_edit.RomeSettings(steps=5), **given),
        "memit": loc_edit.memit(
            model, request, [0, 1], settings=loc_edit.MemitSettings(steps=5, moment_weight=20.0), **given
        ),
        "finetune": loc_edit.finetune(model, request, [1], settings=loc_edit.FinetuneSettings(steps=3, eps=1e-2)),
    }
    for name, edit in edits.items():
        before = W_out(model, 1).detach().clone()
        with edit.applied(model):
            assert not torch.equal(W_out(model, 1), before)
            logits = model(prompt.tokens[None])[0, -1]
        assert torch.equal(W_out(model, 1), before)
        score = loc_edit.score(model, FACT, request, edit)
        numbers[name] = [edit.norm, logits[request.target_tokens[0]].item(), score.rewrite, score.paraphrase]
        numbers[name] += [score.neighborhood, score.after.rewrite, score.overall_essence]
    texts = ["The old bridge is in the north, and the river is in the city of Rome."]
    with tempfile.TemporaryDirectory() as cache:
        counted = loc_edit.key_stats(model, [1], texts, tokens=10, cache=cache, ridge=1.0).second_moment(1)
    numbers["key statistics"] = counted[:3, :5].flatten().tolist()
    return numbers


def rounded(values):
    return [float(f"{value:.7g}") for value in values]


@pytest.fixture(scope="module")
def expected():
    return json.loads(FILE.read_text())


@pytest.mark.parametrize("name", MODELS)
def test_both_versions_of_transformer_lens_give_the_same_numbers(expected, name):
    model = load(name)
    assert type(model).__name__ == ("TransformerBridge" if VERSION >= 4 else "HookedTransformer")
    assert loc_edit.fingerprint(model) == expected[name]["fingerprint"]
    numbers = measured(model)
    assert numbers.keys() == expected[name].keys() - {"fingerprint"}
    for what, values in numbers.items():
        got, wanted = torch.tensor(values), torch.tensor(expected[name][what])
        assert wanted.abs().max() > 0, what
        scale = wanted.abs().max().clamp(max=1).item()
        torch.testing.assert_close(
            got, wanted, rtol=1e-4, atol=1e-4 * scale, msg=lambda text, what=what: f"{what}: {text}"
        )
    assert loc_edit.fingerprint(model) == expected[name]["fingerprint"]


def public_names(module):
    """The functions, constants and re-exports of a file of `models`, without importing it."""
    for node in ast.parse((Path(loc_edit.__file__).parent / "models" / f"{module}.py").read_text()).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, tuple(arg.arg for arg in node.args.args)
        elif isinstance(node, ast.Assign):
            yield node.targets[0].id, ()
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname, ()) for alias in node.names if alias.asname == alias.name)


def test_both_adapters_have_what_the_package_asks_of_either():
    three, four = (dict(public_names(module)) for module in ("hooked", "bridged"))
    used = set()
    for path in Path(loc_edit.__file__).parent.rglob("*.py"):
        if "from loc_edit.models.adapter import" in (text := path.read_text()):
            used |= set(re.findall(r"\blens\.(\w+)", text))
    assert len(used) > 15
    assert used <= three.keys()
    assert used <= four.keys()
    assert three["run"] == four["run"]


@pytest.mark.skipif(VERSION < 4, reason="TransformerLens 3 has its own class")
@pytest.mark.parametrize("compatible", [False, True])
def test_a_bridge_that_the_user_has_loaded_gives_the_same_numbers(expected, tmp_path, compatible):
    from transformer_lens.model_bridge import TransformerBridge

    save("llama", tmp_path)
    bridge = TransformerBridge.boot_transformers(str(tmp_path), device="cpu")
    if compatible:
        bridge.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    seen = []
    with bridge.hooks(fwd_hooks=[("hook_embed", lambda value, hook: seen.append(value))]):
        model = loc_edit.load_model(bridge, device="cpu", prepend_bos=False)
    assert model is bridge
    assert not seen, "loading leaves the user's hooks alone"
    numbers = measured(model)
    for what in ("trace mlp_out", "hooks", "rome", "memit"):
        torch.testing.assert_close(
            torch.tensor(numbers[what]), torch.tensor(expected["llama"][what]), rtol=1e-4, atol=1e-4
        )


@pytest.mark.skipif(VERSION < 4, reason="TransformerLens 3 gives every MLP a bias")
def test_what_a_bridge_cannot_do_is_refused_by_name():
    biased = loc_edit.Edit((WeightUpdate(0, bias=torch.ones(16), full=torch.zeros(24, 16)),))
    with pytest.raises(loc_edit.EditMismatch, match="changes b_out, which the model does not have"):
        biased.write(load("llama"))


if __name__ == "__main__":
    assert VERSION == 3, "expected TransformerLens 3, which computes the numbers that version 4 is compared with"
    models = {name: load(name) for name in MODELS}
    table = {
        name: {"fingerprint": loc_edit.fingerprint(model), **{k: rounded(v) for k, v in measured(model).items()}}
        for name, model in models.items()
    }
    lines = [f"{json.dumps(name)}: {json.dumps(row)}" for name, row in table.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
