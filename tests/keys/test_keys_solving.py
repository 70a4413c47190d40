"""Solving with key statistics: kept factors, the identity and ridges; convergence, cost and the command line."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import loc_edit
from loc_edit import BadKeyStats, KeyStats
from loc_edit.analysis.figures.convergence import key_convergence
from loc_edit.cli.main import main
from loc_edit.experiment.experiment import Experiment
from loc_edit.experiment.setup import Setup
from loc_edit.keys import convergence, moments, planning
from loc_edit.keys.convergence import ConvergenceSamples
from loc_edit.keys.corpora import BadCorpus
from loc_edit.keys.moments import Factors
from loc_edit.keys.planning import plan_stats
from loc_edit.views.style import save


def random_texts(n=400):
    draws = np.random.default_rng(1)
    words = ["The", "Golden", "Bridge", "in", "Paris", "north", "river", "train", "quiet", "green", "old", "Rome"]
    return [" ".join(draws.choice(words, draws.integers(3, 20))) for _ in range(n)]


@pytest.fixture
def factorings(monkeypatch):
    """A list that grows with every Cholesky factorization of a matrix of 24."""
    real, calls = torch.linalg.cholesky_ex, []

    def factor(matrix):
        calls.append(len(matrix))
        return real(matrix)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", factor)
    return calls


def test_a_layer_is_factored_once_for_all_facts(deep, moments, factorings):
    stats = KeyStats.from_moments(moments(deep), n_tokens=9999)
    keys = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        for layer in range(4):
            stats.solve(layer, keys)
    assert len(factorings) == 4


def test_factors_that_do_not_fit_make_room_and_come_back_the_same(deep, moments, factorings):
    given = moments(deep)
    factor_bytes = 24 * 24 * 8
    keys = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    for room, kept, expected in [(10**9, 4, 4), (2 * factor_bytes, 2, 8), (0, 1, 8)]:
        factorings.clear()
        stats = replace(KeyStats.from_moments(given, n_tokens=9999), _factors=Factors(room))
        first = [stats.solve(layer, keys) for layer in range(4)]
        again = [stats.solve(layer, keys) for layer in range(4)]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert len(stats._factors) == kept
        assert len(factorings) == expected
        stats.solve(3, keys)
        assert len(factorings) == expected, "the last one is there"


def test_solving_from_a_file_holds_one_layer_at_a_time(deep, tmp_path, monkeypatch):
    stats = loc_edit.key_stats(deep, range(4), random_texts(), cache=tmp_path)
    stats.save(tmp_path / "s")
    monkeypatch.setattr(moments, "free_memory", lambda device: 0)
    loaded = KeyStats.load(tmp_path / "s", deep)
    k = torch.randn(3, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for layer in (0, 3, 1, 2, 0):
        expected = torch.linalg.solve(stats.second_moment(layer).double(), k.T).T
        torch.testing.assert_close(loaded.solve(layer, k), expected, rtol=1e-6, atol=0)
        assert len(loaded._factors) == 1


def test_a_ridge_is_named_and_recorded_and_the_cache_is_the_same(deep, tmp_path):
    few = random_texts(2)
    plain = loc_edit.key_stats(deep, [1], few, tokens=20, cache=tmp_path)
    k = torch.ones(24)
    with pytest.raises(BadKeyStats, match=r"layer 1: 20 tokens .*size 24.*ridge="):
        plain.solve(1, k)
    ridged = loc_edit.key_stats(deep, [1], few, tokens=20, ridge=0.1, cache=tmp_path)
    C = ridged.second_moment(1).double()
    expected = torch.linalg.solve(C + 0.1 * C.trace() / 24 * torch.eye(24), k.double())
    torch.testing.assert_close(ridged.solve(1, k.double()), expected)
    ridged.save(tmp_path / "s")
    assert KeyStats.load(tmp_path / "s").ridge == 0.1
    assert torch.equal(ridged.second_moment(1), plain.second_moment(1))
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="ridge"):
            loc_edit.key_stats(deep, [1], few, ridge=wrong, cache=tmp_path)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_another_ridge_never_uses_the_factors_of_the_first(deep, moments, ridge):
    stats = KeyStats.from_moments(moments(deep), n_tokens=9999, ridge=0.1)
    k = torch.ones(24, dtype=torch.float64)
    first = stats.solve(1, k)
    again = stats.with_ridge(ridge)
    C = moments(deep)[1].double()
    expected = torch.linalg.solve(C + ridge * C.trace() / 24 * torch.eye(24), k)
    torch.testing.assert_close(again.solve(1, k), expected)
    assert (expected - first).norm() > 0.1 * first.norm()
    assert torch.equal(stats.solve(1, k), first)


def test_as_many_tokens_as_the_size_are_enough_and_one_fewer_is_refused(deep, moments):
    given = moments(deep)
    assert KeyStats.from_moments(given, n_tokens=24).solve(1, torch.ones(24)).isfinite().all()
    with pytest.raises(BadKeyStats, match="layer 1: 23 tokens cannot give a second moment of size 24 full rank"):
        KeyStats.from_moments(given, n_tokens=23).solve(1, torch.ones(24))


def test_the_identity_is_an_explicit_choice_that_leaves_keys_as_they_are(deep, tmp_path, facts, contexts):
    stats = loc_edit.key_stats(deep, [1, 2], "identity", cache=tmp_path)
    assert stats.provenance["source"] == "identity"
    assert stats.layers == (1, 2)
    k = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(stats.solve(2, k), k)
    assert torch.equal(stats.second_moment(2), torch.eye(24))
    torch.testing.assert_close(stats.with_ridge(1.0).solve(2, k), k / 2)
    assert not list(tmp_path.iterdir()), "nothing is computed or kept"
    with pytest.raises(BadKeyStats, match=r"layer 3.*\[1, 2\]"):
        stats.solve(3, k)
    with pytest.raises(BadKeyStats, match="needs no file"):
        stats.save(tmp_path / "s")
    with pytest.raises(ValueError, match=r"layers \[9\]"):
        KeyStats.identity(deep, [9])
    assert KeyStats.identity(deep).layers == (0, 1, 2, 3)
    request = loc_edit.pose(facts[0], "error_injection", deep)
    given = KeyStats.from_moments({2: torch.eye(24)}, n_tokens=1000)
    edit, expected = (loc_edit.rome(deep, request, 2, stats=s, contexts=contexts) for s in (stats, given))
    torch.testing.assert_close(edit.updates[0].delta, expected.updates[0].delta)


def test_the_rank_of_a_singular_float32_moment_does_not_count_rounding():
    keys = torch.randn(10, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    moment = (keys.T @ keys / 10).float()
    assert torch.linalg.matrix_rank(moment.double(), hermitian=True) > 10, "rounding fills the rest"
    stats = KeyStats.from_moments({0: moment}, n_tokens=1000)
    assert stats.rank(0) == 10
    with pytest.raises(BadKeyStats, match="rank 10 of 64 after 1000 tokens"):
        stats.solve(0, torch.ones(64))


# Convergence


def test_convergence_is_the_change_between_shares_of_the_sample(deep, tmp_path):
    texts = random_texts()
    stats = loc_edit.key_stats(deep, [0, 2], texts, tokens=2048, dtype=torch.float64, batch=64, cache=tmp_path)
    rows = stats.convergence
    assert list(rows.columns) == ["layer", "tokens", "rank", "condition", "change", "cosine"]
    for layer in (0, 2):
        layer_rows = rows[rows["layer"] == layer]
        assert len(layer_rows) == 5
        np.testing.assert_allclose(layer_rows["tokens"], [128, 256, 512, 1024, 2048], atol=64)
        assert layer_rows["tokens"].iloc[-1] == 2048
        assert layer_rows["condition"].iloc[-1] == pytest.approx(stats.condition_number(layer), rel=1e-6)
        assert set(layer_rows["rank"]) == {24}
        assert layer_rows["change"].iloc[-1] == 0
        assert layer_rows["change"].iloc[0] > layer_rows["change"].iloc[-2] > 0, "more tokens, less change"
        assert layer_rows["cosine"].between(0, 1 + 1e-12).all()
    stats.save(tmp_path / "s")
    pd.testing.assert_frame_equal(KeyStats.load(tmp_path / "s").convergence, rows)
    assert KeyStats.from_moments({0: torch.eye(3)}, n_tokens=9).convergence.empty


def test_the_change_equals_the_change_of_the_solutions_by_hand():
    draws = torch.Generator().manual_seed(0)
    first, second = (torch.randn(200, 8, generator=draws, dtype=torch.float64) for _ in "ab")
    samples = ConvergenceSamples(8, torch.float64)
    sums = {3: first.T @ first}
    samples.keep(3, first)
    samples.keep(3, second)
    samples.solve(sums, 0, 200, 400)
    sums[3] = sums[3] + second.T @ second
    samples.solve(sums, 200, 400, 400)
    half, whole = samples.rows()
    k = first[torch.linspace(0, 199, 16, dtype=torch.float64).round().long()]
    u_half = torch.linalg.solve(first.T @ first / 200, k.T)
    u = torch.linalg.solve(sums[3] / 400, k.T)
    assert half["change"] == pytest.approx(((u_half - u).norm(dim=0) / u.norm(dim=0)).mean().item())
    assert half["cosine"] == pytest.approx(torch.cosine_similarity(u_half, u, dim=0).mean().item())
    assert (half["tokens"], whole["tokens"]) == (200, 400)


def test_a_share_that_cannot_be_solved_says_so(deep, tmp_path):
    rows = loc_edit.key_stats(deep, [1], random_texts(), tokens=160, batch=10, cache=tmp_path).convergence
    assert rows["rank"].iloc[0] < 24
    assert np.isnan(rows["change"].iloc[0])
    assert rows["rank"].iloc[-1] == 24
    assert rows["change"].iloc[-1] == 0
    rows = loc_edit.key_stats(deep, [1], random_texts(), tokens=9, cache=tmp_path).convergence
    assert rows["rank"].iloc[-1] <= 9, "as many as there are tokens: the rounding of float32 products is no rank"


def test_large_matrices_are_judged_without_all_eigenvalues(monkeypatch):
    size = 96
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    moment = q @ torch.diag(torch.logspace(0, -6, size, dtype=torch.float64)) @ q.T
    monkeypatch.setattr(convergence, "EXACT", 10)
    monkeypatch.setattr(convergence, "LARGE", 50)
    samples = ConvergenceSamples(size, torch.float32)
    samples.keep(0, torch.ones(1, size))
    for before, seen in [(0, 10), (10, 50), (50, 100)]:
        samples.solve({0: moment * seen}, before, seen, 100)
    rows = samples.rows()
    assert [row["tokens"] for row in rows] == [50, 100], "half and whole only"
    assert all(row["rank"] == size for row in rows)
    assert all(0.8e6 < row["condition"] <= 1.001e6 for row in rows)
    singular = ConvergenceSamples(size, torch.float32)
    singular.keep(0, torch.ones(1, size))
    singular.solve({0: -torch.eye(size, dtype=torch.float64)}, 0, 100, 100)
    [row] = singular.rows()
    assert np.isnan(row["rank"])
    assert row["condition"] == np.inf


def test_the_figure_has_a_line_per_layer_and_is_saved_with_its_numbers(deep, tmp_path):
    rows = loc_edit.key_stats(deep, [0, 2, 3], random_texts(), tokens=2048, cache=tmp_path).convergence
    figure = key_convergence(rows)
    axes = figure.axes[:3]
    assert [len(ax.lines) for ax in axes] == [3, 3, 3]
    first = rows[rows["layer"] == 0]
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), first["change"].iloc[:-1])
    np.testing.assert_allclose(axes[1].lines[0].get_ydata(), first["condition"])
    np.testing.assert_allclose(axes[2].lines[0].get_xdata(), first["tokens"])
    paths = save(figure, rows, tmp_path / "f", "key_convergence")
    assert all(path.stat().st_size > 0 for path in paths)
    with pytest.raises(ValueError, match="condition"):
        key_convergence(rows.drop(columns="condition"))
    key_convergence(rows[rows["layer"] == 2])


# What it would cost


def test_a_plan_predicts_what_the_pass_takes(deep, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "PATIENCE", 0.05)
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(random_texts()))
    plan = plan_stats(deep, range(4), path, tokens=10**6, cache=tmp_path / "not" / "there")
    stats = loc_edit.key_stats(deep, range(4), path, tokens=10**6, cache=tmp_path / "cache")
    assert plan.tokens == plan.tokens_there == stats.n_tokens, "a small corpus is counted"
    stats.save(tmp_path / "s")
    assert plan.result == 4 * 24 * 24 * 4 <= (tmp_path / "s").stat().st_size
    assert plan.disk == 4 * 24 * 24 * 16 + 4 * stats.n_tokens
    assert plan.full_rank == plan.d_mlp == 24
    assert plan.tokens_for(0.1) == 2400
    assert plan.error == pytest.approx((24 / stats.n_tokens) ** 0.5)
    assert plan.memory > 4 * 24 * 24 * 8 + sum(p.nbytes for p in deep.parameters())
    assert plan.seconds == pytest.approx(plan.tokens / plan.speed + plan.tokens / plan.reading)
    assert min(plan.speed, plan.reading, plan.disk_free, plan.memory_free) > 0
    assert not (tmp_path / "not").exists(), "nothing is kept"
    assert plan_stats(deep, [0], path, tokens=100).tokens == 100


def test_the_tokens_of_a_large_file_are_estimated(deep, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "PATIENCE", 0.01)
    monkeypatch.setattr(planning, "LOOK", 2000)
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(random_texts()))
    plan = plan_stats(deep, [0], path, tokens=10**9)
    counted = loc_edit.key_stats(deep, [0], path, tokens=10**9, cache=tmp_path).n_tokens
    assert plan.tokens_there == pytest.approx(counted, rel=0.1)
    with pytest.raises(BadCorpus, match="absent"):
        plan_stats(deep, [0], "absent.txt")


# The command line and experiments


def call(monkeypatch, capsys, *args):
    monkeypatch.setenv("COLUMNS", "200")
    status = main(list(map(str, args)))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def here(tmp_path, monkeypatch, deep):
    """A folder with a corpus; the model of any name is the small one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOC_EDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(planning, "PATIENCE", 0.05)
    monkeypatch.setattr(loc_edit, "load_model", lambda *_: deep)
    (tmp_path / "a.txt").write_text("\n\n".join(random_texts()))
    return tmp_path


def test_the_command_shows_a_row_per_layer_and_writes_file_and_figure(here, monkeypatch, capsys):
    options = ("--corpus", "a.txt", "--layers", "1,3", "--save", "s.safetensors", "--figure", "f")
    status, out, err = call(monkeypatch, capsys, "stats", *options)
    assert status == 0, err
    assert {path.name for path in (here / "f").iterdir()} == {f"key_convergence.{e}" for e in ("pdf", "png", "csv")}
    stats = KeyStats.load(here / "s.safetensors")
    assert stats.layers == (1, 3)
    half = stats.convergence[stats.convergence["layer"] == 3].iloc[-2]
    assert f"{half['change']:.1%}" in out
    assert f"{stats.condition_number(3):.3g}" in out
    assert f"{stats.n_tokens:,} tokens, d_mlp 24" in out


def test_the_command_plans_without_computing(here, monkeypatch, capsys):
    status, out, err = call(monkeypatch, capsys, "stats", "--corpus", "a.txt", "--plan", "--tokens", "10")
    assert status == 0, err
    for words in ("full rank", "at least 24 tokens", "memory", "disk", "tokens/s", "too few tokens for full rank"):
        assert words in out
    assert not (here / "cache").exists()


def test_the_command_knows_the_identity_and_small_samples(here, monkeypatch, capsys):
    status, out, _ = call(monkeypatch, capsys, "stats", "--corpus", "identity")
    assert status == 0
    assert "C = I by choice" in out
    status, _, err = call(monkeypatch, capsys, "stats", "--corpus", "identity", "--figure", "f")
    assert status == 1
    assert "nothing that converges" in err
    status, out, _ = call(monkeypatch, capsys, "stats", "--corpus", "a.txt", "--tokens", 20, "--ridge", 0.1)
    assert status == 0
    assert "ridge 0.1" in out


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--corpus", "absent.txt"), "corpus 'absent.txt': no such file"),
        (("--corpus", "a.txt", "--layers", "9"), "layers [9]"),
        (("--corpus", "a.txt", "--tokens", "0"), "expected tokens to be an integer of at least 1, got 0"),
        (("--corpus", "a.txt", "--ridge", "-1"), "ridge -1"),
    ],
)
def test_mistakes_take_one_line(here, monkeypatch, capsys, options, named):
    status, _, err = call(monkeypatch, capsys, "stats", *options)
    assert status == 1
    assert named in err


def test_a_corpus_is_checked_before_a_run_makes_its_folder(tmp_path, deep, facts, monkeypatch):
    monkeypatch.setattr(Setup, "model", deep)
    monkeypatch.setattr(Setup, "data", facts)
    config = loc_edit.ExperimentConfig(corpus=str(tmp_path / "absent.jsonl"), out=str(tmp_path / "run"), facts=None)
    with pytest.raises(BadCorpus, match="absent"):
        next(iter(Experiment(config).rows()))
    assert not (tmp_path / "run").exists()


def test_a_run_belongs_to_the_content_of_its_corpus(tmp_path, deep, facts, monkeypatch):
    monkeypatch.setattr(Setup, "model", deep)
    monkeypatch.setattr(Setup, "data", facts)
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for path, n in zip(paths, (3, 3, 4), strict=True):
        path.write_text("\n\n".join(random_texts(n)))
    first, same, other = (
        Experiment(loc_edit.ExperimentConfig(corpus=str(path), facts=None)).resolved()["corpus_content"]
        for path in paths
    )
    assert first == same != other
    assert "corpus_content" not in Experiment(loc_edit.ExperimentConfig(facts=None)).resolved()


@pytest.mark.slow
def test_the_benchmark_runs(monkeypatch, capsys):
    script = Path(__file__).parents[2] / "scripts" / "benchmark_keys.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--tokens", "600", "--repeats", "1"])
    runpy.run_path(str(script), run_name="__main__")
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert results["tokens"] == 600
    assert results["ratio"] > 0
