"""Loading of models: logits equal Hugging Face's, unsuitable models are refused, fingerprints follow the weights."""

import inspect
import json
import shutil
import socket
import warnings
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from checkpoints import (
    CONFIGS,
    GATED,
    LONG,
    MISUNDERSTOOD,
    SCALED,
    SIZES,
    VARIANTS,
    save_random,
    tokenizer_beginning_with_bos,
)
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Gemma2Config, GPT2Config
from transformers.models.auto import AutoModelForCausalLM

import loc_edit
from loc_edit import BadModel
from loc_edit.keys.tokens import _tokenized as documents
from loc_edit.models.adapter import VERSION, lens
from loc_edit.models.checkpoints import LONGEST_CONTEXT
from loc_edit.models.checks import check_editable, check_layers, check_unprocessed
from loc_edit.models.identity import _checksum, tokenizer_fingerprint
from loc_edit.models.model import Model, W_out, b_out, has_output_bias, logits_at, token_texts
from loc_edit.models.passes import run_layers
from loc_edit.prompts.encoding import tokenize


@pytest.fixture(scope="session")
def checkpoints(tokenizer, tmp_path_factory):
    """Makes (directory, Hugging Face model) for a name, once."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = (folder, save_random(CONFIGS[name](), tokenizer, folder))
        return made[name]

    return get


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """Any attempt to reach the network fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked for something")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def ids():
    return torch.randint(1, 460, (2, 20), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_hugging_face(checkpoints, ids, name):
    folder, hf_model = checkpoints(name)
    model = loc_edit.load_model(folder, device="cpu")
    with torch.inference_mode():
        wanted, got = hf_model(ids).logits, model(ids)
    assert wanted.std() > 0.1
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_hugging_face_for_variants_within_a_family(tokenizer, tmp_path, ids, name):
    hf_model = save_random(VARIANTS[name](), tokenizer, tmp_path)
    hf_model.set_attn_implementation("eager")
    model = loc_edit.load_model(tmp_path, device="cpu")
    with torch.inference_mode():
        torch.testing.assert_close(model(ids), hf_model(ids).logits, rtol=1e-4, atol=1e-4)
    assert model.cfg.n_ctx == 64


@pytest.mark.parametrize("name", LONG)
def test_long_contexts_are_cut_and_keep_their_windows_and_positions(tokenizer, tmp_path, name):
    make, windowed = LONG[name]
    hf_model = save_random(make(), tokenizer, tmp_path)
    hf_model.set_attn_implementation("eager")
    model = loc_edit.load_model(tmp_path, device="cpu")
    assert hf_model.config.max_position_embeddings > model.cfg.n_ctx == LONGEST_CONTEXT
    assert VERSION >= 4 or model.cfg.use_local_attn == windowed
    ids = torch.randint(1, 460, (1, LONGEST_CONTEXT), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        torch.testing.assert_close(model(ids), hf_model(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(VERSION >= 4, reason="a bridge runs Hugging Face's own modules, which understand it")
@pytest.mark.parametrize("name", MISUNDERSTOOD)
def test_a_configuration_that_is_misunderstood_is_refused(tokenizer, tmp_path, name):
    save_random(MISUNDERSTOOD[name](), tokenizer, tmp_path / "strange")
    with pytest.raises(BadModel, match=r"strange: its logits .* differ from Hugging Face's by [\d.]+%"):
        loc_edit.load_model(tmp_path / "strange", device="cpu")


@pytest.mark.parametrize("kind", SCALED)
def test_scaled_positions_that_are_not_rebuilt_are_refused_by_name(tokenizer, tmp_path, kind):
    save_random(SCALED[kind](), tokenizer, tmp_path / "long")
    with pytest.raises(BadModel, match=f"long: .* not supported: rotary positions with '{kind}' scaling"):
        loc_edit.load_model(tmp_path / "long", device="cpu")


@pytest.mark.parametrize("name", ["gpt2", "gptj", "llama", "neox"])
def test_edits_are_the_same_in_hugging_faces_weights(checkpoints, ids, name):
    """`W_out` is the checkpoint's own matrix: the same change there gives the same logits."""
    folder, hf_model = checkpoints(name)
    model = loc_edit.load_model(folder, device="cpu")
    delta = 0.3 * torch.randn(model.cfg.d_mlp, 16, generator=torch.Generator().manual_seed(1))
    edit = loc_edit.Edit((loc_edit.WeightUpdate(1, full=delta),))
    block = {
        "gpt2": lambda: hf_model.transformer.h[1].mlp.c_proj,
        "gptj": lambda: hf_model.transformer.h[1].mlp.fc_out,
        "llama": lambda: hf_model.model.layers[1].mlp.down_proj,
        "neox": lambda: hf_model.gpt_neox.layers[1].mlp.dense_4h_to_h,
    }[name]()
    before = block.weight.detach().clone()
    with torch.no_grad():
        block.weight.add_(delta if name == "gpt2" else delta.T)
        wanted = hf_model(ids).logits
        block.weight.copy_(before)
        plain = hf_model(ids).logits
    assert (wanted - plain).abs().max() > 0.1
    with edit.applied(model):
        torch.testing.assert_close(model(ids), wanted, rtol=1e-4, atol=1e-4)


def test_mlp_out_is_key_times_w_out_plus_bias(checkpoints, ids):
    for name in CONFIGS:
        model = loc_edit.load_model(checkpoints(name)[0], device="cpu")
        _, cache = model.run_with_cache(ids)
        wanted = cache["blocks.2.mlp.hook_post"] @ W_out(model, 2) + b_out(model, 2)
        torch.testing.assert_close(cache["blocks.2.hook_mlp_out"], wanted)
        assert has_output_bias(model) == (name in ("gpt2", "gptj", "neox"))


@pytest.fixture(scope="session")
def tokenizers(tokenizer):
    """One tokenizer's vocabulary with several beginnings and ends of a text."""
    added = deepcopy(tokenizer)
    added.add_bos_token = True
    return {
        "nothing added": tokenizer,
        "BOS in the template": tokenizer_beginning_with_bos(tokenizer),
        "BOS and EOS in the template": tokenizer_beginning_with_bos(tokenizer, ends=True),
        "BOS in the settings": added,
    }


@pytest.mark.parametrize("name", [*CONFIGS, *VARIANTS])
def test_prompts_have_the_tokens_of_the_tokenizer_called_with_its_defaults(tokenizers, tmp_path, name):
    fact = loc_edit.Fact(template="{} is located in the city of", subject="The Golden Bridge", target_true="Paris")
    save_random({**CONFIGS, **VARIANTS}[name](), tokenizers["nothing added"], tmp_path)
    beginnings = {}
    for kind, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(tmp_path)
        wanted = AutoTokenizer.from_pretrained(tmp_path)(fact.prompt)["input_ids"]
        wanted = wanted[:-1] if "EOS" in kind else wanted  # a prompt is continued
        model = loc_edit.load_model(tmp_path, device="cpu")
        assert loc_edit.encode(model, fact).tokens.tolist() == wanted
        assert next(documents(model, [fact.prompt])) == wanted
        if "EOS" not in kind:
            assert model.to_tokens(fact.prompt).tolist() == [wanted]
        beginnings[kind] = wanted[0]
    bos = tokenizers["nothing added"].bos_token_id
    assert {kind for kind, first in beginnings.items() if first == bos} == {*tokenizers} - {"nothing added"}


def test_the_start_of_text_can_be_chosen(tokenizer, tmp_path):
    fact = loc_edit.Fact(template="{} is in", subject="Rome", target_true="Paris")
    folders = {False: tmp_path / "plain", True: tmp_path / "begun"}
    for begins, folder in folders.items():
        save_random(CONFIGS["gpt2"](), tokenizer_beginning_with_bos(tokenizer) if begins else tokenizer, folder)
    without, with_bos = (loc_edit.load_model(folders[False], device="cpu", prepend_bos=b) for b in (None, True))
    assert loc_edit.encode(with_bos, fact).tokens.tolist() == [0, *loc_edit.encode(without, fact).tokens.tolist()]
    assert loc_edit.fingerprint(with_bos) != loc_edit.fingerprint(without)
    off = loc_edit.load_model(folders[True], device="cpu", prepend_bos=False)
    assert loc_edit.encode(off, fact).tokens.tolist() == loc_edit.encode(without, fact).tokens.tolist()
    loaded = loc_edit.load_model(without, device="cpu", prepend_bos=True)
    assert loaded is without
    assert loaded.cfg.default_prepend_bos


def test_a_tokenizer_without_bos_cannot_begin_with_it(tokenizer, tmp_path):
    nameless = deepcopy(tokenizer)
    nameless.bos_token = None
    save_random(CONFIGS["qwen2"](), nameless, tmp_path / "nameless")
    assert not loc_edit.load_model(tmp_path / "nameless", device="cpu").cfg.default_prepend_bos
    with pytest.raises(BadModel, match="nameless: prepend_bos=True, but its tokenizer has no BOS token"):
        loc_edit.load_model(tmp_path / "nameless", device="cpu", prepend_bos=True)


@pytest.mark.parametrize("begins", [False, True])
def test_a_model_from_the_hub_begins_texts_as_its_tokenizer_does(tokenizer, make_model, tmp_path, monkeypatch, begins):
    """The hub is out of reach here: a model with a tokenizer's folder in place of its name stands for it."""
    (tokenizer_beginning_with_bos(tokenizer) if begins else tokenizer).save_pretrained(tmp_path)
    model = make_model()
    model.cfg.default_prepend_bos = True
    monkeypatch.setattr(lens, "from_hub", lambda *args: (model, str(tmp_path)))
    loaded = loc_edit.load_model("gpt2", device="cpu")
    assert loaded.cfg.default_prepend_bos == begins
    assert loaded.to_tokens("Rome is")[0].tolist() == AutoTokenizer.from_pretrained(tmp_path)("Rome is")["input_ids"]


def test_dtype_is_respected(checkpoints):
    with pytest.warns(UserWarning, match="bfloat16"):
        model = loc_edit.load_model(checkpoints("gpt2")[0], device="cpu", dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert loc_edit.load_model(checkpoints("gpt2")[0], device="cpu").W_E.dtype == torch.float32


def test_the_name_of_a_directory_does_not_matter(checkpoints, ids, tmp_path):
    """TransformerLens chooses its branch by name; this package must not depend on the name."""
    folder, hf_model = checkpoints("gpt2")
    for name in ("my-llama-2", "Llama-2-70b", "bert-base", "gemma", "gemma-2-9b", "t5", "phi", "gpt2"):
        shutil.copytree(folder, tmp_path / name)
        model = loc_edit.load_model(tmp_path / name, device="cpu")
        with torch.inference_mode():
            torch.testing.assert_close(model(ids), hf_model(ids).logits, rtol=1e-4, atol=1e-4)
        assert model.cfg.model_name == name


def test_shards_and_half_precision_files_are_read(checkpoints, tokenizer, tmp_path, ids):
    _, hf_model = checkpoints("llama")
    hf_model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    whole = loc_edit.load_model(tmp_path / "shards", device="cpu")
    with torch.inference_mode():
        torch.testing.assert_close(whole(ids), hf_model(ids).logits, rtol=1e-4, atol=1e-4)
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "shards", dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    tokenizer.save_pretrained(tmp_path / "half")
    model = loc_edit.load_model(tmp_path / "half", device="cpu")
    assert model.W_E.dtype == torch.float32
    with torch.inference_mode():
        torch.testing.assert_close(model(ids), half.float()(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_with_a_weight_missing_is_refused(checkpoints, tmp_path):
    """transformers would draw the weight at random and go on."""
    folder, _ = checkpoints("llama")
    shutil.copytree(folder, tmp_path / "holed")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, tmp_path / "holed" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadModel, match=r"holed: weights missing: model\.layers\.1\.mlp\.down_proj\.weight"):
        loc_edit.load_model(tmp_path / "holed", device="cpu")
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "holed" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadModel, match="holed"):
        loc_edit.load_model(tmp_path / "holed", device="cpu")


def test_a_tokenizer_that_does_not_fit_is_refused(tokenizer, tmp_path):
    config = GPT2Config(**{**SIZES, "vocab_size": 300}, n_embd=16, n_layer=1, n_head=2)
    save_random(config, tokenizer, tmp_path / "narrow")
    with pytest.raises(
        BadModel, match=r"narrow: expected token ids below .* size 300, but its tokenizer has token 429"
    ):
        loc_edit.load_model(tmp_path / "narrow", device="cpu")


def test_a_configuration_without_an_architecture_is_completed(checkpoints, tmp_path):
    folder, _ = checkpoints("gpt2")
    shutil.copytree(folder, tmp_path / "plain")
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    assert loc_edit.load_model(tmp_path / "plain", device="cpu").cfg.original_architecture == "GPT2LMHeadModel"
    (tmp_path / "plain" / "config.json").write_text("[]")
    with pytest.raises(BadModel, match=r"plain: expected a JSON object in config\.json, got \[\]"):
        loc_edit.load_model(tmp_path / "plain", device="cpu")


PROCESSED = {
    "layer norms are folded": {"fold_ln": True},
    "weights that write to the residual stream are centered": {"center_writing_weights": True},
    "the unembedding is centered": {"center_unembed": True},
}


@pytest.mark.parametrize("reason", PROCESSED)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_processed_weights_are_refused(checkpoints, name, reason):
    """As `HookedTransformer.from_pretrained` and `enable_compatibility_mode` leave them."""
    model = loc_edit.load_model(checkpoints(name)[0], device="cpu")
    loc_edit.load_model(model, device="cpu")
    off = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
    if VERSION >= 4:
        model.enable_compatibility_mode(**{**off, **PROCESSED[reason]})
        with pytest.raises(BadModel, match=r"no_processing=True|without enable_compatibility_mode"):
            loc_edit.load_model(model, device="cpu")
        return
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_and_process_state_dict(weights, **{**off, **PROCESSED[reason]})
    if (name, reason) == ("llama", "weights that write to the residual stream are centered"):
        loc_edit.load_model(model, device="cpu")  # TransformerLens centers nothing under RMS norms
        return
    wanted = rf"{reason}.*load_model\('.*'\), or HookedTransformer\.from_pretrained_no_processing"
    with pytest.raises(BadModel, match=wanted):
        loc_edit.load_model(model, device="cpu")


@pytest.mark.skipif(VERSION >= 4, reason="a bridge says whether its weights are processed")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_centering_is_detected_despite_rounding(checkpoints, dtype):
    model = loc_edit.load_model(checkpoints("gpt2")[0], device="cpu")
    check_unprocessed(model.to(dtype))
    model = loc_edit.load_model(checkpoints("gpt2")[0], device="cpu")
    model.load_and_process_state_dict(model.state_dict(), fold_ln=False, center_unembed=False)
    with pytest.raises(BadModel, match="are centered"):
        check_unprocessed(model.to(dtype))


def test_the_models_of_the_package_and_the_tests_are_unprocessed(shapes):
    check_unprocessed(loc_edit.load_model("builtin", device="cpu"))
    for model in shapes.values():
        check_unprocessed(model)


def test_half_precision_warns_and_full_does_not(checkpoints):
    folder, _ = checkpoints("gpt2")
    with pytest.warns(UserWarning, match="computes in torch.bfloat16") as seen:
        loc_edit.load_model(folder, device="cpu", dtype=torch.bfloat16)
    assert len([one for one in seen if "computes in" in str(one.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loc_edit.load_model(folder, device="cpu")


def test_unknown_names_and_broken_directories_are_refused_by_name(checkpoints, tokenizer, tmp_path):
    with pytest.raises(BadModel, match="model 'no-such-model'"):
        loc_edit.load_model("no-such-model", device="cpu")
    with pytest.raises(BadModel, match="model 'no/such/folder'"):
        loc_edit.load_model("no/such/folder", device="cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadModel, match=r"empty: no config\.json"):
        loc_edit.load_model(tmp_path / "empty", device="cpu")
    folder, _ = checkpoints("gpt2")
    shutil.copytree(folder, tmp_path / "headless")
    (tmp_path / "headless" / "model.safetensors").unlink()
    with pytest.raises(BadModel, match="headless"):
        loc_edit.load_model(tmp_path / "headless", device="cpu")
    shutil.copytree(folder, tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}))
    with pytest.raises(BadModel, match="odd"):
        loc_edit.load_model(tmp_path / "odd", device="cpu")
    shutil.copytree(folder, tmp_path / "garbled")
    (tmp_path / "garbled" / "config.json").write_text("{")
    with pytest.raises(BadModel, match="garbled"):
        loc_edit.load_model(tmp_path / "garbled", device="cpu")
    shutil.copytree(folder, tmp_path / "mute")
    for file in (tmp_path / "mute").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(BadModel, match="mute"):
        loc_edit.load_model(tmp_path / "mute", device="cpu")
    assert issubclass(BadModel, ValueError)


def test_a_model_with_soft_caps_and_windows_can_be_traced(tokenizer, tmp_path):
    save_random(Gemma2Config(**SIZES, **GATED, query_pre_attn_scalar=8), tokenizer, tmp_path / "google")
    model = loc_edit.load_model(tmp_path / "google", device="cpu")
    fact = loc_edit.Fact(template="{} is in", subject="Rome", target_true="Paris")
    prompt = loc_edit.encode(model, fact)
    noise = loc_edit.subject_noise(model, prompt, scale=3.0, samples=2)
    trace = loc_edit.trace(model, prompt, "Paris", noise=noise, window=3)
    assert trace.p_clean != trace.p_corrupted
    assert (trace.p_restored[:, prompt.subject.start :] != trace.p_corrupted).any()


@pytest.mark.parametrize("name", [*CONFIGS, "gemma2", "gemma3", "olmo2"])
def test_families_of_the_study_can_be_edited(tokenizer, tmp_path, name):
    save_random({**CONFIGS, **VARIANTS}[name](), tokenizer, tmp_path)
    check_editable(loc_edit.load_model(tmp_path, device="cpu"))


def test_attention_only_models_are_refused():
    cfg = SimpleNamespace(
        model_name="thin",
        use_normalization_before_and_after=False,
        original_architecture=None,
        attn_only=True,
        num_experts=None,
    )
    with pytest.raises(BadModel, match="thin: each layer must have one MLP"):
        getattr(check_editable, "__wrapped__", check_editable)(SimpleNamespace(cfg=cfg))  # past a checker of types


def test_the_fingerprint_follows_the_weights(checkpoints):
    folder, _ = checkpoints("gpt2")
    model, twin = (loc_edit.load_model(folder, device="cpu") for _ in range(2))
    first = loc_edit.fingerprint(model)
    assert first == loc_edit.fingerprint(model) == loc_edit.fingerprint(twin)
    update = loc_edit.WeightUpdate(0, left=torch.ones(model.cfg.d_mlp, 1), right=torch.full((1, 16), 1e-3))
    with loc_edit.Edit((update,)).applied(model):
        assert loc_edit.fingerprint(model) != first
    assert loc_edit.fingerprint(model) == first
    with torch.no_grad():
        model.blocks[2].attn.W_Q[0, 0, 0] += 1e-3
    changed = loc_edit.fingerprint(model)
    assert changed not in (first, loc_edit.fingerprint(twin))
    assert loc_edit.fingerprint(loc_edit.load_model(checkpoints("llama")[0], device="cpu")) != first


def test_a_copy_elsewhere_has_the_same_fingerprint(checkpoints, tmp_path):
    folder, _ = checkpoints("gpt2")
    shutil.copytree(folder, tmp_path / "renamed")
    one, other = (loc_edit.load_model(path, device="cpu") for path in (folder, tmp_path / "renamed"))
    assert one.cfg.model_name != other.cfg.model_name
    assert loc_edit.fingerprint(one) == loc_edit.fingerprint(other)


def test_the_fingerprint_sees_a_parameter_put_in_the_others_place(checkpoints):
    model = loc_edit.load_model(checkpoints("gpt2")[0], device="cpu")
    weight = model.blocks[1].mlp.W_out
    for _ in range(3 - weight._version):
        with torch.no_grad():
            weight.mul_(1.0)
    first = loc_edit.fingerprint(model)
    other = torch.nn.Parameter(weight.detach() + 1, requires_grad=False)
    for _ in range(weight._version):
        other.mul_(1.0)
    assert other._version == weight._version, "the hard case: as often written as the one it replaces"
    if VERSION >= 4:
        model.blocks[1].mlp.out.original_component.weight = other
    else:
        model.blocks[1].mlp.W_out = other
    assert loc_edit.fingerprint(model) != first


def test_the_fingerprint_sees_writes_past_the_version_counter(checkpoints):
    model = loc_edit.load_model(checkpoints("gpt2")[0], device="cpu")
    first, weight = loc_edit.fingerprint(model), model.blocks[1].mlp.W_out
    before, version = weight.detach().clone(), weight._version
    weight.data[3, 5] += 1e-3
    assert weight._version == version, "the hard case"
    changed = loc_edit.fingerprint(model)
    assert changed != first
    weight.data.copy_(before)
    assert loc_edit.fingerprint(model) == first
    weight.data[[3, 4]] = before[[4, 3]]
    assert loc_edit.fingerprint(model) not in (first, changed), "rows in each other's place"


def test_the_checksum_sees_any_one_byte():
    draws = torch.Generator().manual_seed(0)
    for dtype, size in ((torch.float32, 6000), (torch.bfloat16, 9001), (torch.float32, 7)):
        weight = torch.randn(size, generator=draws).to(dtype)
        first = _checksum(weight)
        for at in torch.randint(size * weight.element_size(), (50,), generator=draws).tolist():
            raw = weight.clone().view(torch.uint8)
            raw[at] ^= 1
            assert _checksum(raw.view(dtype)) != first
        assert _checksum(weight.clone()) == first


def test_the_tokenizers_fingerprint_follows_its_rules_not_its_use(checkpoints):
    from tokenizers import normalizers

    model = loc_edit.load_model(checkpoints("gpt2")[0], device="cpu")
    first, whole = tokenizer_fingerprint(model), loc_edit.fingerprint(model)
    before = model.tokenizer.backend_tokenizer.to_str()
    model.tokenizer(["Rome", "The Golden Bridge"], padding=True, truncation=True, max_length=4)
    assert model.tokenizer.backend_tokenizer.to_str() != before, "there was something not to see"
    assert tokenizer_fingerprint(model) == first
    model.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert tokenizer_fingerprint(model) != first
    assert loc_edit.fingerprint(model) != whole


def test_names_and_labels(tiny):
    tokens = tokenize(tiny, " Paris is")
    assert token_texts(tiny, tokens) == (" Paris", " is")
    with pytest.raises(ValueError, match=r"layers \[2\]: tiny has layers 0 to 1"):
        check_layers(tiny, [0, 2])


def test_logits_at_equals_the_end_of_the_forward_pass(shapes, ids):
    for model in shapes.values():
        final = run_layers(model, ids % 400, stop=model.cfg.n_layers)
        torch.testing.assert_close(logits_at(model, final), model(ids % 400))


def test_the_builtin_model_loads_without_a_network():
    model = loc_edit.load_model("builtin", device="cpu")
    assert not model.cfg.default_prepend_bos
    fact = loc_edit.load_facts("builtin")[0]
    prompt = loc_edit.encode(model, fact)
    assert model(prompt.tokens[None]).isfinite().all()
    check_editable(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_a_model_in_half_precision_are_not_rounded_to_it(make_model, dtype):
    """They are nearer to float32 arithmetic on the same residual stream than the logits of the model itself."""
    half = make_model().to(dtype)
    whole = make_model()
    whole.load_state_dict(half.state_dict())
    residual = torch.randn(2, 5, half.cfg.d_model, generator=torch.Generator().manual_seed(0))
    wanted = whole.unembed(half.ln_final(residual.to(dtype)).float())
    found, own = logits_at(half, residual.to(dtype)), half.unembed(half.ln_final(residual.to(dtype)))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert (own.float() - wanted).abs().max() > 100 * (found - wanted).abs().max()
    assert torch.equal(logits_at(whole, residual), whole.unembed(whole.ln_final(residual)))  # the others as they were


def test_a_model_is_one_for_isinstance_on_every_python(tiny):
    assert isinstance(tiny, Model)
    for name in (*Model.__annotations__, *(name for name in vars(Model) if name.startswith(("W_", "run_", "hooks")))):
        assert inspect.getattr_static(tiny, name, None) is not None, f"from Python 3.12 on, {name} would not be found"
    assert not isinstance(torch.nn.Linear(1, 1), Model)
