"""Models of several shapes, and facts to trace and edit in them."""

from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import PreTrainedTokenizerFast

import loc_edit
from loc_edit.editing.problems import EditRequest
from loc_edit.editing.settings import presets, resolve_settings
from loc_edit.facts.sampling import sample_by_relation
from loc_edit.models.loading import BUILTIN, quiet
from loc_edit.prompts.encoding import Prompt
from loc_edit.scoring.measuring import Meter
from loc_edit.scoring.probes import make_probes

SHAPES = {
    "tiny": {"n_layers": 2, "d_model": 32, "n_heads": 2, "d_head": 16, "d_mlp": 64, "d_vocab": 4096},
    "gpt2": {"n_layers": 12, "d_model": 768, "n_heads": 12, "d_head": 64, "d_mlp": 3072, "d_vocab": 50257},
    "gpt2-xl": {"n_layers": 48, "d_model": 1600, "n_heads": 25, "d_head": 64, "d_mlp": 6400, "d_vocab": 50257},
    "gptj": {
        "n_layers": 28,
        "d_model": 4096,
        "n_heads": 16,
        "d_head": 256,
        "d_mlp": 16384,
        "d_vocab": 50400,
        "positional_embedding_type": "rotary",
        "rotary_dim": 64,
        "rotary_adjacent_pairs": True,
        "parallel_attn_mlp": True,
    },
    **{
        name: {
            "n_key_value_heads": n_key_value_heads,
            "d_head": 64,
            "act_fn": "silu",
            "gated_mlp": True,
            "normalization_type": "RMS",
            "final_rms": True,
            "positional_embedding_type": "rotary",
            "rotary_dim": 64,
            **sizes,
        }
        for name, n_key_value_heads, sizes in (
            ("tiny-llama", 1, {"n_layers": 2, "d_model": 32, "n_heads": 2, "d_mlp": 64, "d_vocab": 4096}),
            ("smollm2-135m", 3, {"n_layers": 30, "d_model": 576, "n_heads": 9, "d_mlp": 1536, "d_vocab": 49152}),
            ("llama-1b", 8, {"n_layers": 16, "d_model": 2048, "n_heads": 32, "d_mlp": 8192, "d_vocab": 128256}),
        )
    },
}
METHODS = {"rome": "rome-1", "memit": "memit-5", "finetune-1": "finetune-1", "finetune-5": "finetune-5"}
SIGMA = 0.1
ESSENCE_LENGTH = 100


def make_model(shape: str, device: str, dtype: torch.dtype, **changes) -> HookedTransformer:
    """The built-in model, or one of another shape with random weights and the built-in tokenizer."""
    if shape == "builtin":
        return loc_edit.load_model("builtin", device=device, dtype=dtype)
    end = "<|endoftext|>"
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(BUILTIN / "tokenizer.json"), name_or_path=shape, eos_token=end, unk_token=end, pad_token=end
    )
    settings = {
        "n_ctx": 128,
        "act_fn": "gelu_new",
        "normalization_type": "LN",
        "default_prepend_bos": False,
        "device": device,
        "dtype": dtype,
        "model_name": shape,
        "seed": 0,
        **SHAPES[shape],
        **changes,
    }
    with quiet():
        return loc_edit.load_model(HookedTransformer(HookedTransformerConfig(**settings), fast), device=device)


@dataclass(frozen=True)
class Case:
    """A fact to trace and edit.

    Attributes:
        fact: the fact.
        prompt: its prompt.
        target: its true object, one token.
        noise: its subject noise.
        request: to raise its false object.
        forcing: the problem with a noised subject.
        essence: five texts; random tokens, as speed does not depend on them.
    """

    fact: loc_edit.Fact
    prompt: Prompt
    target: Tensor
    noise: Tensor
    request: EditRequest
    forcing: EditRequest
    essence: list[Tensor]


def make_cases(model: HookedTransformer, n: int, samples: int, before: str = "") -> list[Case]:
    """Built-in facts whose objects are one token, spread over the relations; `before` makes their prompts longer."""
    facts, usable, cases = loc_edit.load_facts("builtin"), [], []
    for fact in sample_by_relation(facts, len(facts)):
        short = len(loc_edit.target_tokens(model, fact.prompt, fact.target_true)) == 1
        if short and fact.target_new and fact.paraphrases and fact.neighbors:
            usable.append(fact)
    draws = torch.Generator().manual_seed(0)
    for plain in usable[:: max(1, len(usable) // n)][:n]:
        fact = replace(plain, template=before + plain.template)
        prompt = loc_edit.encode(model, fact)
        noise = loc_edit.subject_noise(model, prompt, scale=SIGMA, samples=samples)
        requests = [
            loc_edit.pose(fact, problem, model, noise=noise, noise_scale=SIGMA)
            for problem in ("error_injection", "fact_forcing")
        ]
        target = loc_edit.target_tokens(model, prompt.text, fact.target_true)
        essence = torch.randint(3072, (5, ESSENCE_LENGTH), generator=draws).to(model.cfg.device)
        cases.append(Case(fact, prompt, target, noise, *requests, list(essence)))
    return cases


@cache
def contexts() -> dict[str, tuple[str, ...]]:
    """The editors' contexts, from the built-in model: those of a model with random weights would be noise."""
    model = loc_edit.load_model("builtin", device="cpu")
    return {style: loc_edit.sample_contexts(model, style) for style in ("rome", "memit")}


def editing_bench(model: HookedTransformer, cases: list[Case], problem: str, layers: list[int]) -> SimpleNamespace:
    """What all edits of these facts share: requests, probes measured before, contexts, statistics, settings."""
    requests = [case.request if problem == "error_injection" else case.forcing for case in cases]
    pairs = zip(cases, requests, strict=True)
    probes = [make_probes(model, case.fact, request, case.essence) for case, request in pairs]
    return SimpleNamespace(
        model=model,
        problem=problem,
        requests=requests,
        probes=probes,
        meter=Meter(model, probes, layers),
        contexts=contexts(),
        stats=loc_edit.KeyStats.identity(model),
        settings={name: resolve_settings(full, problem, presets()["builtin"]) for name, full in METHODS.items()},
    )
