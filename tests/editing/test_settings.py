"""Hyperparameters: their defaults, how they are resolved, and the presets against the numbers of the study."""

from dataclasses import FrozenInstanceError

import pytest

import loc_edit
from loc_edit.editing.settings import SETTINGS, FinetuneSettings, MemitSettings, RomeSettings, presets, resolve_settings
from loc_edit.experiment.config import ExperimentConfig
from loc_edit.names import PROBLEMS, parse_method

# Hase et al. 2023, appendix B: eps of FT-1 and FT-5, steps of FT, what ROME and MEMIT have instead of their defaults.
GPT_J = {
    "error_injection": (1e-4, 2e-5, 25, {"kl": 1.0}, {"kl": 0.9}),
    "tracing_reversal": (1e-5, 2e-5, 25, {}, {}),
    "fact_erasure": (1e-5, 1e-5, 25, {}, {}),
    "fact_amplification": (1e-5, 1e-5, 25, {}, {}),
    "fact_forcing": (1e-4, 1e-4, 50, {"steps": 25}, {}),
}
GPT2_XL = {
    "error_injection": (1e-3, 1e-4, 25),
    "fact_forcing": (5e-4, 5e-5, 50),
}


def preset(name, method, problem):
    return resolve_settings(method, problem, presets()[name])


def test_defaults_are_the_studys():
    assert RomeSettings() == RomeSettings(steps=20, lr=0.5, kl=0.0625, decay=0.5, clamp=4.0)
    assert MemitSettings() == MemitSettings(steps=25, lr=0.5, kl=0.0625, decay=0.5, clamp=0.75, moment_weight=15000.0)
    assert FinetuneSettings() == FinetuneSettings(steps=25, lr=5e-4, eps=1e-4, bias=True)


@pytest.mark.parametrize("record", [RomeSettings(), MemitSettings(), FinetuneSettings()])
def test_settings_are_frozen(record):
    with pytest.raises(FrozenInstanceError):
        record.steps = 1


@pytest.mark.parametrize("problem", GPT_J)
def test_the_preset_of_gpt_j_is_the_studys(problem):
    eps_1, eps_5, steps, rome, memit = GPT_J[problem]
    assert preset("gpt-j", "finetune-1", problem) == FinetuneSettings(eps=eps_1, steps=steps, lr=5e-4)
    assert preset("gpt-j", "finetune-5", problem) == FinetuneSettings(eps=eps_5, steps=steps, lr=5e-4)
    assert preset("gpt-j", "rome", problem) == RomeSettings(
        **({"steps": 20, "lr": 0.5, "kl": 0.0625, "decay": 0.5, "clamp": 4.0} | rome)
    )
    expected = {"steps": 25, "lr": 0.5, "kl": 0.0625, "decay": 0.5, "clamp": 0.75, "moment_weight": 15000.0}
    assert preset("gpt-j", "memit", problem) == MemitSettings(**(expected | memit))


@pytest.mark.parametrize("problem", GPT2_XL)
def test_the_preset_of_gpt2_xl_is_the_studys(problem):
    eps_1, eps_5, steps = GPT2_XL[problem]
    assert preset("gpt2-xl", "finetune-1", problem) == FinetuneSettings(eps=eps_1, steps=steps)
    assert preset("gpt2-xl", "finetune-5", problem) == FinetuneSettings(eps=eps_5, steps=steps)
    assert preset("gpt2-xl", "rome", problem) == RomeSettings(20, 0.5, 0.0625, 0.5, 4.0)
    assert preset("gpt2-xl", "memit", problem) == MemitSettings(20, 0.5, 0.0625, 0.5, 0.75, 20000.0)


@pytest.mark.parametrize("name", presets())
@pytest.mark.parametrize("method", ["rome", "memit", "finetune-1", "finetune-5"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_preset_resolves_to_the_method_s_own_record(name, method, problem):
    assert type(preset(name, method, problem)) is SETTINGS[parse_method(method)[0]]


def test_presets_name_known_methods_and_problems_only():
    for table in presets().values():
        for method, entry in table.items():
            parse_method(method)
            assert {key for key, value in entry.items() if isinstance(value, dict)} <= set(PROBLEMS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rome", ("rome", 1)),
        ("rome-1", ("rome", 1)),
        ("memit", ("memit", 5)),
        ("memit-3", ("memit", 3)),
        ("finetune", ("finetune", 1)),
        ("finetune-1", ("finetune", 1)),
        ("finetune-10", ("finetune", 10)),
    ],
)
def test_methods_are_parsed(name, expected):
    assert parse_method(name) == expected


@pytest.mark.parametrize("name", ["", "ROME", "rome-2", "memit-0", "finetune-x", "finetune--1", "ft", "finetune-1.5"])
def test_unknown_methods_are_refused_by_name(name):
    with pytest.raises(ValueError, match="method") as caught:
        parse_method(name)
    assert repr(name) in str(caught.value)


def test_later_and_narrower_tables_win():
    problem = "fact_forcing"

    def eps(*tables, method="finetune-5", problem=problem):
        return resolve_settings(method, problem, *tables).eps

    method = {"finetune": {"eps": 1.0}}
    window = {"finetune-5": {"eps": 2.0}}
    method_problem = {"finetune": {"eps": 1.0, problem: {"eps": 3.0}}}
    window_problem = {"finetune-5": {"eps": 2.0, problem: {"eps": 4.0}}}
    assert eps() == 1e-4
    assert eps(method) == 1.0
    assert eps(method | window) == 2.0
    assert eps(method | window, method="finetune-1") == 1.0
    assert eps(method_problem) == 3.0
    assert eps(method_problem, problem="fact_erasure") == 1.0
    assert eps(window_problem) == 4.0
    assert eps(window_problem, problem="fact_erasure") == 2.0
    assert eps(window_problem, method) == 1.0  # a later table wins, however wide its entry
    assert eps(method, window_problem) == 4.0
    assert resolve_settings("finetune-5", problem, {"finetune": {"lr": 7.0}}, window) == FinetuneSettings(
        lr=7.0, eps=2.0
    )


def test_resolving_leaves_the_tables_as_they_are():
    table = {"rome": {"steps": 3, "fact_erasure": {"steps": 4}}}
    resolve_settings("rome", "fact_erasure", table, {"rome": {"steps": 9}})
    assert table == {"rome": {"steps": 3, "fact_erasure": {"steps": 4}}}


@pytest.mark.parametrize("entry", [{"stepps": 1}, {"fact_erasure": {"stepps": 1}}])
def test_an_unknown_setting_is_refused_with_the_known_ones(entry):
    with pytest.raises(ValueError, match="stepps") as caught:
        resolve_settings("memit", "fact_erasure", {"memit": entry})
    for name in ("settings of memit", "steps", "lr", "kl", "decay", "clamp", "moment_weight"):
        assert name in str(caught.value)


def test_a_setting_of_another_method_is_unknown():
    with pytest.raises(ValueError, match="moment_weight"):
        resolve_settings("rome", "fact_erasure", {"rome": {"moment_weight": 1.0}})


@pytest.mark.parametrize(
    ("method", "values", "wanted"),
    [
        ("rome", {"steps": "many"}, "an integer"),
        ("rome", {"steps": 2.5}, "an integer"),
        ("rome", {"lr": "0.5"}, "a number"),
        ("finetune-5", {"bias": 1}, "True or False"),
        ("finetune-5", {"eps": True}, "a number"),
        ("memit", {"moment_weight": [1.0]}, "a number"),
    ],
)
def test_a_value_of_another_type_is_refused(method, values, wanted):
    with pytest.raises(ValueError, match=f"settings of {method}: expected {next(iter(values))} to be {wanted}.*, got "):
        resolve_settings(method, "fact_erasure", {method: values})


def test_a_whole_number_will_do_for_a_float():
    found = resolve_settings("rome", "fact_erasure", {"rome": {"clamp": 20}}).clamp
    assert (found, type(found)) == (20.0, float)


def test_tuned_settings_are_those_of_grids_and_the_defaults_for_an_unknown_model():
    tuned = loc_edit.tuned_settings("SmolLM2-135M", "finetune-1")
    assert tuned == ExperimentConfig(model="smollm2").settings_of("finetune-1", "error_injection")
    assert tuned != loc_edit.FinetuneSettings()
    assert loc_edit.tuned_settings("nobody's", "finetune-1") == loc_edit.FinetuneSettings()
    assert (
        loc_edit.tuned_settings("gpt-j-6b", "rome").kl != loc_edit.tuned_settings("gpt-j-6b", "rome", "fact_forcing").kl
    )
    with pytest.raises(ValueError, match="finetuned"):
        loc_edit.tuned_settings("smollm2", "finetuned")


def test_weight_decay_has_no_place_of_its_own():
    assert loc_edit.FinetuneSettings(1, 1e-4, 1e-3, False, weight_decay=0.5).weight_decay == 0.5
    with pytest.raises(TypeError):
        loc_edit.FinetuneSettings(1, 1e-4, 1e-3, False, 0.5)
