"""Second moments of the keys: the sum itself, the cache, and moments that are refused when solving."""

import pytest
import torch

import loc_edit
from loc_edit import BadKeyStats, KeyStats, events

TEXTS = [
    "The Golden Bridge is in Paris.",
    "Rome",
    "It was raining all day, and nobody crossed the old bridge; the train was green and narrow and quiet. " * 2,
    "The mother tongue of Anna Kowalska is Polish.",
] * 20


def by_hand(model, layer, texts, limit=None):
    """E[k k^T] in float64, one document and one position at a time; at most `limit` tokens."""
    bos = [model.tokenizer.bos_token_id] if model.cfg.default_prepend_bos else []
    total, n = torch.zeros(model.cfg.d_mlp, model.cfg.d_mlp, dtype=torch.float64), 0
    for text in texts:
        ids = bos + model.tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids), model.cfg.n_ctx):
            piece = torch.tensor(ids[start : start + model.cfg.n_ctx])[None]
            keys = model.run_with_cache(piece)[1][f"blocks.{layer}.mlp.hook_post"][0].double()
            for key in keys:
                if limit is None or n < limit:
                    total += torch.outer(key, key)
                    n += 1
    return total / n, n


@pytest.mark.parametrize("shape", ["gpt2", "llama", "gptj"])
def test_moments_equal_float64_by_hand(shapes, shape, tmp_path):
    """Rows of different lengths share a batch; a document longer than the context is cut; BOS counts where used."""
    model = shapes[shape]
    texts = TEXTS[:5]
    assert len(model.tokenizer(TEXTS[2])["input_ids"]) > 20
    stats = loc_edit.key_stats(model, [1, 0], texts, cache=tmp_path)
    assert stats.layers == (0, 1)
    for layer in (0, 1):
        expected, n = by_hand(model, layer, texts)
        assert stats.n_tokens == n
        torch.testing.assert_close(stats.second_moment(layer).double(), expected, rtol=1e-4, atol=1e-6)
        assert torch.equal(stats.second_moment(layer), stats.second_moment(layer).T)


def test_the_token_limit_is_exact(tiny, tmp_path):
    stats = loc_edit.key_stats(tiny, [1], TEXTS, tokens=37, cache=tmp_path)
    expected, n = by_hand(tiny, 1, TEXTS[:4], limit=37)
    assert stats.n_tokens == n == 37
    torch.testing.assert_close(stats.second_moment(1).double(), expected, rtol=1e-4, atol=1e-6)


def test_a_document_longer_than_the_context_is_cut_into_pieces(tiny, tmp_path):
    long = " ".join(TEXTS[:8])
    assert len(tiny.tokenizer(long)["input_ids"]) > 2 * tiny.cfg.n_ctx
    stats = loc_edit.key_stats(tiny, [0], [long], cache=tmp_path)
    expected, n = by_hand(tiny, 0, [long])
    assert stats.n_tokens == n
    torch.testing.assert_close(stats.second_moment(0).double(), expected, rtol=1e-4, atol=1e-6)


def accumulations(monkeypatch):
    """A list that grows with every real accumulation."""
    from loc_edit.keys import compute

    real, calls = compute.start_pass, []

    def start(*args):
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(compute, "start_pass", start)
    return calls


def test_the_cache_is_by_content(make_model, tmp_path, monkeypatch):
    model, calls = make_model(), accumulations(monkeypatch)

    def stats(**changes):
        arguments = {"layers": [0], "corpus": TEXTS[:3], "tokens": 500, "cache": tmp_path, **changes}
        return loc_edit.key_stats(model, arguments.pop("layers"), arguments.pop("corpus"), **arguments)

    first = stats()
    again = stats(corpus=iter(TEXTS[:3]))
    assert len(calls) == 1, "the second time it is read"
    assert torch.equal(first.second_moment(0), again.second_moment(0))
    assert (first.n_tokens, dict(first.provenance)) == (again.n_tokens, dict(again.provenance))
    for n, changes in enumerate([{"corpus": TEXTS[:2]}, {"tokens": 20}, {"layers": [1]}, {"corpus": TEXTS[1:3]}]):
        stats(**changes)
        assert len(calls) == n + 2, f"{changes} is another content"
    with torch.no_grad():
        model.blocks[0].mlp.W_in[0, 0] += 1
    assert not torch.equal(stats().second_moment(0), first.second_moment(0))
    assert len(calls) == 6, "so are other weights"
    model.cfg.default_prepend_bos = True
    stats()
    assert len(calls) == 7, "and another start of text"
    stats(ridge=0.5)
    assert len(calls) == 7, "a ridge is added when solving"


def test_a_cache_that_cannot_be_written_costs_only_time(tiny, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    stats = loc_edit.key_stats(tiny, [0], TEXTS[:2], cache=tmp_path / "file")
    assert stats.layers == (0,)
    assert "not cached" in caplog.text


def test_saved_statistics_come_back_and_only_for_their_model(tiny, deep, tmp_path):
    path = tmp_path / "stats.safetensors"
    stats = loc_edit.key_stats(tiny, [0, 1], TEXTS[:3], ridge=0.25, cache=tmp_path / "cache")
    stats.save(path)
    loaded = KeyStats.load(path, tiny)
    assert loaded.layers == (0, 1)
    assert (loaded.n_tokens, loaded.ridge) == (stats.n_tokens, 0.25)
    assert dict(loaded.provenance) == dict(stats.provenance)
    assert {"model", "tokenizer", "corpus", "dtype"} <= set(loaded.provenance)
    assert all(torch.equal(loaded.second_moment(k), stats.second_moment(k)) for k in (0, 1))
    assert KeyStats.load(path, layers=[1]).layers == (1,)
    with pytest.raises(BadKeyStats, match=f"{loc_edit.fingerprint(tiny)}.*{loc_edit.fingerprint(deep)}"):
        KeyStats.load(path, deep)
    assert not list(tmp_path.glob("*.tmp"))


def test_files_of_another_format_are_refused(tiny, tmp_path):
    (tmp_path / "noise").write_bytes(b"not safetensors at all")
    with pytest.raises(BadKeyStats, match="cannot be read"):
        KeyStats.load(tmp_path / "noise")
    with pytest.raises(BadKeyStats, match="cannot be read"):
        KeyStats.load(tmp_path / "absent")
    loc_edit.Edit(()).save(tmp_path / "edit")
    with pytest.raises(BadKeyStats, match="format"):
        KeyStats.load(tmp_path / "edit")


def test_solve_is_the_inverse_in_float64(moments, deep):
    stats = KeyStats.from_moments(moments(deep), n_tokens=9999)
    k = torch.randn(3, deep.cfg.d_mlp, generator=torch.Generator().manual_seed(0))
    expected = torch.linalg.solve(moments(deep)[2].double(), k.double().T).T
    torch.testing.assert_close(stats.solve(2, k.double()), expected)
    torch.testing.assert_close(stats.solve(2, k), expected.float())
    torch.testing.assert_close(stats.solve(2, k[0]), expected[0].float())
    assert stats.solve(2, k).dtype == torch.float32


def conditioned(size, number):
    """A symmetric matrix with eigenvalues from 1 down to 1 / number, in float64."""
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    return (
        q @ torch.diag(torch.logspace(0, -torch.tensor(float(number)).log10().item(), size, dtype=torch.float64)) @ q.T
    )


def test_a_condition_number_of_1e8_passes():
    moment = conditioned(24, 1e8)
    moment = (moment + moment.T) / 2
    stats = KeyStats.from_moments({0: moment}, n_tokens=1000)
    assert stats.condition_number(0) == pytest.approx(1e8, rel=0.01)
    k = torch.ones(24, dtype=torch.float64)
    torch.testing.assert_close(moment @ stats.solve(0, k), k, rtol=0, atol=1e-6)


def test_singular_moments_are_refused_by_rank_and_size_unless_there_is_a_ridge():
    keys = torch.randn(10, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    moment = keys.T @ keys / 10
    k = torch.ones(24, dtype=torch.float64)
    with pytest.raises(BadKeyStats, match=r"layer 5: .*rank 10 of 24.*ridge="):
        KeyStats.from_moments({5: moment}, n_tokens=1000).solve(5, k)
    with pytest.raises(BadKeyStats, match=r"layer 5: 10 tokens .*size 24.*ridge="):
        KeyStats.from_moments({5: moment}, n_tokens=10).solve(5, k)
    ridged = KeyStats.from_moments({5: moment}, n_tokens=10, ridge=0.1)
    expected = torch.linalg.solve(moment + 0.1 * moment.diagonal().mean() * torch.eye(24, dtype=torch.float64), k)
    torch.testing.assert_close(ridged.solve(5, k), expected)
    zero = KeyStats.from_moments({5: torch.zeros(24, 24)}, n_tokens=1000)
    with pytest.raises(BadKeyStats, match="rank 0 of 24"):
        zero.solve(5, k)


@pytest.mark.parametrize(
    "moment",
    [torch.full((3, 3), float("nan")), torch.eye(3)[:2], torch.ones(3), torch.diag(torch.tensor([1.0, torch.inf]))],
)
def test_matrices_that_are_not_finite_and_square_are_refused(moment):
    with pytest.raises(BadKeyStats, match="layer 1: expected a finite square matrix"):
        KeyStats.from_moments({1: moment}, n_tokens=1000)


def test_a_layer_without_statistics_and_an_empty_corpus_are_refused(tiny, tmp_path):
    stats = KeyStats.from_moments({0: torch.eye(24)}, n_tokens=100)
    with pytest.raises(BadKeyStats, match=r"layer 3: no key statistics.*\[0\]"):
        stats.second_moment(3)
    for empty in ([], [""]):
        with pytest.raises(BadKeyStats, match="no tokens"):
            loc_edit.key_stats(tiny, [0], empty, cache=tmp_path)
    with pytest.raises(ValueError, match=r"layers \[2\]"):
        loc_edit.key_stats(tiny, [2], TEXTS, cache=tmp_path)
    with pytest.raises(ValueError, match="layers"):
        loc_edit.key_stats(tiny, [], TEXTS, cache=tmp_path)


def test_progress_and_repr(tiny, tmp_path):
    seen = []
    with events.listening(lambda event: seen.append(event.fields)):
        stats = loc_edit.key_stats(tiny, [0], TEXTS, tokens=900, cache=tmp_path)
    assert all((fields["task"], fields["total"], fields["found"]) == ("tokens", 900, 0) for fields in seen)
    assert seen[-1]["done"] == 900
    assert [fields["done"] for fields in seen] == sorted(fields["done"] for fields in seen)
    assert "900" in repr(stats)
    assert "tensor" not in repr(stats)
