"""The ready configurations of scripts/experiments: each can be read, and is the experiment that its name says."""

from pathlib import Path

import pytest

from loc_edit import names
from loc_edit.editing.settings import FinetuneSettings, MemitSettings, RomeSettings
from loc_edit.experiment.config import NAMED, ExperimentConfig
from loc_edit.facts.download import PUBLIC
from loc_edit.keys.corpora import open_corpus

PROBLEMS = tuple(names.PROBLEMS)

FOLDER = Path(__file__).parents[2] / "scripts" / "experiments"
FILES = sorted(FOLDER.glob("*.toml"))
STUDY = ("rome", "memit", "finetune-1", "finetune-5")


def config(name):
    return ExperimentConfig.from_toml(FOLDER / f"{name}.toml")


def test_there_are_files_and_no_other_than_these():
    of_the_paper, of_the_builtin_model = ["paper_gpt2xl", "paper_gptj"], ["full", "localizers", "sequence", "small"]
    names = [
        "after_edits",
        *(f"builtin_{name}" for name in of_the_builtin_model),
        "erasure",
        "gemma3",
        *of_the_paper,
        "planted",
        "smoke",
        "smollm2",
    ]
    assert [path.stem for path in FILES] == names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_can_be_read_and_says_what_it_is(path, tmp_path):
    read = ExperimentConfig.from_toml(path)
    assert path.read_text(encoding="utf-8").startswith("# ")
    (tmp_path / "again.toml").write_text(read.to_toml(), encoding="utf-8")
    assert ExperimentConfig.from_toml(tmp_path / "again.toml") == read


@pytest.mark.parametrize(("file", "name"), [("builtin_small", "default"), ("builtin_full", "full"), ("smoke", "smoke")])
def test_those_of_the_named_configurations_equal_them(file, name):
    assert config(file) == ExperimentConfig(**NAMED[name])


def test_each_writes_to_a_folder_of_its_own():
    assert len({ExperimentConfig.from_toml(path).out for path in FILES}) == len(FILES)


@pytest.mark.parametrize("name", ["paper_gptj", "paper_gpt2xl"])
def test_the_study_s_facts_methods_and_corpus(name):
    found = config(name)
    assert found.data == "counterfact"
    assert found.data in PUBLIC
    assert found.facts is None, "a number would take facts spread over the relations, not the first ones"
    assert found.methods == STUDY
    assert {method.partition("-")[0] for method in found.methods} == {"finetune", "rome", "memit"}
    assert (found.noise_samples, found.site, found.essence) == (10, "mlp_out", True)
    assert open_corpus(found.corpus).name == found.corpus
    assert (found.data_limit, found.known) == (2000, True)


def test_the_study_of_localizers():
    found = config("builtin_localizers")
    assert (found.localizers, found.problems, found.methods) == (tuple(names.LOCALIZERS), PROBLEMS, STUDY)
    assert found.facts >= 200


def test_a_study_that_was_fixed_before_the_last_localizers_came_keeps_to_the_ten_it_had():
    later = {"relp", "layer_integrated_gradients", "logit_lens", "tuned_lens"}
    assert set(names.LOCALIZERS) - set(config("smollm2").localizers) == later


def test_what_is_asked_after_edits():
    found = config("after_edits")
    assert (found.methods, found.facts, found.layers) == (STUDY, 100, None)
    assert found.scores == ("generation", "survival", "movement")
    assert set(found.windows) == {1, 5}, "the edited model is traced with window 1"


def test_the_sequence_of_edits():
    found = config("builtin_sequence")
    assert found.methods == ("rome", "memit", "alphaedit", "finetune-1")
    assert found.sequence == found.facts == 100
    assert len(found.layers) == 3
    assert not found.localizers


def test_the_study_on_gpt_j():
    found = config("paper_gptj")
    assert "gpt-j" in found.model
    assert found.problems == PROBLEMS
    assert found.windows == (1, 3, 5, 10)
    assert sorted(found.layers) == sorted([0, 4, 8, 12, 16, 20, 24, 27, 5])
    assert float(found.noise) == 0.094
    eps = {(m, p): found.settings_of(m, p).eps for m in ("finetune-1", "finetune-5") for p in PROBLEMS}
    assert [eps["finetune-1", p] for p in PROBLEMS] == [1e-4, 1e-5, 1e-5, 1e-5, 1e-4]
    assert [eps["finetune-5", p] for p in PROBLEMS] == [2e-5, 2e-5, 1e-5, 1e-5, 1e-4]
    rome = [found.settings_of("rome", p) for p in PROBLEMS]
    common = {"lr": 0.5, "decay": 0.5, "clamp": 4.0}
    assert rome[0] == RomeSettings(steps=20, kl=1.0, **common)
    assert rome[1] == rome[2] == rome[3] == RomeSettings(steps=20, kl=0.0625, **common)
    assert rome[4] == RomeSettings(steps=25, kl=0.0625, **common)
    memit = {"steps": 25, "lr": 0.5, "decay": 0.5, "clamp": 0.75, "moment_weight": 15000.0}
    assert found.settings_of("memit", "error_injection") == MemitSettings(kl=0.9, **memit)
    assert found.settings_of("memit", "fact_erasure") == MemitSettings(kl=0.0625, **memit)


def test_the_study_on_gpt2_xl():
    found = config("paper_gpt2xl")
    assert found.model == "gpt2-xl"
    assert found.problems == ("error_injection", "fact_forcing")
    assert found.windows == (10,)
    assert sorted(found.layers) == sorted([*range(0, 45, 4), 47, 17])
    assert float(found.noise) == 0.1
    finetune = {(m, p): found.settings_of(m, p) for m in ("finetune-1", "finetune-5") for p in found.problems}
    assert finetune["finetune-1", "error_injection"] == FinetuneSettings(eps=1e-3)
    assert finetune["finetune-5", "error_injection"] == FinetuneSettings(eps=1e-4)
    assert finetune["finetune-1", "fact_forcing"] == FinetuneSettings(eps=5e-4, steps=50)
    assert finetune["finetune-5", "fact_forcing"] == FinetuneSettings(eps=5e-5, steps=50)
    for problem in found.problems:
        assert found.settings_of("rome", problem) == RomeSettings()
        assert found.settings_of("memit", problem) == MemitSettings(steps=20, moment_weight=20000.0)


@pytest.mark.parametrize(("name", "n_layers", "facts"), [("smollm2", 30, 60), ("gemma3", 18, 30)])
def test_real_models_are_studied_on_known_facts_that_nothing_was_tuned_on(name, n_layers, facts):
    found = config(name)
    assert (found.facts, found.skip_facts, found.min_probability) == (facts, 20, 0.1)
    assert found.problems == ("error_injection", "fact_forcing")
    assert found.windows == (1, 5, 10)
    assert found.layers is not None
    assert found.layers[0] == 0
    assert n_layers - 4 < found.layers[-1] < n_layers
