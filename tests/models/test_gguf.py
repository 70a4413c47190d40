"""GGUF files: what is read equals the model that was written; what cannot be rebuilt right is refused, at no cost."""

import resource
import shutil
import struct
from contextlib import suppress

import gguf
import numpy as np
import pytest
import torch
from gguf_files import (
    CONFIGS,
    bpe_fields,
    logits,
    random_hf_model,
    sentencepiece_fields,
    some_tokens,
    write_gguf,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

import loc_edit
from loc_edit.models.checks import BadModel
from loc_edit.models.gguf import SPLITS
from loc_edit.models.gguf_header import read_header
from loc_edit.models.identity import fingerprint

TEXT = "The Eiffel Tower is in Paris: 1887."
UNREAD_BY_TRANSFORMERS = {
    "gpt2": "it takes 1024 positions",
    "gpt2, untied": "likewise",
    "qwen3": "it takes 128 per head",
}


@pytest.fixture(scope="module")
def llama_file(tokenizer, tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("llama") / "tiny.gguf", random_hf_model("llama"), tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_gives_the_logits_of_the_model_that_was_written(name, tokenizer, tmp_path):
    hf_model, tokens = random_hf_model(name), some_tokens()
    path = write_gguf(tmp_path / "tiny.gguf", hf_model, tokenizer)
    model = loc_edit.load_model(path)
    assert model.cfg.model_name == "tiny"
    with torch.inference_mode():
        ours = model(tokens).log_softmax(-1)
    torch.testing.assert_close(ours, logits(hf_model, tokens), atol=1e-4, rtol=0)
    assert logits(hf_model, tokens).std() > 0.1, "a model whose logits are all alike shows nothing"
    if name not in UNREAD_BY_TRANSFORMERS:
        own_reading = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
        torch.testing.assert_close(ours, logits(own_reading, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16])
def test_a_quantized_file_gives_the_logits_of_its_dequantized_weights(name, kind, tokenizer, tmp_path):
    hf_model, tokens = random_hf_model(name), some_tokens()
    path = write_gguf(tmp_path / "tiny.gguf", hf_model, tokenizer, quantized=kind)
    exact = logits(hf_model, tokens)
    with torch.no_grad():
        for parameter, weight in hf_model.named_parameters():
            if weight.ndim == 2:
                across = weight.T if name == "gpt2" and ".h." in parameter else weight
                rounded = gguf.dequantize(gguf.quantize(across.contiguous().numpy(), kind), kind)
                across.copy_(torch.from_numpy(rounded))
    rounded_logits = logits(hf_model, tokens)
    assert (rounded_logits - exact).abs().max() > 1e-4
    model = loc_edit.load_model(path)
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens).log_softmax(-1), rounded_logits, atol=2e-4, rtol=0)


def test_dtype_prepend_bos_and_name_hold_for_files(llama_file):
    with pytest.warns(UserWarning, match="bfloat16"):
        model = loc_edit.load_model(llama_file, dtype=torch.bfloat16, prepend_bos=True)
    assert model.W_E.dtype == torch.bfloat16
    assert model.cfg.default_prepend_bos
    assert not loc_edit.load_model(llama_file).cfg.default_prepend_bos


def test_a_file_is_converted_once_for_each_content(llama_file, tokenizer, tmp_path, monkeypatch):
    from loc_edit.models import gguf as reading

    before = fingerprint(loc_edit.load_model(llama_file))
    monkeypatch.setattr(reading, "convert", lambda *_: pytest.fail("converted twice"))
    copy = tmp_path / "tiny.gguf"
    shutil.copy(llama_file, copy)
    assert fingerprint(loc_edit.load_model(copy)) == before
    monkeypatch.undo()
    write_gguf(copy, random_hf_model("llama", seed=1), tokenizer)
    assert fingerprint(loc_edit.load_model(copy)) != before


@pytest.mark.parametrize("bos", [True, False, None])
def test_a_text_begins_as_the_file_says(bos, tokenizer, tmp_path):
    fields = {} if bos is None else {"tokenizer.ggml.add_bos_token": bos}
    path = write_gguf(tmp_path / "tiny.gguf", random_hf_model("llama"), tokenizer, fields=fields)
    model = loc_edit.load_model(path)
    assert model.cfg.default_prepend_bos == bool(bos)  # a byte-level vocabulary that says nothing begins without
    tokens = loc_edit.encode(model, loc_edit.load_facts("builtin")[0]).tokens
    assert (tokens[0].item() == 0) == bool(bos)


def test_gemma_begins_with_bos_and_keeps_spaces_and_accents(tokenizer, tmp_path):
    model = loc_edit.load_model(write_gguf(tmp_path / "tiny.gguf", random_hf_model("gemma3"), tokenizer))
    assert model.cfg.default_prepend_bos
    ids = model.tokenizer(TEXT)["input_ids"]
    assert ids[0] == 2
    assert model.tokenizer.decode(ids[1:]) == TEXT


@pytest.mark.parametrize("rule", SPLITS)
def test_every_pre_tokenizer_splits_a_text_without_loss(rule, tokenizer, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", random_hf_model("llama"), tokenizer, fields={"tokenizer.ggml.pre": rule})
    fast = loc_edit.load_model(path).tokenizer
    for text in (TEXT, "it's 12345  spaces\n\nand ünïcode", " leading"):
        assert fast.decode(fast(text, add_special_tokens=False)["input_ids"]) == text


def test_digits_are_split_as_the_pre_tokenizer_says(tokenizer, tmp_path):
    """With merges of digits in the vocabulary, the rules differ."""
    fields = bpe_fields(tokenizer)
    spare = [i for i, token in enumerate(fields["tokenizer.ggml.tokens"]) if token.startswith("[PAD")]
    for i, token in zip(spare, ("12", "34", "1234"), strict=False):
        fields["tokenizer.ggml.tokens"][i], fields["tokenizer.ggml.token_type"][i] = token, 1
    fields["tokenizer.ggml.merges"] += ["1 2", "3 4", "12 34"]
    lengths = {}
    for rule in ("gpt-2", "smollm", "llama-bpe", "qwen2"):
        path = tmp_path / f"{rule}.gguf"
        write_gguf(path, random_hf_model("llama"), tokenizer, fields={**fields, "tokenizer.ggml.pre": rule})
        lengths[rule] = len(loc_edit.load_model(path).tokenizer("1234", add_special_tokens=False)["input_ids"])
    assert lengths == {"gpt-2": 1, "smollm": 4, "llama-bpe": 3, "qwen2": 4}  # llama-bpe: 123 4, and 12 3 4


def test_the_tokenizer_equals_the_one_that_was_written(llama_file, tokenizer):
    fast = loc_edit.load_model(llama_file).tokenizer
    for text in (TEXT, "Rome is the capital of Italy", "  two"):
        assert fast(text)["input_ids"] == tokenizer(text)["input_ids"]


REFUSED = {
    "Llama 3.1's positions": ({"tensors": {"rope_freqs.weight": np.ones(8, np.float32)}}, "rope_freqs"),
    "scaled positions": ({"untrue": {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}}, "rope.scaling"),
    "unknown pre-tokenizer": ({"fields": {"tokenizer.ggml.pre": "martian"}}, "'martian' is unknown"),
    "no pre-tokenizer": ({"without": ["tokenizer.ggml.pre"]}, "'none' is unknown"),
    "unknown tokenizer": ({"fields": {"tokenizer.ggml.model": "rwkv"}}, "'rwkv'"),
    "no vocabulary": ({"without": ["tokenizer.ggml.tokens"]}, "no vocabulary"),
    "missing tensor": ({"without": ["blk.1.ffn_down.weight"]}, "blk.1.ffn_down.weight .* is missing"),
    "tensor without a place": ({"tensors": {"blk.0.attn_q.bias": np.ones(64, np.float32)}}, "attn_q.bias has no place"),
    "split file": ({"fields": {"split.count": 2}}, "parts of a split model"),
    "adapter": ({"fields": {"general.type": "adapter"}}, "'adapter'"),
    "experts": ({"untrue": {"expert_count": 8}}, "llama.expert_count"),
    "integers": ({"tensors": {"more": np.ones(8, np.int32)}}, "I32, which the gguf package cannot dequantize"),
    "too many layers": ({"untrue": {"block_count": 10**9}}, "claims 1000000000 layers"),
    "one layer more": ({"untrue": {"block_count": 3}}, "blk.2.* is missing"),
    "a layer left out": ({"untrue": {"block_count": 1}}, "has no place"),
    "absurd width": ({"untrue": {"feed_forward_length": 2**31}}, "ffn_.* has shape"),
    "absurd embedding": ({"untrue": {"embedding_length": 2**31}}, "has shape"),
    "absurd heads": ({"untrue": {"attention.head_count": 2**31}}, "tiny.gguf"),
    "no heads": ({"untrue": {"attention.head_count": 0}}, "tiny.gguf"),
    "words for numbers": ({"untrue": {"block_count": "two"}}, "tiny.gguf"),
    "no BOS to begin with": (
        {"fields": {"tokenizer.ggml.add_bos_token": True}, "without": ["tokenizer.ggml.bos_token_id"]},
        "no token is named as BOS",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_rebuilt_right_is_refused_with_file_and_reason(what, tokenizer, tmp_path):
    options, reason = REFUSED[what]
    path = write_gguf(tmp_path / "tiny.gguf", random_hf_model("llama"), tokenizer, **options)
    with pytest.raises(BadModel, match=reason) as error:
        loc_edit.load_model(path)
    assert str(path) in str(error.value)


def test_one_part_of_a_split_model_is_known_by_its_name(llama_file, tmp_path):
    path = tmp_path / "tiny-00001-of-00002.gguf"
    shutil.copy(llama_file, path)
    with pytest.raises(BadModel, match="llama-gguf-split --merge"):
        loc_edit.load_model(path)


def test_unknown_types_are_refused_by_number(llama_file, tmp_path):
    path, header = tmp_path / "tiny.gguf", bytearray(llama_file.read_bytes())
    name = b"blk.0.ffn_down.weight"
    at = header.index(name) + len(name) + 4 + 16
    assert struct.unpack_from("<I", header, at) == (0,)
    struct.pack_into("<I", header, at, 250)
    path.write_bytes(header)
    with pytest.raises(BadModel, match="of type 250"):
        loc_edit.load_model(path)


@pytest.mark.parametrize("length", [0, 3, 4, 23, 100, 2000, 0.5, 0.99])
def test_a_truncated_file_is_refused(length, llama_file, tmp_path):
    data = llama_file.read_bytes()
    path = tmp_path / "tiny.gguf"
    path.write_bytes(data[: int(length * len(data)) if isinstance(length, float) else length])
    with pytest.raises(BadModel, match=r"truncated|GGUF|fit into a file"):
        loc_edit.load_model(path)


def test_other_versions_and_byte_orders_are_refused(llama_file, tmp_path):
    path, data = tmp_path / "tiny.gguf", llama_file.read_bytes()
    for version, word in ((1, "got 1"), (3 << 24, "big-endian")):
        path.write_bytes(data[:4] + struct.pack("<I", version) + data[8:])
        with pytest.raises(BadModel, match=word):
            loc_edit.load_model(path)


HOSTILE = {
    "fields without end": struct.pack("<IQQ", 3, 0, 2**63),
    "tensors without end": struct.pack("<IQQ", 3, 2**63, 0),
    "a name without end": struct.pack("<IQQQ", 3, 0, 1, 2**62) + b"x" * 40,
    "a list without end": struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 4, 2**61) + b"x" * 40,
    "texts without end": struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 8, 2**61) + b"x" * 40,
    "lists in lists": struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 9, 2**20) + b"x" * 40,
    "many dimensions": struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"a", 2**31) + b"x" * 40,
    "a tensor without end": struct.pack("<IQQQ1sIQQIQ", 3, 1, 0, 1, b"a", 2, 2**40, 2**40, 0, 0) + b"x" * 40,
    "an offset far away": struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"a", 1, 8, 0, 2**62) + b"x" * 40,
    "no numbers": struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"a", 1, 0, 0, 0) + b"x" * 40,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_sizes_that_lie_cost_nothing(what, tmp_path):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(b"GGUF" + HOSTILE[what])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadModel, match=r"hostile\.gguf"):
        loc_edit.load_model(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_a_damaged_header_never_ends_in_another_error(llama_file, tmp_path, monkeypatch):
    """Every damaged header is refused, or is still a header."""
    monkeypatch.setenv("LOC_EDIT_CACHE", str(tmp_path / "cache"))
    path, data = tmp_path / "tiny.gguf", llama_file.read_bytes()
    ends = len(data) - sum(4 * int(np.prod(shape)) for shape in read_header(llama_file).shapes.values())
    draws, refused = np.random.default_rng(0), 0
    for _ in range(60):
        damaged = bytearray(data)
        for at in draws.integers(4, ends, draws.integers(1, 4)):
            damaged[at] = draws.integers(256)
        path.write_bytes(damaged)
        with suppress(BadModel):
            read_header(path)
            refused -= 1
        refused += 1
    assert 0 < refused < 60


def test_a_failed_conversion_leaves_nothing_behind(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("LOC_EDIT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny.gguf"
    write_gguf(path, random_hf_model("llama"), tokenizer, without=["output_norm.weight"])
    with pytest.raises(BadModel):
        loc_edit.load_model(path)
    assert not [f for f in (tmp_path / "cache" / "models").iterdir() if f.is_dir()]
    write_gguf(path, random_hf_model("llama"), tokenizer)
    loc_edit.load_model(path)


def test_the_converted_directory_is_a_hugging_face_one(llama_file):
    from loc_edit.models.catalog import gguf_directory

    folder = gguf_directory(llama_file)
    tokens = some_tokens()
    hf_model = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(hf_model, tokens), logits(random_hf_model("llama"), tokens))
    assert AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]


def test_a_sentencepiece_vocabulary_puts_a_space_before_a_text_and_bos_before_it(tokenizer, tmp_path):
    fields = {**sentencepiece_fields(), "tokenizer.ggml.add_space_prefix": True}
    del fields["tokenizer.ggml.add_bos_token"]  # SentencePiece vocabularies begin with BOS unless they say no
    path = tmp_path / "tiny.gguf"
    write_gguf(path, random_hf_model("llama"), tokenizer, fields=fields, without=["tokenizer.ggml.merges"])
    fast = loc_edit.load_model(path).tokenizer
    tokens = fast("the tin").tokens()
    assert tokens[0] == "<bos>"
    assert tokens[1].startswith("▁t")
    assert fast.decode(fast(TEXT)["input_ids"], skip_special_tokens=True) == TEXT
    fields["tokenizer.ggml.add_space_prefix"] = False
    write_gguf(path, random_hf_model("llama"), tokenizer, fields=fields, without=["tokenizer.ggml.merges"])
    with pytest.raises(BadModel, match="add_space_prefix = False"):
        loc_edit.load_model(path)


def test_an_edited_file_is_exported_as_a_directory(llama_file, tmp_path):
    model = loc_edit.load_model(llama_file)
    update = loc_edit.WeightUpdate(1, left=torch.randn(96, 1), right=torch.randn(1, 64))
    edit = loc_edit.Edit((update,), {"model": fingerprint(model)})
    out = loc_edit.export(edit, llama_file, tmp_path / "edited")
    tokens = some_tokens()
    with edit.applied(model), torch.inference_mode():
        edited = model(tokens).log_softmax(-1)
    assert (edited - logits(random_hf_model("llama"), tokens)).abs().max() > 0.01
    exported = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(exported, tokens), edited, atol=1e-4, rtol=0)
