"""Plug-ins: a user's localizer, editor, problem and score are citizens of the grid, and cannot spoil it."""

import linecache
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pandas as pd
import pytest
import torch
from commands import call, message
from runs import assert_same_rows, edited

import loc_edit
from loc_edit import names
from loc_edit.analysis.regression.choices import layer_choices
from loc_edit.analysis.tables.summaries import mean_scores
from loc_edit.editing.contract import EDITORS
from loc_edit.editing.settings import SETTINGS
from loc_edit.experiment import plugins
from loc_edit.experiment.config import BadConfig, ExperimentConfig
from loc_edit.experiment.plugins import Plugin, load_plugins, to_send
from loc_edit.localization.contract import EFFECTS
from loc_edit.models.adapter import VERSION
from loc_edit.names import method_label, problem_label

pytestmark = pytest.mark.usefixtures("registries")

FILE = '''
"""A plug-in of each kind."""

from dataclasses import dataclass

import torch

import loc_edit


@loc_edit.localizer("depth")
def depth(question, *, slope=1.0, seed=0):
    """The deeper the more. Nothing else."""
    n, t = question.model.cfg.n_layers, len(question.prompt)
    return slope * torch.arange(1.0, n + 1)[:, None].expand(n, t) + seed


@dataclass(frozen=True)
class PushSettings:
    strength: float = 30.0
    twice: bool = False

    def __post_init__(self):
        if self.strength < 0:
            raise ValueError(f"expected a strength of at least 0, got {self.strength}")


@loc_edit.editor("push", settings=PushSettings, label="Push")
def push(model, requests, layer, *, settings):
    """The target's logit direction at the subject."""
    edits = []
    for request in requests:
        name = f"blocks.{layer}.mlp.hook_post"
        _, cache = model.run_with_cache(request.prompt.tokens[None], names_filter=name)
        key = cache[name][0, request.prompt.last_subject]
        right = settings.strength * model.W_U[:, request.target_tokens[0]]
        edits.append(loc_edit.Edit((loc_edit.WeightUpdate(layer, key[:, None] / key.square().sum(), right[None]),)))
    return edits


@loc_edit.problem("neighbor", label="Say a neighbor's")
def neighbor(fact, facts):
    """Say the object of the next fact in the data set."""
    if fact.fact_id == 3:
        raise loc_edit.NotEligible("fact 3 is the last one")
    return facts[fact.fact_id + 1].target_true


@loc_edit.scorer("length", low=0.0, high=10.0, better="low")
def length(model, fact, request):
    """How much longer all of W_out gets."""
    return model.W_out.norm().item() / 100 if request.objective == "raise" else 0.0
'''
ALL = {
    "localizers": ("causal_tracing", "depth"),
    "methods": ("rome", "push"),
    "problems": ("error_injection", "neighbor"),
    "scores": ("length",),
    "layers": (0, 1),
}


@pytest.fixture
def plugin(tmp_path):
    """(text, name) -> the path of a plug-in file with this text."""

    def write(text=FILE, name="mine.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return str(path)

    return write


def traces_of(run, localizer):
    return run.traces[run.traces["localizer"] == localizer]


@pytest.mark.slow
def test_all_four_kinds_are_in_rows_and_tables(lab, plugin):
    run = lab(plugins=(plugin(),), **ALL).run()
    assert names.LOCALIZERS["depth"].meaning == "The deeper the more"
    assert set(run.edits["method"]) == {"none", "rome", "push", "random_layer_rome", "random_layer_push"}
    assert set(run.edits["problem"]) == {"error_injection", "neighbor"}
    depth = traces_of(run, "depth")
    effects = (depth["p_restored"] - depth["p_corrupted"]).groupby(depth["layer"]).mean()
    assert effects.tolist() == pytest.approx([1, 2], abs=1e-5)
    skipped = run.edits.query("problem == 'neighbor' and fact_id == 3")
    assert set(skipped["status"]) == {"skipped"}
    assert skipped["reason"].str.contains("the last one").all()
    unedited = run.edits.query("method == 'none' and status == 'done'")
    assert (unedited["length"] == 0).all()
    pushed = run.edits.query("method == 'push' and status == 'done'")
    assert (pushed["length"] > 0).any()
    matrix = loc_edit.localizer_matrix(run, draws=20)
    assert set(matrix["localizer"]) == {"causal_tracing", "depth"}
    assert set(matrix["method"]) == {"rome", "push"}
    means = mean_scores(run.edits).set_index(["problem", "method", "layer", "outcome"])["mean"]
    assert means["error_injection", "push", 0, "length"] == pytest.approx(
        pushed.query("problem == 'error_injection' and layer == 0")["length"].mean()
    )
    assert method_label("push") == "Push"
    assert problem_label("neighbor") == "Say a neighbor's"


def test_an_edit_of_a_plug_in_says_what_it_is_about(lab, plugin, tiny, facts):
    load_plugins([plugin()])
    request = loc_edit.pose(facts[0], "error_injection", tiny)
    [edit] = EDITORS["push"](tiny, [request], [1], settings=SETTINGS["push"](strength=2.0))
    assert edit.about["method"] == "push"
    assert edit.about["settings"] == {"strength": 2.0, "twice": False}
    assert (edit.about["fact_id"], edit.about["layers"]) == (0, [1])
    assert edit.about["model"] == loc_edit.fingerprint(tiny)


@pytest.mark.slow
def test_a_resumed_run_computes_nothing_and_a_changed_file_all_of_its_own(lab, plugin, computed):
    lab(plugins=(plugin(),), **ALL).run()
    computed.clear()
    lab(plugins=(plugin(),), **ALL).run()
    assert computed == []
    lab(plugins=(plugin(FILE + "\n# another line\n"),), **ALL).run()
    words = {str(shard[2]) for shard in computed}
    assert words == {
        "depth, window 1",
        *(f"error_injection, {method}-1, layer {layer}" for method in ("rome", "push") for layer in (0, 1)),
        *(f"neighbor, {method}-1, layer {layer}" for method in ("rome", "push") for layer in (0, 1)),
    }, "all edits have the score, and Causal Tracing has nothing of the plug-in"


def test_an_edit_without_a_score_or_problem_of_a_plug_in_does_not_depend_on_its_file(lab, plugin, computed):
    options = ALL | {"scores": (), "problems": ("error_injection",)}
    lab(plugins=(plugin(),), **options).run()
    computed.clear()
    lab(plugins=(plugin(FILE + "\n# another line\n"),), **options).run()
    assert {str(shard[2]) for shard in computed} == {
        "depth, window 1",
        *(f"error_injection, push-1, layer {layer}" for layer in (0, 1)),
    }


@pytest.mark.slow
def test_rows_of_workers_are_those_of_one_process(plugin, tmp_path):
    options = {"facts": 4, "layers": (1,), "chunk": 2, "essence": False, "corpus_tokens": 2000} | {
        "plugins": (plugin(),),
        "methods": ("push",),
        "problems": ("error_injection", "fact_erasure"),
        "localizers": ("causal_tracing", "depth"),
        "scores": ("length",),
    }
    experiment = loc_edit.Experiment(ExperimentConfig(**options))
    alone = experiment.run(tmp_path / "alone")
    assert set(traces_of(alone, "depth")["fact_id"]) == set(alone.edits["fact_id"])
    assert_same_rows(alone, experiment.run(tmp_path / "two", workers=2))


def test_a_worker_elsewhere_runs_the_text_that_was_read_here(plugin):
    config = ExperimentConfig(plugins=(plugin(),), localizers=("depth",), methods=("push",))
    [sent] = to_send(config.used)
    assert isinstance(sent, Plugin)
    assert "The deeper the more" in sent.text.decode()
    del sys.modules[sent.origin.module], EFFECTS["depth"], names.LOCALIZERS["depth"]
    sent.load()
    assert EFFECTS["depth"]
    assert names.LOCALIZERS["depth"].origin.content == sent.origin.content


def test_what_is_defined_in_a_notebook_stays_in_its_process(lab, monkeypatch):
    cell = "def here(question):\n    return torch.ones(2, len(question.prompt))\nloc_edit.localizer('here')(here)\n"
    monkeypatch.setitem(linecache.cache, "<cell>", (len(cell), None, cell.splitlines(keepends=True), "<cell>"))
    exec(compile(cell, "<cell>", "exec"), {"__name__": "__main__", "torch": torch, "loc_edit": loc_edit})
    assert names.LOCALIZERS["here"].origin.name == "a notebook"
    experiment = lab(localizers=("causal_tracing", "here"), layers=(0,), facts=2)
    assert len(traces_of(experiment.run(), "here"))
    with pytest.raises(loc_edit.BadPlugin, match="localizer 'here' is defined in a notebook, where other processes"):
        to_send(experiment.config.used)
    assert experiment.default_workers() == 1
    with pytest.raises(
        loc_edit.BadPlugin, match="localizer 'nowhere': a worker has loaded its file, which did not define"
    ):
        plugins.check_defined({"localizers": ["here", "nowhere"]})


@pytest.mark.slow
def test_a_run_folder_is_read_without_its_plug_ins_and_never_executes_one(lab, plugin, tmp_path):
    marker = tmp_path / "executed"
    run = lab(plugins=(plugin(FILE + f"\nopen({str(marker)!r}, 'a').write('!')\n"),), **ALL).run()
    marker.unlink()
    code = (
        "import loc_edit, sys; run = loc_edit.load_run(sys.argv[1]); assert 'Push' in str(loc_edit.METHODS['push']); "
        "loc_edit.localizer_matrix(run, draws=20).to_csv(sys.argv[2]); print(loc_edit.SCORES['length'].better); "
        "print(loc_edit.ExperimentConfig(methods=('push',)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(run.path), str(tmp_path / "out.csv")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout == "low\n", ended.stderr
    assert "method 'push' is of a plug-in that is not loaded: name mine.py as plugin" in ended.stderr
    assert "depth" in (tmp_path / "out.csv").read_text()
    assert not marker.exists()


def test_one_fact_that_raises_is_a_reason_in_its_rows(lab, plugin):
    broken = FILE.replace(
        "    n, t = question",
        "    if question.prompt.fact_id == 1:\n        raise KeyError('no such fact')\n    n, t = question",
    )
    broken = broken.replace(
        "        name = f",
        "        if request.fact_id == 2:\n            raise TypeError('not this one')\n        name = f",
    )
    broken = broken.replace("    if fact.fact_id == 3:", "    1 / fact.fact_id\n    if fact.fact_id == 3:")
    broken = broken.replace(
        "    return model.W_out", "    if fact.fact_id == 0:\n        return 'long'\n    return model.W_out"
    )
    assert broken.count("\n") == FILE.count("\n") + 7
    run = lab(plugins=(plugin(broken),), **ALL).run()
    depth = traces_of(run, "depth")
    failed = depth["p_restored"].isna()
    assert set(depth.loc[failed, "fact_id"]) == {1}
    assert not depth.loc[depth["fact_id"] != 1, "p_restored"].isna().any()
    assert set(depth.loc[failed, "reason"]) == {"localizer 'depth', fact 1: KeyError: 'no such fact'"}
    pushed = run.edits.query("method == 'push' and problem == 'error_injection'")
    assert set(pushed.query("fact_id == 2")["reason"]) == {"editor 'push', fact 2: TypeError: not this one"}
    assert set(pushed.query("fact_id == 2")["status"]) == {"failed"}
    assert set(pushed.query("fact_id != 2")["status"]) == {"done"}
    [reason] = set(run.edits.query("problem == 'neighbor' and fact_id == 0")["reason"])
    assert reason == "problem 'neighbor', fact 0: ZeroDivisionError: division by zero"
    first = pushed.query("fact_id == 0")
    assert first["length"].isna().all()
    assert first["rewrite"].notna().all()
    [reason] = set(first["reason"])
    assert reason.startswith("length: Type")


RETURNED = {
    "None": "expected a tensor of floats of shape .layers, positions. = .2, 9., got NoneType",
    "torch.zeros(3, 9)": r"= .2, 9., got torch.float32 of shape .3, 9.",
    "torch.zeros(2, 9).long()": "got torch.int64",
    "torch.full((2, 9), torch.inf)": "expected numbers, got inf at layer 0, position 0",
}


@pytest.mark.parametrize(("returned", "said"), RETURNED.items())
def test_a_localizer_that_returns_no_grid_is_named(tiny, facts, returned, said):
    @loc_edit.localizer("mine")
    def mine(question):
        return eval(returned.replace("9", str(len(question.prompt))))

    prompt = loc_edit.encode(tiny, facts[0])
    noise = loc_edit.subject_noise(tiny, prompt, scale=1.5, samples=2)
    with pytest.raises(loc_edit.BadPlugin, match=f"localizer 'mine', fact 0: .*{said.replace('9', str(len(prompt)))}"):
        loc_edit.localize(tiny, prompt, "Paris", noise=noise, localizer="mine")


def test_a_localizer_of_many_facts_is_checked_as_one_of_one(tiny, facts):
    @loc_edit.localizer("mine", batched=True)
    def mine(questions):
        sizes = [[(2, len(question.prompt)) for question in same_fact] for same_fact in questions.each()]
        if any(fact.prompt.fact_id == 1 for fact in questions.facts):
            return [[torch.ones(3, 3) for _ in same_fact] for same_fact in sizes]
        return [[torch.full(size, float(len(sizes))) for size in same_fact] for same_fact in sizes]

    prompts = [loc_edit.encode(tiny, fact) for fact in facts[:3]]
    noises = [loc_edit.subject_noise(tiny, prompt, scale=1.5, samples=2) for prompt in prompts]
    targets, options = [fact.target_true for fact in facts[:3]], {"localizer": "mine", "windows": (1, 2)}
    traces = loc_edit.localize_many(tiny, prompts, targets, noises=noises, **options)
    assert [[bool(trace.reason) for trace in of_fact] for of_fact in traces] == [[False] * 2, [True] * 2, [False] * 2]
    assert "fact 1: expected a tensor" in traces[1][1].reason
    assert traces[1][0].is_nan
    torch.testing.assert_close(traces[0][0].effect, torch.ones_like(traces[0][0].effect))


def test_a_localizer_that_leaves_a_hook_ends_the_run(make_model, facts):
    model = make_model()

    @loc_edit.localizer("mine")
    def mine(question):
        question.model.add_hook("blocks.0.hook_mlp_out", lambda value, hook: value)
        return torch.zeros(2, len(question.prompt))

    prompt = loc_edit.encode(model, facts[0])
    noise = loc_edit.subject_noise(model, prompt, scale=1.5, samples=2)
    with pytest.raises(loc_edit.ModelChanged, match="localizer 'mine' left 1 hooks"):
        loc_edit.localize(model, prompt, "Paris", noise=noise, localizer="mine")


@dataclass(frozen=True)
class NoSettings:
    """None."""


EDITS = {
    "[]": "expected a list of 1 edits, got 0",
    "None": "expected a list of 1 edits, got NoneType",
    "[model.W_out[1]]": "expected loc_edit.Edit objects, got Tensor",
    "[loc_edit.Edit((loc_edit.WeightUpdate(0, full=model.W_out[0]),))]": r"changes of the layers \[1\], got .* \[0\]",
    "[loc_edit.Edit((loc_edit.WeightUpdate(1, full=model.W_out[1].T),))]": "expected shape .24, 16. of W_out",
    "[loc_edit.Edit((loc_edit.WeightUpdate(1, full=model.W_out[1] / 0),))]": "got NaN or infinity in 'full' of layer 1",
    "1 / 0": "ZeroDivisionError",
}


@pytest.mark.parametrize(("returned", "said"), EDITS.items())
def test_an_editor_that_returns_no_edit_is_named(tiny, facts, returned, said):
    @loc_edit.editor("mine", settings=NoSettings)
    def mine(model, requests, layers, *, settings):
        return eval(returned)

    request = loc_edit.pose(facts[0], "error_injection", tiny)
    with pytest.raises(loc_edit.editing.value.EditFailed, match=f"editor 'mine', fact 0: .*{said}"):
        EDITORS["mine"](tiny, [request], [1], settings=NoSettings())


def test_an_editor_that_writes_into_the_model_ends_the_run(make_model, facts):
    model = make_model()

    @loc_edit.editor("mine", settings=NoSettings)
    def mine(model, requests, layer, *, settings):
        with torch.no_grad():
            model.blocks[0].attn.W_Q.add_(1e-3)
        return [loc_edit.Edit(()) for _ in requests]

    weight = r"blocks.0.attn.W_Q" if VERSION < 4 else r"\w+\.(h\.)?0\.\S*attn\."
    with pytest.raises(loc_edit.ModelChanged, match=f"editor 'mine' changed {weight}"):
        EDITORS["mine"](model, [loc_edit.pose(facts[0], "error_injection", model)], [1], settings=NoSettings())


def test_an_editor_may_write_if_it_puts_everything_back(tiny, facts):
    @loc_edit.editor("mine", settings=NoSettings)
    def mine(model, requests, layer, *, settings):
        edit = loc_edit.Edit((loc_edit.WeightUpdate(layer, full=torch.ones_like(model.W_out[layer])),))
        with edit.applied(model):
            assert model.W_out[layer].mean() > 0.5
        return [edit for _ in requests]

    [edit] = EDITORS["mine"](tiny, [loc_edit.pose(facts[0], "error_injection", tiny)], [1], settings=NoSettings())
    assert edit.delta(1).mean() == 1


def test_an_editor_gets_what_its_signature_names(lab, tiny):
    given = {}

    @loc_edit.editor("mine", settings=NoSettings, window=2, contexts="memit")
    def mine(model, requests, layers, *, settings, stats, contexts):
        given.update(layers=layers, stats=stats, contexts=contexts)
        return [loc_edit.Edit(()) for _ in requests]

    run = lab(methods=("mine",), layers=(1,), facts=1).run()
    assert given["layers"] == [0, 1]
    assert given["contexts"][0] == "{}"
    assert given["stats"].layers
    assert set(run.edits.query("method == 'mine'")["window"]) == {2}
    assert names.METHODS["mine"].stats
    assert names.METHODS["mine"].contexts == "memit"


def test_names_that_collide_are_refused(plugin):
    with pytest.raises(
        loc_edit.BadPlugin, match=r"localizer 'attribution' of .*test_plugins: the name belongs to loc_edit"
    ):
        loc_edit.localizer("attribution")(lambda question: None)
    with pytest.raises(loc_edit.BadPlugin, match="score 'generation': the name belongs to loc_edit"):
        loc_edit.scorer("generation")(lambda model, fact: 0.0)
    with pytest.raises(loc_edit.BadPlugin, match="score 'generation_open'"):
        loc_edit.scorer("generation_open")(lambda model, fact: 0.0)
    with pytest.raises(loc_edit.BadPlugin, match="score 'rewrite': rows have a column of this name"):
        loc_edit.scorer("rewrite")(lambda model, fact: 0.0)
    with pytest.raises(loc_edit.BadPlugin, match="lower-case letters"):
        loc_edit.problem("Mine-1")(lambda fact: "x")
    with pytest.raises(loc_edit.BadPlugin, match="lower-case letters"):
        loc_edit.localizer("all")(lambda question: None)
    load_plugins([plugin()])
    load_plugins([plugin(FILE + "\n# the same file again\n")])
    with pytest.raises(loc_edit.BadPlugin, match=r"localizer 'depth' of .*other.py: the name belongs to .*mine.py"):
        load_plugins([plugin(FILE, "other.py")])


def test_one_measurement_gives_several_scores(lab, plugin, registries, caplog):
    text = """
        import loc_edit
        from loc_edit.names import Score

        def compare(before, after, model, fact, request):
            return {"gained": abs(after - before), "n": float(len(request.target)), "nothing": float("nan")}

        SIZES = {name: Score(name, 0.0, 1e9) for name in ("gained", "n", "nothing")}

        @loc_edit.scorer("sizes", compare=compare, scores=SIZES)
        def sizes(model, fact):
            return model.W_out.double().sum().item()
    """
    file = plugin(text)
    edits = edited(lab(plugins=(file,), scores=("sizes",), layers=(1,)).run())
    assert (edits["gained"] > 0).all()
    assert edits["n"].tolist() == [len(target) for target in edits["target"]]
    assert edits["nothing"].isna().all()
    assert set(edits["status"]) == {"done"}
    broken = plugin(text.replace('"n": float', '"m": float'), "broken.py")
    for name in ("gained", "n", "nothing"):
        names.SCORES.pop(name)
    reasons = edited(lab(plugins=(broken,), scores=("sizes",), layers=(1,)).run())["reason"]
    assert reasons.str.contains("sizes: expected the scores gained, n, nothing, got gained, m, nothing").all()
    warned = [record.getMessage() for record in caplog.records if "a score is not a number" in record.getMessage()]
    assert len(warned) == 1, "once, whatever the number of facts"


def test_options_and_settings_need_defaults_of_plain_types():
    with pytest.raises(loc_edit.BadPlugin, match="expected a default for steps"):
        loc_edit.localizer("mine")(lambda question, *, steps: None)
    with pytest.raises(loc_edit.BadPlugin, match="expected a bool, int, float or string as default of steps"):
        loc_edit.localizer("mine")(lambda question, *, steps=(1, 2): None)
    for record in (None, dict, dataclass(type("Thawed", (), {}))):
        with pytest.raises(loc_edit.BadPlugin, match="expected settings=, a frozen dataclass"):
            loc_edit.editor("mine", settings=record)(lambda model, requests, layers, *, settings: [])

    @dataclass(frozen=True)
    class Listed:
        rates: tuple[float, ...] = ()

    with pytest.raises(loc_edit.BadPlugin, match="rates has the type"):
        loc_edit.editor("mine", settings=Listed)(lambda model, requests, layers, *, settings: [])


def test_settings_of_a_plug_in_are_typed_checked_and_set(plugin, tmp_path):
    config = ExperimentConfig(plugins=(plugin(),), methods=("push",))
    assert config.settings_of("push", "error_injection").strength == 30.0
    assert config.with_settings(["push.strength=2"]).settings_of("push", "error_injection").strength == 2.0
    chosen = config.with_settings(["push.error_injection.twice=true"])
    assert chosen.settings_of("push", "error_injection").twice
    assert not chosen.settings_of("push", "fact_erasure").twice
    for bad, said in {
        "push.strength=fast": "expected strength to be a number, got 'fast'",
        "push.strenght=2": "expected strength, twice; got strenght",
        "push.strength=-1": "expected a strength of at least 0",
        "push": "expected METHOD.SETTING=VALUE",
        "nobody.strength=1": "method 'nobody'",
    }.items():
        with pytest.raises(BadConfig, match=said):
            config.with_settings([bad])
    file = tmp_path / "grid.toml"
    file.write_text(f'plugins = ["{plugin()}"]\nmethods = ["push"]\n[settings.push]\nstrength = 3\n')
    assert ExperimentConfig.from_toml(file).settings_of("push", "fact_erasure").strength == 3.0
    assert loc_edit.Experiment(config).config == ExperimentConfig.from_values(config.model_dump())


def test_settings_of_a_plug_in_are_tuned(lab, plugin):
    from loc_edit.experiment.tuning import Tuning, write

    config = lab(plugins=(plugin(),), methods=("push",), layers=(1,)).config
    tuning = Tuning(config, {"push": {"strength": [0.0, 5.0]}})
    tried, _ = write(tuning, tuning.run(), floor=0.0)
    assert tried["strength"].tolist() == [0.0, 5.0]
    assert tried["chosen"].sum() == 1


def test_installed_packages_offer_plug_ins(plugin, monkeypatch, tmp_path):
    plugin(name="offered.py")
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("offered", "offered", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == plugins.GROUP else [])
    plugins.load_installed.cache_clear()
    config = ExperimentConfig(scores=("length",), methods=("push",), localizers=("depth",))
    [sent] = to_send(config.used)
    assert sent.origin.module == "offered"
    assert "depth" not in ExperimentConfig(localizers="all").localizers, "`all` does not depend on what is installed"
    plugins.load_installed.cache_clear()
    del sys.modules["offered"]


def test_a_score_where_less_is_better_is_read_that_way(monkeypatch):
    rows = [
        {"problem": "p", "method": "rome", "window": 1, "fact_id": fact, "layer": layer, "trace": float(layer == 1)}
        | {"cost": 10.0 if layer == 0 else 2.0, "gained": -10.0 if layer == 0 else -2.0}
        for fact in range(8)
        for layer in (0, 1)
    ]
    monkeypatch.setitem(names.SCORES, "cost", names.Score("what it costs", 0.0, 10.0, "low"))
    costs, gains = (
        layer_choices(pd.DataFrame(rows), name, draws=20).set_index("choice") for name in ("cost", "gained")
    )
    assert costs.loc[["oracle", "one layer"], "mean"].tolist() == pytest.approx([2.0, 2.0])
    pd.testing.assert_series_equal(costs["difference"], gains["difference"])
    pd.testing.assert_series_equal(costs["mean"], -gains["mean"])


@pytest.mark.slow
def test_the_command_line_takes_plug_ins(plugin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = plugin()
    shown = call("trace", "--plugin", path, "--fact", 1, "--localizer", "depth", "--window", 1, "--samples", 2)
    assert shown.status == 0
    assert "depth: restored p" in shown.out
    options = ("--fact", 1, "--layer", 2, "--method", "push", "--set", "push.strength=5", "--corpus-tokens", 2000)
    edited = call("edit", "--plugin", path, *options)
    assert edited.status == 0
    assert "method='push'" in edited.out
    assert "nothing.py: No such file" in message(call("plan", "--plugin", "nothing.py"))
    bad = plugin("import loc_edit\n1 / 0\n", "bad.py")
    assert "bad.py: ZeroDivisionError: division by zero" in message(call("run", "--plugin", bad))
    assert "localizer 'nobody'" in message(call("run", "--localizers", "nobody"))
    assert "plug-in no_such_module: No module named" in message(call("run", "--plugin", "no_such_module"))
