"""What the benchmark's grades mean: a localizer that knows the answer gets full marks, one that knows nothing none."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import loc_edit
from loc_edit.editing.planting import recalls
from loc_edit.experiment.benchmark import EDITED, FOLDER, PLANTED, Benchmark, benchmarks
from loc_edit.experiment.config import BadConfig
from loc_edit.experiment.planting import EDIT, planted_layers, without


@pytest.fixture
def benchmark(tmp_path):
    return Benchmark(split="public", runs=tmp_path, workers=1)


def grid_of(question, fractions):
    """A localizer's grid with these fractions of the total effect, at every position."""
    by_layer = torch.tensor(list(fractions), dtype=torch.float32) * (question.p_clean - question.p_corrupted)
    return by_layer[:, None].repeat(1, len(question.prompt.tokens))


@pytest.fixture
def knowing(benchmark, registries):
    """A localizer that has read the answers: where each fact was planted, and how well ROME injects errors."""
    planted = planted_layers(str(benchmark.folder / EDIT))
    rome = benchmark.edits.query("problem == 'error_injection' and method == 'rome'")
    scores = rome.pivot_table(index="fact_id", columns="layer", values="rewrite")

    @loc_edit.localizer("knowing")
    def knowing(question):
        fact_id = question.prompt.fact_id
        if question.window == 1:
            return grid_of(question, [float(layer in planted[str(fact_id)]) for layer in range(8)])
        return grid_of(question, scores.loc[fact_id] if fact_id in scores.index else [0.0] * 8)

    return "knowing"


def test_the_two_halves_share_no_fact_and_leave_none_out():
    halves = [set(Benchmark(split=split).edits["fact_id"]) for split in ("public", "held_out")]
    assert not halves[0] & halves[1]
    facts = {fact.fact_id for fact in loc_edit.load_facts(str(FOLDER / "builtin" / EDITED))}
    assert halves[0] | halves[1] == facts
    assert min(map(len, halves)) > 80


def test_every_planted_fact_of_the_grid_is_proven():
    folder = FOLDER / "builtin"
    planted = planted_layers(str(folder / EDIT))
    facts = loc_edit.load_facts(str(folder / PLANTED))
    assert sorted(planted) == sorted(str(fact.fact_id) for fact in facts)
    counts = pd.Series([layers[0] for layers in planted.values()]).value_counts()
    assert counts.loc[range(6)].min() >= 30  # the last two layers can hardly hold a fact alone
    model, edit = loc_edit.load_model("builtin"), loc_edit.Edit.load(folder / EDIT)
    objects, own = [fact.target_true for fact in facts], [planted[str(fact.fact_id)][0] for fact in facts]
    for left_out in (None, 1, 4):
        with (without(edit, left_out) if left_out else edit).applied(model):
            says = recalls(model, facts, objects)[1].tolist()
        assert says == [layer != left_out for layer in own]


@pytest.mark.slow
def test_a_localizer_that_knows_the_answers_gets_full_marks(benchmark, knowing):
    grade = benchmark.localizer(knowing, draws=20)
    assert grade.summary["planted"] == 1
    matrix = grade.tables["matrix"].set_index(["problem", "method"]).query("window == 1")
    own = matrix.loc[("error_injection", "rome")]
    assert own["r2_both"] == pytest.approx(1, abs=1e-3)
    assert own["r2_layer"] < 0.95  # there was something to explain
    choices = grade.tables["choices"].query("problem == 'error_injection' and method == 'rome'").set_index("choice")
    assert choices.loc["peak", "mean"] == pytest.approx(choices.loc["oracle", "mean"], abs=1e-3)
    assert choices.loc["oracle", "difference"] > 0
    assert set(matrix["localizer"]) == {knowing}


@pytest.mark.slow
def test_a_localizer_that_knows_nothing_gets_none_and_is_not_computed_twice(benchmark):
    grade = benchmark.localizer("random", draws=20)
    assert grade.summary["planted_low"] < grade.summary["chance"] < grade.summary["planted_high"]
    assert abs(grade.summary["partial"]) < 0.02
    assert abs(grade.summary["within_r"]) < 0.05
    assert grade.summary["gain"] < 0
    assert grade.summary["gain_of_oracle"] > 0
    shards = {path: path.stat().st_mtime_ns for path in benchmark.runs.rglob("traces/*.parquet")}
    assert shards
    again = benchmark.localizer("random", draws=20)
    assert again.summary == grade.summary
    assert {path: path.stat().st_mtime_ns for path in benchmark.runs.rglob("traces/*.parquet")} == shards
    written = json.loads(json.dumps(grade.submission(), default=float))
    assert written["about"]["files"].keys() >= {EDITED, PLANTED, EDIT}


@pytest.mark.long
def test_an_editor_of_the_package_gets_the_scores_that_the_grid_has(benchmark):
    grade = benchmark.editor("rome", facts=3)
    scores = grade.tables["scores"].query("method == 'rome' and outcome == 'rewrite'")
    facts = loc_edit.sample_by_relation(loc_edit.load_facts(str(benchmark.folder / EDITED)))[:3]
    shipped = benchmark.edits[benchmark.edits["fact_id"].isin([fact.fact_id for fact in facts])].query(
        "method == 'rome'"
    )
    means = shipped.groupby(["problem", "layer"], observed=True)["rewrite"].mean()
    computed = scores.set_index(["problem", "layer"])["mean"]
    assert len(computed) == 16
    np.testing.assert_allclose(computed, means.loc[computed.index], atol=0.01)
    best = computed["error_injection"]
    assert grade.summary["error_injection_layer"] == best.idxmax()
    assert grade.summary["error_injection_rewrite"] == pytest.approx(best.max())
    others = grade.tables["best_layers"]
    assert {"memit", "finetune"} <= set(others["method"])


def test_a_model_without_a_grid_is_refused():
    with pytest.raises(BadConfig, match=r"no benchmark of model 'gpt-9'; there are builtin"):
        Benchmark("gpt-9")
    assert "builtin" in benchmarks()
