"""Tuning: the grid is tried whole, the choice follows the rule, and what is written can be run."""

import pandas as pd
import pytest

import loc_edit
from loc_edit.experiment import tuning
from loc_edit.experiment.config import BadConfig, ExperimentConfig
from loc_edit.experiment.experiment import Experiment
from loc_edit.experiment.setup import Setup
from loc_edit.experiment.tuning import Tuning, choose
from loc_edit.facts.loading import save_facts

GRID = {"rome": {"clamp": [1.0, 40.0], "lr": [0.1, 1.0]}, "finetune": {"eps": [1e-4, 0.1]}}


def candidates(*pairs):
    return pd.DataFrame(pairs, columns=["rewrite", "neighborhood"])


@pytest.mark.parametrize(
    ("pairs", "chosen"),
    [
        ([(0.5, 0.9), (0.8, 0.75), (0.95, 0.6)], 1),  # the best rewrite above the floor
        ([(0.995, 0.8), (1.0, 0.75), (0.99, 0.9)], 2),  # above .99 only the neighborhood counts
        ([(0.5, 0.3), (0.6, 0.5), (0.55, 0.51), (0.9, 0.2)], 1),  # nothing above it: near the best neighborhood
        ([(float("nan"), 1.0), (0.1, 0.8)], 1),
        ([(0.2, 0.7)], 0),  # the floor itself is good enough
    ],
)
def test_the_rule(pairs, chosen):
    assert choose(candidates(*pairs), floor=0.7) == chosen


def test_nothing_is_chosen_where_nothing_has_a_score():
    assert choose(candidates((float("nan"), 0.8)), floor=0.7) is None


@pytest.fixture
def lab(tmp_path, monkeypatch, tiny, stats_of, facts):
    """(grid, **options) -> a tuning on the tiny model and its four facts."""
    save_facts(facts, tmp_path / "facts.jsonl")
    monkeypatch.setattr(Setup, "model", tiny)
    monkeypatch.setattr(Setup, "stats", stats_of(tiny))

    def make(grid=GRID, **options):
        defaults = {
            "model": "tiny",
            "data": str(tmp_path / "facts.jsonl"),
            "methods": ("rome", "finetune-1"),
            "problems": ("error_injection", "fact_amplification"),
            "layers": (0,),
            "noise": "1.5",
            "essence": False,
            "settings": {"rome": {"steps": 4}, "finetune": {"steps": 4, "lr": 0.05}},
            "out": str(tmp_path / "run"),
        }
        return Tuning(ExperimentConfig(**(defaults | options)), grid)

    return make


def test_every_candidate_is_tried_and_the_best_is_written(lab, facts, tmp_path):
    made = lab()
    run = made.run()
    assert run.traces.empty
    assert set(run.edits["method"]) == {"rome", "finetune"}  # no controls
    tried, paths = tuning.write(made, run, floor=0.2)
    assert len(tried) == 2 * (4 + 2)
    assert (tried["n"] == len(facts)).all()
    for (_, _), some in tried.groupby(["problem", "method"]):
        assert some["chosen"].sum() == 1
        best = some.loc[some["chosen"].idxmax()]
        assert best["rewrite"] == pytest.approx(some.loc[some["neighborhood"] >= 0.2, "rewrite"].max(), abs=1e-3)
        assert some["rewrite"].nunique() > 1  # there was something to choose
    pd.testing.assert_frame_equal(pd.read_csv(paths[0]), tried, check_dtype=False)
    chosen = ExperimentConfig.from_toml(paths[1])
    for _, row in tried[tried["chosen"]].iterrows():
        settings = chosen.settings_of(row["method"], row["problem"])
        assert settings.steps == 4
        for name in GRID[row["method"].partition("-")[0]]:
            assert getattr(settings, name) == row[name]


def test_means_are_those_of_an_experiment_with_these_settings(lab, tmp_path, facts):
    made = lab()
    tried = made.tried(made.run(), floor=0.2)
    row = tried.query("problem == 'error_injection' and method == 'rome' and clamp == 40 and lr == 1").iloc[0]
    config = made.config.model_copy(
        update={
            "methods": ("rome",),
            "problems": ("error_injection",),
            "settings": {"rome": {"steps": 4, "clamp": 40.0, "lr": 1.0}},
            "windows": (1,),
            "out": str(tmp_path / "other"),
        }
    )
    edits = Experiment(config).run().frame()
    assert edits["rewrite"].mean() == pytest.approx(row["rewrite"], rel=1e-4)
    assert edits["neighborhood"].mean() == pytest.approx(row["neighborhood"], rel=1e-4)


def test_it_goes_on_where_it_was_stopped(lab):
    whole = lab().run().edits.drop(columns="seconds")
    for shard in sorted((lab().run().path / "edits").iterdir())[::2]:
        shard.unlink()
    assert len(loc_edit.load_run(lab().config.out).edits) < len(whole)
    pd.testing.assert_frame_equal(lab().run().edits.drop(columns="seconds"), whole)


def test_the_layer_is_a_third_of_the_way_up(lab, tiny):
    assert lab(layers=None).setup.layers == [tiny.cfg.n_layers // 3]


@pytest.mark.parametrize(
    ("grid", "options", "words"),
    [
        (GRID, {"layers": (0, 1)}, r"layers \[0, 1\]: settings are tuned at one layer"),
        ({"rome": {"clamp": [1.0]}}, {}, "method 'finetune-1': the grid has no values"),
        ({**GRID, "rome": {}}, {}, "method 'rome': the grid has no values"),
        ({**GRID, "rome": {"clamp": 4.0}}, {}, "expected a list of values, got clamp = 4.0"),
        ({**GRID, "rome": {"clmp": [4.0]}}, {}, "grid of rome: .*got clmp"),
        ({**GRID, "rome": {"clamp": ["a"]}}, {}, "grid of rome: .*expected clamp to be a number"),
        ({**GRID, "rome": {"clamp": [4.0, 4.0]}}, {}, "a value stands twice in clamp"),
    ],
)
def test_refusals(lab, grid, options, words):
    with pytest.raises(BadConfig, match=words):
        lab(grid, **options)


def test_the_grids_of_the_package_fit_the_methods():
    for name, grid in tuning.grids().items():
        config = ExperimentConfig(methods=("rome", "memit", "finetune-1", "finetune-5"), layers=(1,))
        assert len(Tuning(config, grid).cells) > 8, name
