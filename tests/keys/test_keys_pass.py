"""The pass over a corpus: its sums, their precision and memory; and stopping it changes nothing."""

import os
import signal

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import loc_edit
from loc_edit import BadKeyStats, KeyStats, events
from loc_edit.keys import compute, disk, moments, streaming
from loc_edit.keys.streaming import Sums, start_pass, stretch
from loc_edit.keys.tokens import write_tokens

WORDS = ("The", "Golden", "Bridge", "is", "located", "in the city", "of", "Paris", "and nobody", "crossed", "old river")


def random_texts(n=300, seed=0):
    """Texts of 1 to 30 words, and one that is longer than a context."""
    draws = np.random.default_rng(seed)
    texts = [" ".join(draws.choice(WORDS, draws.integers(1, 30))) for _ in range(n)]
    return [*texts, " ".join(WORDS * 12)]


@pytest.fixture(scope="module")
def dense(shapes):
    """shape -> E[k k^T] in float64 by layer, of all keys of a layer in one matrix, and how many there are."""
    kept = {}

    def moments_of(shape, texts, limit):
        if shape not in kept:
            model, keys, left = shapes[shape], {0: [], 1: [], 2: []}, limit
            for text in texts:
                ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
                ids = ([model.tokenizer.bos_token_id] if model.cfg.default_prepend_bos else []) + ids
                ids = ids[:left]
                left -= len(ids)
                for start in range(0, len(ids), model.cfg.n_ctx):
                    row = torch.tensor(ids[start : start + model.cfg.n_ctx])[None]
                    cache = model.run_with_cache(row)[1]
                    for layer, keys_of_rows in keys.items():
                        keys_of_rows.append(cache[f"blocks.{layer}.mlp.hook_post"][0].double())
            joined = {layer: torch.cat(keys_of_rows) for layer, keys_of_rows in keys.items()}
            kept[shape] = {layer: all_keys.T @ all_keys / len(all_keys) for layer, all_keys in joined.items()}
            assert all(len(all_keys) == limit for all_keys in joined.values())
        return kept[shape]

    return moments_of


@pytest.mark.parametrize("shape", ["gpt2_deep", "llama", "gptj"])
@pytest.mark.parametrize(("batch", "dtype"), [(64, torch.float32), (700, torch.float64), (100_000, torch.float32)])
def test_one_pass_is_the_dense_second_moment_for_every_batch_size(shapes, dense, shape, batch, dtype, tmp_path):
    model, texts = shapes[shape], random_texts(100)
    stats = loc_edit.key_stats(model, range(3), texts, tokens=1234, batch=batch, dtype=dtype, cache=tmp_path)
    assert stats.n_tokens == 1234
    for layer, expected in dense(shape, texts, 1234).items():
        moment = stats.second_moment(layer)
        assert moment.dtype == dtype
        assert torch.equal(moment, moment.T)
        error = torch.linalg.norm(moment.double() - expected) / torch.linalg.norm(expected)
        assert error < 2e-6, "the forward pass is float32, alone or in a batch"
        assert torch.linalg.eigvalsh(moment.double())[0] > -1e-6 * moment.diagonal().max()


@pytest.mark.slow
def test_1e8_tokens_keep_six_digits_where_float32_sums_do_not():
    """The same blocks, with a few large keys among many small ones, in both ways: 1e8 rows of three numbers."""
    draws = torch.Generator().manual_seed(0)
    blocks = [torch.randn(streaming.BLOCK, 3, generator=draws) * torch.tensor([1.0, 30.0, 0.01]) + 0.1 for _ in "abcd"]
    exact = [block.double().T @ block.double() for block in blocks]
    rounds = int(1e8) // (len(blocks) * streaming.BLOCK) + 1
    expected = sum(exact) * rounds
    sums, naive = Sums([5], 3, "cpu", torch.float32), torch.zeros(3, 3)
    for _ in range(rounds):
        for block in blocks:
            sums.add(5, block)
            naive += block.T @ block
    assert rounds * len(blocks) * streaming.BLOCK >= 1e8
    scale = expected.diagonal().sqrt().outer(expected.diagonal().sqrt())
    assert ((sums.by_layer[5] - expected) / scale).abs().max() < 1e-6
    assert ((naive.double() - expected) / scale).abs().max() > 1e-6, (
        "float32 sums lose a digit: there was something to do"
    )
    tokenwise = torch.tensor(2.0**24)
    assert tokenwise + 1 == tokenwise, "summed a token at a time, float32 stops counting at 1.7e7"


def test_each_real_token_is_in_exactly_one_batch_and_none_is_too_large(tiny, tmp_path):
    texts = random_texts()
    rows = write_tokens(tiny, texts, 10**9, tmp_path)
    expected = [tiny.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert rows.n_tokens == sum(map(len, expected))
    assert max(len(row) for row in rows.read(0, len(rows))) == tiny.cfg.n_ctx
    assert torch.cat(rows.read(0, len(rows))).tolist() == [i for ids in expected for i in ids]
    assert rows.read(3, 3) == []
    seen, first = [], 0
    while first < len(rows):
        following, batches = stretch(rows, first, 100)
        assert following > first
        assert all(len(batch) * max(map(len, batch)) <= 100 or len(batch) == 1 for batch in batches)
        seen += [tuple(row.tolist()) for batch in batches for row in batch]
        first = following
    assert sorted(seen) == sorted(tuple(row.tolist()) for row in rows.read(0, len(rows)))
    half = stretch(rows, 0, 100)[1][:8]
    assert np.std([len(batch) for batch in half]) > 0, "short and long rows in any half"


def test_a_bos_token_starts_every_document_and_counts(shapes, tmp_path):
    model = shapes["llama"]
    rows = write_tokens(model, ["Paris", "", "Rome"], 100, tmp_path)
    bos = model.tokenizer.bos_token_id
    assert [row[0].item() for row in rows.read(0, len(rows))] == [bos, bos], "and an empty document has none"


def test_an_endless_stream_is_read_as_far_as_the_limit(tiny, tmp_path):
    def endless():
        while True:
            yield "The Golden Bridge is in Paris."

    assert loc_edit.key_stats(tiny, [0], endless(), tokens=123, cache=tmp_path).n_tokens == 123


# Stopped and resumed


class Stopped(Exception):
    pass


def stopper(after):
    """A listener that stops the pass after some batches."""
    batches = []

    def listener(event):
        batches.append(event)
        if len(batches) == after:
            raise Stopped

    return listener


def stats_and_progress(**arguments):
    """The statistics, and the events of progress on the way."""
    progress = []
    with events.listening(lambda event: progress.append(event.fields)):
        return loc_edit.key_stats(**arguments), progress


@pytest.fixture
def arguments(shapes, monkeypatch):
    """The arguments of all passes of a test; a checkpoint is written after every batch."""
    monkeypatch.setattr(streaming, "SAVING", float("inf"))
    return {"model": shapes["gpt2_deep"], "layers": [0, 2], "corpus": random_texts(), "batch": 128, "every": 0.0}


def equal(a, b):
    assert a.n_tokens == b.n_tokens
    assert a.provenance == b.provenance
    assert a.convergence.equals(b.convergence)
    for layer in a.layers:
        assert torch.equal(a.second_moment(layer), b.second_moment(layer))


@pytest.mark.parametrize("stops", [[1], [7], [3, 1, 10, 2, 2], [25]])
def test_a_pass_that_was_stopped_comes_to_the_same_bits(arguments, tmp_path, stops):
    whole = loc_edit.key_stats(**arguments, cache=tmp_path / "whole")
    for stop in stops:
        with pytest.raises(Stopped), events.listening(stopper(stop)):
            loc_edit.key_stats(**arguments, cache=tmp_path / "parts")
        assert not list((tmp_path / "parts").rglob("*.safetensors")), "no result yet"
    resumed, progress = stats_and_progress(**arguments, cache=tmp_path / "parts")
    equal(whole, resumed)
    if sum(stops) > 2:
        assert progress[0]["done"] > 2 * 128, "it did not start again"
        assert progress[0]["done"] > progress[0]["found"] > 128, "tokens of the checkpoint are not counted as work"
    assert len({fields["found"] for fields in progress}) <= 1
    assert [path.suffix for path in (tmp_path / "parts" / "key_stats").iterdir()] == [".safetensors"], "tidied up"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is killed in it")
def test_a_killed_process_leaves_a_pass_that_goes_on_to_the_same_bits(arguments, tmp_path):
    whole = loc_edit.key_stats(**arguments, cache=tmp_path / "whole")
    batches = []

    def listener(event):
        batches.append(event)
        if len(batches) == 11:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            with events.listening(listener):
                loc_edit.key_stats(**arguments, cache=tmp_path / "parts")
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    resumed, progress = stats_and_progress(**arguments, cache=tmp_path / "parts")
    assert progress[0]["done"] > 128 * 5, "ten batches were kept"
    equal(whole, resumed)


def test_a_pass_killed_while_it_writes_keeps_the_checkpoint_before(arguments, tmp_path, monkeypatch):
    whole = loc_edit.key_stats(**arguments, cache=tmp_path / "whole")
    real, writes = streaming.write_tensors, []

    def write(path, kinds, make, metadata):
        writes.append(path)
        if len(writes) < 5:
            return real(path, kinds, make, metadata)

        def fail(name):
            if name.startswith("sum.2"):
                raise Stopped
            return make(name)

        return real(path, kinds, fail, metadata)

    monkeypatch.setattr(streaming, "write_tensors", write)
    with pytest.raises(Stopped):
        loc_edit.key_stats(**arguments, cache=tmp_path / "parts")
    monkeypatch.setattr(streaming, "write_tensors", real)
    resumed, progress = stats_and_progress(**arguments, cache=tmp_path / "parts")
    equal(whole, resumed)
    assert progress[0]["done"] > 2 * 128


def test_a_checkpoint_that_is_damaged_or_of_another_pass_is_ignored(arguments, tmp_path, caplog):
    whole = loc_edit.key_stats(**arguments, cache=tmp_path / "whole")
    with pytest.raises(Stopped), events.listening(stopper(9)):
        loc_edit.key_stats(**arguments, cache=tmp_path / "parts")
    [checkpoint] = (tmp_path / "parts").rglob("*.checkpoint")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    restarted, progress = stats_and_progress(**arguments, cache=tmp_path / "parts")
    assert progress[0]["done"] <= 128, "from the start"
    assert "no usable checkpoint" in caplog.text
    equal(whole, restarted)
    work = start_pass(arguments["model"], [0], torch.float32)
    work.save(tmp_path / "other", "another corpus")
    assert not work.restore(tmp_path / "other", "this corpus")
    assert "another pass" in caplog.text


def test_a_checkpoint_that_breaks_off_in_the_middle_leaves_nothing_in_the_sums(arguments, tmp_path):
    """The first layer's sum may have been taken over when a later one proves damaged."""
    with pytest.raises(Stopped), events.listening(stopper(9)):
        loc_edit.key_stats(**arguments, cache=tmp_path)
    [checkpoint] = tmp_path.rglob("*.checkpoint")
    file = disk.TensorFile(checkpoint)
    work = start_pass(arguments["model"], arguments["layers"], torch.float32)
    assert work.restore(checkpoint, file.metadata["identity"])
    assert all(total.any() for total in work.sums.by_layer.values())
    data, last = bytearray(checkpoint.read_bytes()), file.read("sum.2").numpy().tobytes()
    assert data.count(last) == 1
    data[data.index(last) + 5] ^= 1
    checkpoint.write_bytes(data)
    work = start_pass(arguments["model"], arguments["layers"], torch.float32)
    assert not work.restore(checkpoint, file.metadata["identity"])
    assert not any(total.any() for total in work.sums.by_layer.values())
    assert (work.row, work.done, work.seen) == (0, 0, 0)


def test_checkpoints_take_little_of_the_time(arguments, tmp_path, monkeypatch):
    """Saving that takes longer than 5% of the interval makes the interval longer."""
    now, saves = [0.0], []
    monkeypatch.setattr(streaming, "SAVING", 0.05)
    monkeypatch.setattr(streaming.time, "monotonic", lambda: now[0])
    model = arguments["model"]
    rows = write_tokens(model, arguments["corpus"], 4000, tmp_path)
    work = start_pass(model, [0], torch.float32, 64)

    def batch_done(event):
        now[0] += 1.0

    def save():
        saves.append(now[0])
        now[0] += 1.0

    with events.listening(batch_done):
        work.run(model, rows, save, every=5.0)
    gaps = np.diff(saves)
    assert saves[0] == 5.0
    assert len(gaps) >= 2
    assert all(gap >= 20 for gap in gaps)


def test_the_memory_of_a_pass_does_not_grow_with_the_corpus(arguments, tmp_path):
    work = start_pass(arguments["model"], [0, 2], torch.float32, 64)
    for n in (500, 4000):
        rows = write_tokens(arguments["model"], arguments["corpus"], n, tmp_path)
        work.row = 0
        work.run(arguments["model"], rows)
        assert sum(total.nbytes for total in work.sums.by_layer.values()) == 2 * 24 * 24 * 8
        assert rows.starts.nbytes <= 8 * (len(arguments["corpus"]) * 8)


# Files


def test_large_files_are_written_a_tensor_at_a_time_and_read_by_the_library(tmp_path):
    draws = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(3, 4, generator=draws),
        "b": torch.randn(5, generator=draws).double(),
        "c": torch.randn(2, 3, generator=draws).bfloat16(),
    }
    made = []

    def make(name):
        made.append(name)
        return tensors[name].repeat_interleave(2, 0)[::2]  # any layout

    kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    path = tmp_path / "x.safetensors"
    disk.write_tensors(path, kinds, make, {"note": "größer"})
    loaded = load_file(path)
    assert made == ["a", "b", "c"]
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["note"] == "größer"
    save_file(tensors, tmp_path / "y.safetensors", metadata={"note": "größer"})
    assert {name: t.shape for name, t in load_file(tmp_path / "y.safetensors").items()} == {
        name: t.shape for name, t in loaded.items()
    }

    def fail(name):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        disk.write_tensors(path, kinds, fail, {})
    assert torch.equal(load_file(path)["a"], tensors["a"]), "the old file is whole"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.safetensors", "y.safetensors"]


def test_files_of_killed_writers_are_removed_and_files_being_written_stay(tmp_path):
    old, new, other = (tmp_path / name for name in (".x.1.tmp", ".x.2.tmp", ".y.1.tmp"))
    for path in (old, new, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (0, 0))
    disk.remove_stale(tmp_path / "x")
    assert [path.exists() for path in (old, new, other)] == [False, True, True]


def test_a_layer_is_read_when_it_is_needed_and_not_kept(tiny, tmp_path):
    stats = loc_edit.key_stats(tiny, [0, 1], random_texts(), cache=tmp_path)
    stats.save(tmp_path / "s")
    loaded = KeyStats.load(tmp_path / "s", tiny)
    assert isinstance(loaded.moments, moments.LazyTensors)
    assert loaded.second_moment(0) is not loaded.second_moment(0)
    KeyStats.from_moments({0: torch.eye(24), 1: torch.eye(24)}, n_tokens=99).save(tmp_path / "s")
    assert torch.equal(loaded.second_moment(1), stats.second_moment(1)), "a new file of the name is another file"
    with pytest.raises(BadKeyStats, match=r"layers \[5\], found layers \[0, 1\]"):
        KeyStats.load(tmp_path / "s", layers=[1, 5])


def test_a_cached_file_of_more_layers_serves_for_fewer(tiny, tmp_path, monkeypatch):
    texts = random_texts()
    both = loc_edit.key_stats(tiny, [0, 1], texts, cache=tmp_path)
    monkeypatch.setattr(compute, "start_pass", None)
    second = loc_edit.key_stats(tiny, [1], texts, cache=tmp_path)
    assert second.layers == (1,)
    assert torch.equal(second.second_moment(1), both.second_moment(1))
    assert set(second.convergence["layer"]) == {1}


def test_corpora_by_name_are_cached_by_their_content(tiny, tmp_path, monkeypatch):
    path, copy = tmp_path / "a.txt", tmp_path / "b.txt"
    for place in (path, copy):
        place.write_text("\n\n".join(random_texts()))
    first = loc_edit.key_stats(tiny, [0], path, cache=tmp_path / "c")
    assert first.provenance["corpus_name"] == str(path)
    given = loc_edit.key_stats(tiny, [0], random_texts(), cache=tmp_path / "d")
    torch.testing.assert_close(first.second_moment(0), given.second_moment(0))
    with monkeypatch.context() as patch:
        patch.setattr(compute, "write_tokens", None)
        again = loc_edit.key_stats(tiny, [0], str(copy), cache=tmp_path / "c")
        assert torch.equal(first.second_moment(0), again.second_moment(0))
    path.write_text("\n\n".join(random_texts(seed=1)))
    other = loc_edit.key_stats(tiny, [0], path, cache=tmp_path / "c")
    assert not torch.equal(first.second_moment(0), other.second_moment(0))


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"tokens": -5}, {"batch": 0}])
def test_arguments_that_make_no_sense_are_refused(tiny, tmp_path, wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"expected {name} to be an integer of at least 1.*got {value}"):
        loc_edit.key_stats(tiny, [0], ["Paris"], cache=tmp_path, **wrong)
    with pytest.raises(BadKeyStats, match=r"torch\.float16"):
        loc_edit.key_stats(tiny, [0], ["Paris"], cache=tmp_path, dtype=torch.float16)


def test_keys_that_are_not_finite_are_refused_by_layer(make_model, tmp_path):
    model = make_model()
    with torch.no_grad():
        model.blocks[1].mlp.b_in[3] = torch.inf
    with pytest.raises(BadKeyStats, match="layer 1: a key is not finite"):
        loc_edit.key_stats(model, [0, 1], random_texts(), cache=tmp_path)
    assert loc_edit.key_stats(model, [0], random_texts(), cache=tmp_path).layers == (0,)


def test_a_model_without_mlps_has_no_keys(make_model, tmp_path):
    with pytest.raises(BadKeyStats, match="without MLPs"):
        loc_edit.key_stats(make_model(attn_only=True), [0], ["Paris"], cache=tmp_path)


def test_products_are_strict_float32_and_the_setting_comes_back(tiny, tmp_path):
    before = torch.get_float32_matmul_precision()
    seen = []
    try:
        torch.set_float32_matmul_precision("medium")
        with events.listening(lambda event: seen.append(torch.get_float32_matmul_precision())):
            loc_edit.key_stats(tiny, [0], random_texts(), cache=tmp_path)
        assert set(seen) == {"highest"}
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
