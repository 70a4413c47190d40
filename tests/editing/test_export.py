"""Edited models as Hugging Face directories: the same logits, nothing else touched, refusals."""

import json
import os
import shutil

import pytest
import torch
from checkpoints import CONFIGS, VARIANTS, save_random
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import loc_edit
from loc_edit import BadModel, EditMismatch
from loc_edit.cli.main import main
from loc_edit.editing import export as exporting
from loc_edit.models.adapter import VERSION
from loc_edit.models.checkpoints import hf_state_dict
from loc_edit.models.model import W_out, has_output_bias

WEIGHTS = {
    "gpt2": "transformer.h.{}.mlp.c_proj.weight",
    "gptj": "transformer.h.{}.mlp.fc_out.weight",
    "neox": "gpt_neox.layers.{}.mlp.dense_4h_to_h.weight",
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "olmo2"),
        "model.layers.{}.mlp.down_proj.weight",
    ),
}


@pytest.fixture
def ids():
    return torch.randint(1, 460, (2, 20), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def sources(tokenizer, tmp_path_factory):
    """name, shard size -> a checkpoint's directory, made when first asked for."""
    made = {}

    def get(name, shard="1GB"):
        if (name, shard) not in made:
            folder = tmp_path_factory.mktemp(name)
            save_random({**CONFIGS, **VARIANTS}[name](), tokenizer, folder).save_pretrained(
                folder, max_shard_size=shard
            )
            for whole in folder.glob("model.safetensors") if shard != "1GB" else ():
                whole.unlink()  # of the first `save_pretrained`
            made[name, shard] = folder
        return made[name, shard]

    return get


def make_edit(model, layers=(1,), seed=0, bias=False):
    """A change of the weights that changes the logits, as if made for `model`."""
    draws = torch.Generator().manual_seed(seed)
    m, d = model.cfg.d_mlp, model.cfg.d_model
    updates = [
        loc_edit.WeightUpdate(
            layer,
            left=torch.randn(m, 1, generator=draws),
            right=torch.randn(1, d, generator=draws),
            bias=torch.randn(d, generator=draws) if bias else None,
        )
        for layer in layers
    ]
    return loc_edit.Edit(tuple(updates), {"method": "given", "model": loc_edit.fingerprint(model)})


def logits(folder, ids):
    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")(ids).logits


def tensors(folder):
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("shard", ["1GB", "8KB"])
def test_logits_are_the_edited_models_and_nothing_else_is_touched(sources, ids, tmp_path, name, shard):
    source, out = sources(name, shard), tmp_path / "new" / "edited"
    assert (len(list(source.glob("*.safetensors"))) > 1) == (shard == "8KB")
    model = loc_edit.load_model(source, device="cpu")
    bias = has_output_bias(model)
    edit = make_edit(model, (0, 2), bias=bias)
    assert loc_edit.export(edit, source, out) == out
    with torch.inference_mode(), edit.applied(model):
        wanted = model(ids)
    got = logits(out, ids)
    assert (got - logits(source, ids)).abs().max() > 0.1, "there was something to do"
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())
    before, after = tensors(source), tensors(out)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {WEIGHTS[name].format(layer) for layer in (0, 2)}
    assert changed == expected | ({one.replace("weight", "bias") for one in expected} if bias else set())
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            assert (out / path.name).read_bytes() == path.read_bytes()
        assert (out / path.name).stat().st_size == path.stat().st_size
    assert {p.name for p in out.iterdir()} == {p.name for p in source.iterdir()} | {"loc_edit.json"}
    assert [p.name for p in out.parent.iterdir()] == ["edited"], "nothing half-written is left"
    text = "The mother tongue of Anna"
    assert AutoTokenizer.from_pretrained(out)(text).input_ids == AutoTokenizer.from_pretrained(source)(text).input_ids
    again = loc_edit.load_model(out, device="cpu")
    for layer in (0, 2):
        with edit.applied(model):
            assert torch.equal(W_out(again, layer), W_out(model, layer))


def test_hugging_face_names_fit_a_hugging_face_model(sources, ids):
    for name in WEIGHTS:
        model = loc_edit.load_model(sources(name), device="cpu")
        edit, bias = make_edit(model, bias=has_output_bias(model)), has_output_bias(model)
        with edit.applied(model), torch.inference_mode():
            found, wanted = hf_state_dict(model, [1], [1] if bias else []), model(ids)
        assert WEIGHTS[name].format(1) in found
        assert len(found) == 1 + bias
        hf_model = AutoModelForCausalLM.from_pretrained(sources(name), attn_implementation="eager")
        assert not hf_model.load_state_dict(found, strict=False).unexpected_keys
        with torch.inference_mode():
            torch.testing.assert_close(hf_model(ids).logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(VERSION >= 4, reason="TransformerLens 4 says so in other words")
def test_hugging_face_names_are_refused_where_there_are_none(sources, tiny):
    with pytest.raises(BadModel, match="tiny: Hugging Face names are known for GPT2LMHeadModel"):
        hf_state_dict(tiny, [0])
    llama = loc_edit.load_model(sources("llama"), device="cpu")
    with pytest.raises(BadModel, match="its checkpoint has no MLP output bias"):
        hf_state_dict(llama, [0], [0])


def test_several_edits_are_applied_in_order(sources, ids, tmp_path):
    """Each made for the plain model, or for the model with the edits before."""
    source = sources("gpt2")
    model = loc_edit.load_model(source, device="cpu")
    first, second = make_edit(model), make_edit(model, (1, 2), seed=1)
    with first.applied(model):
        third = make_edit(model, (0,), seed=2)
    for number, edits in enumerate(([first, second], [first, third], [first + second])):
        loc_edit.export(edits, source, tmp_path / str(number))
        with first.applied(model), edits[-1].applied(model) if len(edits) > 1 else second.applied(model):
            wanted = model(ids)
        torch.testing.assert_close(logits(tmp_path / str(number), ids), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(EditMismatch, match=r"edit 1 of 1 was made for model .*, and the checkpoint is"):
        loc_edit.export(third, source, tmp_path / "alone")
    assert not (tmp_path / "alone").exists()


def test_an_edit_of_another_model_is_refused(sources, tmp_path):
    edit = make_edit(loc_edit.load_model(sources("gpt2"), device="cpu"))
    with pytest.raises(EditMismatch):
        loc_edit.export(edit, sources("llama"), tmp_path / "out")
    stranger = loc_edit.Edit(edit.updates, {"model": "0123456789abcdef"})
    with pytest.raises(EditMismatch, match="made for model 0123456789abcdef"):
        loc_edit.export(stranger, sources("gpt2"), tmp_path / "out")
    with pytest.raises(EditMismatch, match="made for model 0123456789abcdef"):
        loc_edit.export(stranger + edit, sources("gpt2"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_edit_made_with_bos_fits_the_checkpoint(sources, ids, tmp_path):
    model = loc_edit.load_model(sources("gpt2"), device="cpu", prepend_bos=True)
    loc_edit.export(make_edit(model), sources("gpt2"), tmp_path / "out")
    assert (tmp_path / "out").is_dir()


def test_a_model_of_another_dtype_can_be_given(sources, tmp_path):
    source = sources("llama")
    with pytest.warns(UserWarning, match="bfloat16"):
        model = loc_edit.load_model(source, device="cpu", dtype=torch.bfloat16)
    edit = make_edit(model)
    with pytest.raises(EditMismatch, match="loaded with another dtype"):
        loc_edit.export(edit, source, tmp_path / "out")
    loc_edit.export(edit, source, tmp_path / "out", model=model)
    name = WEIGHTS["llama"].format(1)
    torch.testing.assert_close(tensors(tmp_path / "out")[name], tensors(source)[name] + edit.delta(1).T)
    with edit.applied(model), pytest.raises(EditMismatch, match=r"got a W_out that is not the checkpoint's"):
        loc_edit.export(make_edit(model), source, tmp_path / "twice", model=model)


def test_half_precision_checkpoints_keep_their_dtype_and_say_what_is_lost(sources, tokenizer, tmp_path, caplog):
    source = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(sources("gpt2"), dtype=torch.bfloat16).save_pretrained(source)
    tokenizer.save_pretrained(source)
    model = loc_edit.load_model(source, device="cpu")
    edit = make_edit(model)
    loc_edit.export(edit, source, tmp_path / "out")
    name = WEIGHTS["gpt2"].format(1)
    before, after = tensors(source)[name], tensors(tmp_path / "out")[name]
    assert after.dtype == torch.bfloat16
    torch.testing.assert_close(after, (before.float() + edit.delta(1)).bfloat16(), rtol=0, atol=0)
    assert f"{name} is stored in torch.bfloat16, which rounds: the change is off by 0." in caplog.text


def test_checkpoints_as_the_hub_has_them(sources, ids, tmp_path, caplog):
    """GPT-2's names lack their first part; other formats lie beside; files of the cache are links, and read-only."""
    from safetensors.torch import save_file

    plain, source = sources("gpt2"), tmp_path / "hub"
    source.mkdir()
    bare = {name.removeprefix("transformer."): value for name, value in tensors(plain).items()}
    save_file(bare, tmp_path / "blob", metadata={"format": "pt"})
    (tmp_path / "blob").chmod(0o444)
    (source / "model.safetensors").symlink_to(tmp_path / "blob")
    for path in plain.glob("*.json"):
        (source / path.name).write_bytes(path.read_bytes())
    (source / "pytorch_model.bin").write_bytes(b"stale")
    (source / "consolidated.safetensors").write_bytes(b"stale")
    blob = (tmp_path / "blob").read_bytes()
    model = loc_edit.load_model(source, device="cpu")
    edit = make_edit(model)
    loc_edit.export(edit, source, tmp_path / "out")
    with edit.applied(model):
        torch.testing.assert_close(logits(tmp_path / "out", ids), model(ids), rtol=1e-4, atol=1e-4)
    assert (tmp_path / "blob").read_bytes() == blob
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()
    assert "not copied, as they would stay unedited: consolidated.safetensors, pytorch_model.bin" in caplog.text


@pytest.mark.skipif(VERSION >= 4, reason="TransformerLens 4 says so in other words")
def test_impossible_exports_are_refused(sources, tmp_path):
    source = sources("gpt2")
    edit = make_edit(loc_edit.load_model(source, device="cpu"))
    with pytest.raises(FileExistsError, match="exists already"):
        loc_edit.export(edit, source, tmp_path)
    with pytest.raises(ValueError, match="is inside the checkpoint"):
        loc_edit.export(edit, source, source / "deep" / "edited")
    with pytest.raises(BadModel, match="nowhere does not exist"):
        loc_edit.export(edit, tmp_path / "nowhere", tmp_path / "out")
    for nothing in ([], loc_edit.Edit(())):
        with pytest.raises(ValueError, match="expected an edit that changes something, got none"):
            loc_edit.export(nothing, source, tmp_path / "out")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BadModel, match=r"pickled: it has no safetensors; write them first: AutoModel"):
        loc_edit.export(edit, tmp_path / "pickled", tmp_path / "out")
    (tmp_path / "pickled" / "model.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0{no}}")
    with pytest.raises(BadModel, match=r"pickled: model\.safetensors cannot be read"):
        loc_edit.export(edit, tmp_path / "pickled", tmp_path / "out")
    llama = loc_edit.load_model(sources("llama"), device="cpu")
    with pytest.raises(EditMismatch, match="it changes a bias, and the checkpoint has none"):
        loc_edit.export(make_edit(llama, bias=True), sources("llama"), tmp_path / "out")
    given = loc_edit.load_model(source, device="cpu")
    given.cfg.original_architecture = "GPTJForCausalLM"
    with pytest.raises(BadModel, match=r"it has no tensor transformer\.h\.1\.mlp\.fc_out\.weight"):
        loc_edit.export(make_edit(given), source, tmp_path / "out", model=given)
    assert not (tmp_path / "out").exists()


def test_an_index_that_names_files_elsewhere_cannot_have_them_written(sources, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(sources("gpt2", "8KB"), source)
    model = loc_edit.load_model(source, device="cpu")
    index = source / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    name = WEIGHTS["gpt2"].format(1)
    outside = tmp_path / "outside.safetensors"
    (source / table["weight_map"][name]).rename(outside)
    own = {tensor for tensor, file in table["weight_map"].items() if file == table["weight_map"][name]}
    table["weight_map"] |= dict.fromkeys(own, "../outside.safetensors")
    index.write_text(json.dumps(table))
    before = outside.read_bytes()
    with pytest.raises(ValueError, match=r"file name '\.\./outside\.safetensors': expected a name inside"):
        loc_edit.export(make_edit(model), source, tmp_path / "out", model=model)
    assert outside.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"source", "outside.safetensors"}


def test_a_stop_half_way_leaves_nothing(sources, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    source = sources("gpt2")
    edit = make_edit(loc_edit.load_model(source, device="cpu"))
    monkeypatch.setattr(exporting, "_patch", stop)
    with pytest.raises(KeyboardInterrupt):
        loc_edit.export(edit, source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_record_says_what_was_edited(sources, tmp_path):
    source = sources("gptj")
    edit = make_edit(loc_edit.load_model(source, device="cpu"))
    record = json.loads((loc_edit.export(edit, source, tmp_path / "out") / "loc_edit.json").read_text())
    assert record == {
        "model": edit.about["model"],
        "tensors": ["transformer.h.1.mlp.fc_out.weight"],
        "edits": [dict(edit.about)],
    }
    again = make_edit(loc_edit.load_model(tmp_path / "out", device="cpu"), seed=1)
    record = json.loads((loc_edit.export(again, tmp_path / "out", tmp_path / "twice") / "loc_edit.json").read_text())
    assert record["edits"] == [dict(edit.about), dict(again.about)]
    (tmp_path / "twice" / "loc_edit.json").write_text("[]")
    with pytest.raises(BadModel, match=r"twice: loc_edit\.json is no record of edits"):
        loc_edit.export(again, tmp_path / "twice", tmp_path / "thrice")


def test_the_command_line(sources, ids, tmp_path, capsys):
    source = sources("llama")
    model = loc_edit.load_model(source, device="cpu")
    edits = [make_edit(model, seed=seed) for seed in (0, 1)]
    files = [str(tmp_path / f"{i}.safetensors") for i in range(2)]
    for edit, file in zip(edits, files, strict=True):
        edit.save(file)
    command = ["export", *files, "--model", str(source), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert f"written: {tmp_path / 'out'}" in capsys.readouterr().out.replace("\n", "")
    with edits[0].applied(model), edits[1].applied(model):
        torch.testing.assert_close(logits(tmp_path / "out", ids), model(ids), rtol=1e-4, atol=1e-4)
    assert main(command) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["export", "--model", str(source), "--out", str(tmp_path / "other")]) == 1
    assert "expected at least one file" in capsys.readouterr().err
    assert main(["export", os.devnull, "--model", str(source), "--out", str(tmp_path / "other")]) == 1
    assert "expected a saved edit, got no readable safetensors file" in capsys.readouterr().err
