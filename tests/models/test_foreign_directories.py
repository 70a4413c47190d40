"""Directories that others wrote: no key of theirs selects code, and what is wrong in them is named."""

import json
import pickle
import shutil

import pytest
from checkpoints import CONFIGS, save_random
from safetensors.torch import load_file, save_file

import loc_edit
from loc_edit.models import checkpoints
from loc_edit.models.adapter import VERSION
from loc_edit.models.checkpoints import hugging_face_config, read_config, shard_names

CODE = {
    "_attn_implementation": "somebody/kernel",
    "attn_implementation": "somebody/kernel:function",
    "_attn_implementation_internal": "somebody/kernel",
    "_experts_implementation": "somebody/kernel",
    "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    "transformers_weights": "../victim/model.safetensors",
    "tokenizer_class": "Evil",
    "_name_or_path": "/etc",
    "trust_remote_code": True,
}


@pytest.fixture
def directory(tokenizer, tmp_path):
    """name -> a directory with random weights, and a function that changes keys of its config.json."""

    def make(name="gpt2", **keys):
        folder = tmp_path / name
        save_random(CONFIGS[name](), tokenizer, folder)
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
        return folder

    return make


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox"])
def test_keys_that_select_code_reach_no_loader(directory, name, monkeypatch):
    folder = directory(name, **CODE)
    config = read_config(folder)
    assert not set(CODE) & set(config)
    assert config["vocab_size"] == 460, "the keys that describe the model are kept"
    given = []
    real = checkpoints.hugging_face_config
    monkeypatch.setattr(loc_edit.models.loading, "hugging_face_config", lambda *a: given.append(real(*a)) or given[0])
    assert loc_edit.load_model(folder, device="cpu").cfg.n_layers == 3
    assert not any("somebody" in str(value) or "evil" in str(value) for value in vars(given[0]).values())


@pytest.mark.parametrize(
    ("name", "keys", "words"),
    [
        ("gpt2", {"n_head": 0}, "n_head to be an integer of at least 1, got 0"),
        ("gpt2", {"n_layer": "3"}, "n_layer to be an integer of at least 1, got '3'"),
        ("gpt2", {"n_layer": 0}, "n_layer"),
        ("gpt2", {"activation_function": "foo"}, "foo"),
        ("llama", {"hidden_act": ["gelu"]}, "hidden_act"),
        ("llama", {"num_key_value_heads": 0}, "num_key_value_heads"),
        ("gpt2", {"architectures": [5]}, r"expected architectures .*, got \[5\]"),
        ("gpt2", {"architectures": 5}, "architectures"),
        ("gpt2", {"architectures": {"a": 1}}, "architectures"),
        ("gpt2", {"model_type": 5}, "model_type 5"),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, "expected plain weights"),
        ("llama", {"rms_norm_eps": "x"}, "rms_norm_eps"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(directory, name, keys, words):
    with pytest.raises(loc_edit.BadModel, match=words) as caught:
        loc_edit.load_model(directory(name, **keys), device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weight: weight.fill_(float("nan")), r"blocks\.1\.mlp\.W_out: expected numbers"),
        (lambda weight: weight[:-1], r"h\.1\.mlp\.c_proj\.weight: expected shape \[64, 16\], got \[63, 16\]"),
    ],
)
@pytest.mark.skipif(VERSION >= 4, reason="TransformerLens 4 says so in other words")
def test_a_wrong_tensor_is_named(directory, change, words):
    folder = directory()
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("h.1.mlp.c_proj.weight"))
    tensors[name] = change(tensors[name].clone()).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(loc_edit.BadModel, match=words):
        loc_edit.load_model(folder, device="cpu")


def test_a_pickle_is_not_opened(directory, tmp_path):
    folder = directory()
    (folder / "model.safetensors").unlink()

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "opened"), "w"))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(loc_edit.BadModel, match="no safetensors"):
        loc_edit.load_model(folder, device="cpu")
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("name", ["../victim/model.safetensors", "/victim/model.safetensors", "NUL", "a\0b", 5, ""])
def test_a_shard_s_name_stays_inside(directory, tmp_path, name):
    folder = directory()
    (tmp_path / "victim").mkdir()
    victim = tmp_path / "victim" / "model.safetensors"
    shutil.move(folder / "model.safetensors", victim)
    victim.chmod(0o444)
    before = victim.read_bytes(), victim.stat().st_mode
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(victim), name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    expected = "expected a name inside" if isinstance(name, str) else "expected weight_map to be"
    with pytest.raises(loc_edit.BadModel, match=expected):
        loc_edit.load_model(folder, device="cpu")
    with pytest.raises(loc_edit.BadModel, match=expected):
        loc_edit.export(loc_edit.Edit((loc_edit.WeightUpdate(1),)), folder, tmp_path / "out")
    assert (victim.read_bytes(), victim.stat().st_mode) == before
    assert not (tmp_path / "out").exists()


def test_the_hub_s_cache_has_links_to_the_files(directory, tmp_path):
    folder = directory()
    blob = tmp_path / "blob"
    shutil.move(folder / "model.safetensors", blob)
    (folder / "model-1.safetensors").symlink_to(blob)
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(blob), "model-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert shard_names(folder) == ["model-1.safetensors"]
    assert loc_edit.load_model(folder, device="cpu").cfg.n_layers == 3


@pytest.mark.parametrize(
    "header", [b'{"a": 1}', b"[]", b'{"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 9]}}']
)
def test_export_refuses_a_header_that_lies(directory, tmp_path, tiny, header):
    folder = directory()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(loc_edit.BadModel, match="cannot be read"):
        loc_edit.export(loc_edit.Edit((loc_edit.WeightUpdate(1),)), folder, tmp_path / "out", model=tiny)


def test_old_names_of_keys_are_understood(directory):
    folder = directory("llama")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("rope_parameters")
    path.write_text(json.dumps({**config, "rope_theta": 500.0}))
    assert hugging_face_config(folder, read_config(folder)).rope_parameters["rope_theta"] == 500.0
