"""The experiment's configuration: read from TOML, checked, resolved."""

import pytest
from pydantic import ValidationError

from loc_edit import names
from loc_edit.cli.contents import load
from loc_edit.cli.parsing import parse
from loc_edit.editing.settings import FinetuneSettings, MemitSettings, RomeSettings, presets, resolve_settings
from loc_edit.experiment.config import NAMED, BadConfig, ExperimentConfig

PROBLEMS = tuple(names.PROBLEMS)


def read(path, text):
    path.write_text(text, encoding="utf-8")
    return ExperimentConfig.from_toml(path)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "my.toml"


def test_defaults_are_the_default_run():
    config = ExperimentConfig()
    assert config == ExperimentConfig.from_toml("default")
    assert (config.model, config.data, config.layers) == ("builtin", "builtin", None)
    assert (config.methods, config.problems, config.windows) == (("rome",), ("error_injection",), (5,))
    assert config.facts >= 100


@pytest.mark.parametrize("name", NAMED)
def test_named_configurations_are_sound_and_survive_toml(name, file):
    config = ExperimentConfig.from_toml(name)
    assert read(file, config.to_toml()) == config


def test_the_full_one_is_the_whole_grid():
    full = ExperimentConfig.from_toml("full")
    assert full.facts is None
    assert full.problems == PROBLEMS
    assert full.methods == ("rome", "memit", "finetune-1", "finetune-5")
    assert full.windows == (1, 3, 5, 10)


@pytest.mark.usefixtures("registries")
def test_every_field_survives_toml(file, tmp_path):
    (tmp_path / "scored.py").write_text("import loc_edit\nloc_edit.scorer('scored')(lambda model, fact: 0.0)\n")
    config = ExperimentConfig(
        plugins=(str(tmp_path / "scored.py"),),
        scores=("scored",),
        model="gpt2-xl",
        edit="planted.safetensors",
        data='a "quoted" path.json',
        data_limit=7,
        skip_invalid=True,
        known=True,
        min_probability=0.25,
        skip_facts=2,
        facts=3,
        layers=(2, 0),
        methods=("memit-3", "finetune-5"),
        problems=("fact_erasure", "fact_forcing"),
        windows=(1, 10),
        localizer_windows=(3,),
        localizers=("random", "direct"),
        sequence=3,
        site="attn_out",
        noise="0.094",
        noise_samples=2,
        corpus="c.txt",
        corpus_tokens=9,
        ridge=0.5,
        preset="gpt-j",
        settings={"finetune-5": {"eps": 0.5, "fact_forcing": {"steps": 2}}},
        essence=False,
        seed=5,
        chunk=1,
        workers=2,
        engine="ray",
        address="auto",
        gpus=0.5,
        mirror="s3://bucket/run",
        out="x",
    )
    changed = {
        name for name in ExperimentConfig.model_fields if getattr(config, name) != getattr(ExperimentConfig(), name)
    }
    assert changed == set(ExperimentConfig.model_fields)
    assert read(file, config.to_toml()) == config


def test_all_facts_can_be_asked_for_in_a_file_and_on_the_command_line(file):
    assert read(file, 'facts = "all"').facts is None
    for command, defaults, facts in (("run", {"experiment": ExperimentConfig()}, 100), ("facts", {}, None)):
        option = "--facts" if command == "run" else "-n"
        for words, expected in (([option, "all"], None), ([option, "7"], 7), ([], facts)):
            values = parse(load(command), command, words, defaults)
            assert (values["experiment"].facts if command == "run" else values["n"]) == expected


def test_noise_may_be_a_number(file):
    assert read(file, "noise = 0.094").noise == "0.094"
    assert read(file, 'noise = "s2.5"').noise == "s2.5"


def test_a_configuration_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        ExperimentConfig().facts = 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fatcs = 3", ["fatcs", "did you mean 'facts'"]),
        ("zzz = 3", ["zzz", "facts", "windows"]),
        ('facts = "some"', ["facts"]),
        ("facts = 0", ["facts", "at least 1"]),
        ("chunk = 0", ["chunk", "at least 1"]),
        ("noise_samples = -1", ["noise_samples", "at least 1"]),
        ("noise = nan", ["noise", "got nan"]),
        ("windows = [5, 0]", ["windows", "at least 1"]),
        ("windows = []", ["windows"]),
        ("windows = [5, 5]", ["windows", "twice"]),
        ("layers = []", ["layers", "at least one"]),
        ("layers = [-1]", ["layers", "at least 0"]),
        ("layers = [1, 1]", ["layers", "twice"]),
        ('layers = "1"', ["layers"]),
        ("methods = []", ["methods"]),
        ('methods = ["roma"]', ["'roma'", "rome", "memit"]),
        ('methods = ["rome-5"]', ["'rome-5'"]),
        ('methods = ["finetune", "finetune-1"]', ["finetune-1", "twice"]),
        ('problems = ["fact_erasur"]', ["fact_erasur", "did you mean 'fact_erasure'"]),
        ("problems = []\nlocalizers = []", ["no localizers and no problems"]),
        ('preset = "gptj"', ["gptj", "did you mean 'gpt-j'"]),
        ("[settings.roma]\nsteps = 1", ["'roma'"]),
        ("[settings.rome]\nstep = 1", ["settings of rome", "step", "steps"]),
        ("[settings.memit.fact_forcing]\nstep = 1", ["settings of memit", "step"]),
        ('[settings.rome]\nsteps = "x"', ["settings of rome", "steps", "int"]),
        ("[settings.rome.fact_forcin]\nsteps = 1", ["settings.rome", "fact_forcin", "did you mean 'fact_forcing'"]),
        ("[settings]\nrome = 3", ["settings", "'rome': 3"]),
        ("facts = ", ["no TOML", "Invalid value"]),
        ('out = "s3://bucket/run"', ["out", "a folder on a disk", "mirror"]),
    ],
)
def test_an_error_names_the_file_and_the_key(file, text, words):
    with pytest.raises(BadConfig) as caught:
        read(file, text)
    for word in (str(file), *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(file):
    file.write_bytes(b"\xff\xfe = 3")
    with pytest.raises(BadConfig, match="no TOML"):
        ExperimentConfig.from_toml(file)


def test_an_absent_file_is_refused_with_the_named_ones(tmp_path):
    with pytest.raises(BadConfig, match=r"absent.*default, smoke, full"):
        ExperimentConfig.from_toml(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        ("builtin", "builtin"),
        ("EleutherAI/gpt-j-6B", "gpt-j"),
        ("gpt-j-6B", "gpt-j"),
        ("/models/GPTJ-6b", "gpt-j"),
        ("openai-community/gpt2-xl", "gpt2-xl"),
        ("smollm2", "smollm2"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2"),
        ("gpt2", None),
        ("gpt2-medium", None),
        ("/gpt-j/llama", None),
    ],
)
def test_the_preset_goes_by_the_model(model, preset):
    config = ExperimentConfig(model=model)
    table = presets()[preset] if preset else {}
    for method in ("rome", "memit", "finetune-1", "finetune-5"):
        for problem in PROBLEMS:
            assert config.settings_of(method, problem) == resolve_settings(method, problem, table)


def test_own_settings_win_over_the_preset_s():
    settings = {"rome": {"steps": 3}, "finetune-5": {"fact_forcing": {"eps": 0.25}}}
    config = ExperimentConfig(preset="gpt-j", settings=settings)
    assert config.settings_of("rome", "error_injection") == RomeSettings(steps=3, kl=1.0)
    assert config.settings_of("rome", "fact_forcing").steps == 3
    assert config.settings_of("finetune-5", "fact_forcing") == FinetuneSettings(eps=0.25, steps=50)
    assert config.settings_of("finetune-1", "fact_forcing") == FinetuneSettings(eps=1e-4, steps=50)
    assert config.settings_of("memit", "fact_forcing") == MemitSettings()


def test_no_preset_means_the_defaults():
    config = ExperimentConfig(preset="none")
    assert config.settings_of("finetune-1", "error_injection") == FinetuneSettings()
    assert ExperimentConfig().settings_of("finetune-1", "error_injection") != FinetuneSettings()
