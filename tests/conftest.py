"""Random models of six shapes, small enough for slow and obvious oracles, and a few facts; nothing is downloaded."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import loc_edit
from loc_edit import names
from loc_edit.editing.contract import EDITORS
from loc_edit.editing.problems import TARGETS
from loc_edit.editing.settings import SETTINGS
from loc_edit.experiment.experiment import Experiment
from loc_edit.experiment.setup import Setup
from loc_edit.experiment.study import EditCell, TraceCell
from loc_edit.facts.loading import save_facts
from loc_edit.localization.contract import EFFECTS
from loc_edit.models.adapter import VERSION, lens
from loc_edit.models.loading import quiet
from loc_edit.scoring.contract import SCORERS

torch.set_num_threads(1)

GOLDEN = Path(__file__).parents[1] / ".." / "shared" / "golden"
BOS = "<|endoftext|>"
SENTENCES = (
    "The Golden Bridge is located in the city of Paris.",
    "The mother tongue of Anna Kowalska is Polish, and she lives in Rome.",
    "In the north, the river belongs to the people of Norway and Sweden.",
    "It was raining all day, and nobody crossed the old bridge.",
    "A teacher is gentle and quiet; the train was green and narrow.",
    "The headquarters of the company is in the city of London, in the north of the city.",
    "A French teacher is in Rome, a Polish teacher is in Paris; Norway is in the north.",
    "French and Polish, Paris and Rome, Norway and London, the north and the city of Paris.",
)


@pytest.fixture(scope="module", autouse=True)
def _a_cache_of_its_own(tmp_path_factory):
    """An empty cache for each file of tests: neither the user's is touched nor another file's found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOC_EDIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A byte-level BPE tokenizer of a few hundred tokens, in a folder: TransformerLens reads it back from there."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=460, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(SENTENCES, trainer)
    special = {"bos_token": BOS, "eos_token": BOS, "unk_token": BOS, "pad_token": BOS}
    folder = str(tmp_path_factory.mktemp("tokenizer"))
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def random_model(tokenizer, seed=0, **shape):
    """A model with random weights so large that a patch or an edit changes its answer, all biases non-zero."""
    shape = {
        "n_layers": 2,
        "d_model": 16,
        "n_ctx": 64,
        "d_head": 8,
        "n_heads": 2,
        "d_mlp": 24,
        "d_vocab": len(tokenizer),
        "act_fn": "gelu_new",
        "normalization_type": "LN",
        "model_name": "tiny",
        "default_prepend_bos": False,
        "device": "cpu",
        "init_weights": False,
        **shape,
    }
    if VERSION >= 4:
        from bridges import random_bridge

        return loc_edit.load_model(random_bridge(tokenizer, seed, shape), device="cpu")
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(**shape)
    with quiet():
        model = HookedTransformer(cfg, tokenizer)
    draws = torch.Generator().manual_seed(seed)
    norm_after_mlp = {"Olmo2ForCausalLM": "ln2.w"}.get(cfg.original_architecture, "ln2_post.w")
    with torch.no_grad():
        for name, p in model.named_parameters():
            part = name.split(".")[-1]
            if part == "w":
                p.copy_(1 + 0.2 * torch.randn(p.shape, generator=draws))
                if name.endswith(norm_after_mlp):  # far from 1, as in trained models
                    p.copy_(0.5 * torch.randn(p.shape, generator=draws).exp())
            elif part == "b" or part.startswith("b_"):
                p.copy_(0.3 * torch.randn(p.shape, generator=draws))
            elif part in ("W_E", "W_pos"):
                p.copy_((1.0 if part == "W_E" else 0.5) * torch.randn(p.shape, generator=draws))
            else:
                p.copy_(1.6 * p.shape[-2] ** -0.5 * torch.randn(p.shape, generator=draws))
        model.unembed.W_U.mul_(1.2)
        if cfg.gated_mlp:
            for block in model.blocks:
                block.mlp.b_out.zero_()
    return loc_edit.load_model(model, device="cpu")


SHAPES = {
    "gpt2": {},
    "gpt2_deep": {"n_layers": 4},
    "llama": {
        "n_layers": 3,
        "act_fn": "silu",
        "gated_mlp": True,
        "normalization_type": "RMS",
        "final_rms": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
        "default_prepend_bos": True,
    },
    "gptj": {
        "n_layers": 3,
        "parallel_attn_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
        "rotary_adjacent_pairs": True,
    },
}
SHAPES["gemma3"] = SHAPES["llama"] | {
    "use_normalization_before_and_after": True,
    "use_qk_norm": True,
    "use_local_attn": True,
    "attn_types": ["global", "local", "global"],
    "window_size": 4,
    "rotary_base_local": 100,
}
SHAPES["olmo2"] = SHAPES["llama"] | {"original_architecture": "Olmo2ForCausalLM"}
POST_NORM = ("gemma3", "olmo2")
EDITABLE = ("gpt2_deep", "llama", "gptj", *POST_NORM)


@pytest.fixture(scope="session")
def shapes(tokenizer):
    """One random model of each shape; tests leave them as they found them."""
    return {name: random_model(tokenizer, seed, **shape) for seed, (name, shape) in enumerate(SHAPES.items())}


@pytest.fixture(autouse=True)
def _models_are_left_as_they_were(request):
    """A hook that a test forgets would send the tests after it down slower paths."""
    yield
    if "shapes" in request.fixturenames:
        for name, model in request.getfixturevalue("shapes").items():
            assert not lens.watched(model), f"hooks are left on {name}"


@pytest.fixture(scope="session")
def tiny(shapes):
    """GPT-2 shape, 2 layers."""
    return shapes["gpt2"]


@pytest.fixture(scope="session")
def deep(shapes):
    """GPT-2 shape, 4 layers: windows matter."""
    return shapes["gpt2_deep"]


@pytest.fixture(params=EDITABLE)
def editable(request, shapes):
    """Every shape that can be edited, one after another."""
    return shapes[request.param]


@pytest.fixture
def make_model(tokenizer):
    """A model of a test's own, that it may spoil."""
    return lambda seed=0, **shape: random_model(tokenizer, seed, **shape)


@pytest.fixture(scope="session")
def facts():
    """Four facts: prompts and targets of several lengths, a subject at the start and one with an umlaut."""
    return [
        loc_edit.Fact(
            template="{} is located in the city of",
            subject="The Golden Bridge",
            target_true="Paris",
            target_new="Rome",
            relation="city",
            paraphrases=("Nobody crossed it. The Golden Bridge is in",),
            neighbors=("The old bridge is located in the city of",),
            fact_id=0,
        ),
        loc_edit.Fact(
            template="The mother tongue of {} is",
            subject="Anna Kowalska",
            target_true="Polish",
            target_new="French",
            relation="tongue",
            fact_id=1,
        ),
        loc_edit.Fact(
            template="In the north, {} belongs to",
            subject="Zürich",
            target_true="Switzerland",
            target_new="Norway and Sweden",
            relation="country",
            fact_id=2,
        ),
        loc_edit.Fact(
            template="The headquarters of {} is in the",
            subject="Old Train & Co",
            target_true="north",
            target_new="city",
            relation="place",
            fact_id=3,
        ),
    ]


@pytest.fixture(scope="session")
def contexts():
    """The bare prompt and three texts before it, one with braces and a line break."""
    return ["{}", "It was raining all day. {}", "A {teacher} is {} quiet;\n{}", "Nobody. {}"]


def random_moments(model, seed=0):
    """Well-conditioned second moments for every layer."""
    draws = torch.Generator().manual_seed(seed)
    m = model.cfg.d_mlp
    keys = torch.randn(model.cfg.n_layers, 4 * m, m, generator=draws) * torch.linspace(0.3, 1.5, m)
    return {layer: (k.T @ k / len(k)) for layer, k in enumerate(keys)}


@pytest.fixture(scope="session")
def moments():
    """model -> second moments by layer, the same at each call."""
    return random_moments


@pytest.fixture(scope="session")
def stats_of():
    """model -> `KeyStats` of those moments."""
    return lambda model: loc_edit.KeyStats.from_moments(random_moments(model), n_tokens=10_000)


@pytest.fixture(scope="session")
def golden():
    """The reference's numbers, its model and its facts; tests that want them are skipped where they are absent."""
    folder = GOLDEN.resolve()
    if not (folder / "golden.json").is_file():
        pytest.skip("no ../shared/golden beside the project: the reference's numbers are not there to compare with")
    expected = json.loads((folder / "golden.json").read_text())
    moments = np.load(folder / "key_second_moment.npz")
    model = loc_edit.load_model(folder / "tiny-gpt2", device="cpu")
    layers = {int(name.removeprefix("layer_")): torch.from_numpy(moments[name]) for name in moments.files}
    return SimpleNamespace(
        folder=folder,
        model=model,
        traces=expected["trace"],
        edits=expected["edit"],
        arrays=np.load(folder / "golden.npz"),
        facts={record["case_id"]: counterfact(record) for record in expected["facts"]},
        stats=loc_edit.KeyStats.from_moments(layers, n_tokens=14895),
    )


def counterfact(record):
    """A CounterFact record as a fact."""
    rewrite = record["requested_rewrite"]
    return loc_edit.Fact(
        fact_id=record["case_id"],
        template=rewrite["prompt"],
        subject=rewrite["subject"],
        target_true=rewrite["target_true"]["str"],
        target_new=rewrite["target_new"]["str"],
        relation=rewrite["relation_id"],
        paraphrases=tuple(record["paraphrase_prompts"]),
        neighbors=tuple(record["neighborhood_prompts"]),
    )


@pytest.fixture
def lab(tmp_path, monkeypatch, tiny, stats_of, facts):
    """(**options) -> an experiment on the tiny model and its four facts."""
    data = tmp_path / "facts.jsonl"
    save_facts(facts, data)
    monkeypatch.setattr(Setup, "model", tiny)
    monkeypatch.setattr(Setup, "stats", stats_of(tiny))

    def make(**options):
        defaults = {
            "model": "tiny",
            "data": str(data),
            "noise": "1.5",
            "noise_samples": 2,
            "windows": (1,),
            "chunk": 2,
            "settings": {name: {"steps": 3} for name in ("rome", "memit", "finetune")},
            "essence": False,
            "out": str(tmp_path / "run"),
        }
        return Experiment(loc_edit.ExperimentConfig(**(defaults | options)))

    return make


@pytest.fixture
def registries():
    """The registries, which are left as they were: plug-ins of one test are not known to the next."""
    registries = (
        *(names.LOCALIZERS, names.METHODS, names.PROBLEMS, names.SCORES),
        *(EFFECTS, EDITORS, TARGETS, SETTINGS, SCORERS),
    )
    before, modules = [dict(registry) for registry in registries], set(sys.modules)
    yield
    for registry, values in zip(registries, before, strict=True):
        registry.clear()
        registry.update(values)
    for module in set(sys.modules) - modules:
        if module.startswith("loc_edit_plugin_"):
            del sys.modules[module]


@pytest.fixture
def computed(monkeypatch):
    """The shards computed, as (kind, facts, words) in order."""
    calls = []
    trace_rows, edit_rows = TraceCell.rows, EditCell.rows

    def traces(cell, batch):
        name = cell.window if cell.localizer == "causal_tracing" else str(cell)
        calls.append(("traces", tuple(batch.contents), name))
        return trace_rows(cell, batch)

    def edits(cell, batch):
        calls.append(("edits", tuple(batch.contents), str(cell)))
        return edit_rows(cell, batch)

    monkeypatch.setattr(TraceCell, "rows", traces)
    monkeypatch.setattr(EditCell, "rows", edits)
    return calls


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 kB, where this user may mount one."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if (
        not shutil.which("mount")
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", mount], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("this user cannot mount a small disk")
    yield mount
    subprocess.run(["umount", mount], check=True)
