"""The documentation names what exists, and its Python runs; `.ci/run` builds it with warnings as errors."""

import json
import os
import re
import shlex
import tomllib
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from commands import call

import loc_edit
from loc_edit.cli.contents import load
from loc_edit.cli.parsing import parse
from loc_edit.editing.contract import EDITORS
from loc_edit.editing.settings import SETTINGS
from loc_edit.experiment.plugins import load_plugins
from loc_edit.names import LOCALIZERS, METHODS, OWN_SCORES, PROBLEMS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "figures" / "README.md", *sorted(DOCS.glob("*.md"))]


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_every_public_name_stands_in_the_reference_once():
    named = re.findall(r"^\.\. auto\w+:: (\w+)$|^\.\. data:: (\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(a or b for a, b in named) == loc_edit.__all__


def test_every_page_is_in_the_contents():
    listed = set(re.findall(r"^\w+$", (DOCS / "index.md").read_text(), re.MULTILINE))
    assert {page.stem for page in DOCS.glob("*.md")} == listed | {"index"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_modules_functions_and_files_that_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"\bloc_edit\.(\w+(?:\.\w+)*)", text):
        first = name.split(".")[0]
        assert first in {*loc_edit.__all__, "json", "cli", "plugins"} or find_spec(f"loc_edit.{name}"), name
    for path in re.findall(r"`([\w-]+/[\w/.-]+\.(?:py|toml|md))`", text):
        assert (ROOT / path).exists() or (ROOT / "loc_edit" / path).exists(), path


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page):
    for path, _, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]+))?\)", page.read_text(encoding="utf-8")):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def anchors(page):
    """The anchors of a page's headings, as GitHub and MyST make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#{1,3} (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page):
    """The words of each `loc-edit` command in the shell blocks of a page, unless it takes a plug-in of the reader's."""
    for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in re.findall(r"(?:^|-- +|bin/|srun +)loc-edit (.*)$", block.replace("\\\n", " "), re.MULTILINE):
            words = shlex.split(line.partition(" | ")[0].partition(" > ")[0], comments=True)
            if "--plugin" not in words or (ROOT / words[words.index("--plugin") + 1]).exists():
                yield words


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_parse(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, *words in commands(page):
        defaults = {"experiment": loc_edit.ExperimentConfig()} if name in ("run", "plan") else {}
        assert parse(load(name), name, words, defaults), (name, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_configurations_of_a_page_have_keys_that_exist(page):
    for block in re.findall(r"^```toml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        assert set(tomllib.loads(block)) <= set(loc_edit.ExperimentConfig.model_fields)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_is_python(page):
    for block in python_blocks(page):
        compile(block, str(page), "exec")


def test_the_page_of_configuration_has_every_key():
    rows = re.findall(r"^\| (`.*?) \|", (DOCS / "configuration.md").read_text(), re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(loc_edit.ExperimentConfig.model_fields)


@pytest.mark.parametrize(
    ("page", "names"),
    [("localizers", LOCALIZERS), ("editing", PROBLEMS), ("editing", METHODS), ("measures", OWN_SCORES)],
)
def test_a_concept_page_explains_every_name(page, names):
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert not [name for name in names if not re.search(rf"`{name}(-\d)?`", text)]


def test_the_readme_fits_on_a_screen():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 90


@pytest.mark.slow
def test_the_lines_of_the_readme_run(capsys):
    (block,) = python_blocks(ROOT / "README.md")
    exec(block, {})
    assert "EditScore(rewrite=0.9" in capsys.readouterr().out


ELSEWHERE = {
    "benchmark.md": "minutes; tests/experiment/test_benchmark.py",
    "clusters.md": "wants a cluster",
    "explore.md": "serves a page until it is stopped; tests/explore",
    "extending.md": "the tests below",
    "own_model.md": "wants models of other places; tests/models",
}
"""Pages whose Python is not run as it stands, and why."""
INSTEAD = {
    'loc_edit.export(edit, "path/to/gpt2", "path/to/edited")': 'edit.save("again.safetensors")',
    "steps=50": "steps=2",
    'cells=["5f0c..."]': 'cells=list(run.cells("edits")["cell"][:1])',
}
"""What a reader puts in the place of an example."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """What a reader has after the README: its names, and a folder with a configuration and a run."""
    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        model, facts = loc_edit.load_model("builtin"), loc_edit.load_facts("builtin")
        fact, other = facts[1], facts[2]
        prompts = [loc_edit.encode(model, fact), loc_edit.encode(model, other)]
        noises = [loc_edit.subject_noise(model, prompt, scale="s3", facts=facts, samples=2) for prompt in prompts]
        texts = [f"{some.prompt} {some.target_true}." for some in facts]
        stats = loc_edit.key_stats(model, [1, 2, 3], texts, tokens=2000)
        request, other_request = (loc_edit.pose(some, "error_injection", model) for some in (fact, other))
        Path("my.toml").write_text(
            "facts = 4\nlayers = [1, 3]\nlocalizers = ['causal_tracing', 'attribution', 'random']\nessence = false\n"
            "corpus_tokens = 2000\nworkers = 1\nout = 'runs/demo'\n"
        )
        loc_edit.Experiment.from_toml("my.toml").run()
        for name in ("localizers", "mine"):
            Path("runs", name).symlink_to("demo")
        for name in ("mine.json", "counterfact.json"):
            Path(name).write_text(json.dumps([asdict(some) for some in facts[:100]]))
        Path("texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        yield {
            "loc_edit": loc_edit, "model": model, "facts": facts, "fact": fact, "prompt": prompts[0],
            "prompts": prompts, "targets": [fact.target_true, other.target_true], "noise": noises[0], "noises": noises,
            "stats": stats, "contexts": ["{}"], "request": request, "other_request": other_request,
            "edit": loc_edit.rome(model, request, layer=2, stats=stats, contexts=["{}"]),
            "trace": loc_edit.trace(model, prompts[0], fact.target_true, noise=noises[0], window=5),
        }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("page", [page.name for page in sorted(DOCS.glob("*.md")) if python_blocks(page)])
def test_the_python_of_a_page_runs(page, reader):
    if page in ELSEWHERE:
        pytest.skip(ELSEWHERE[page])
    before, names = loc_edit.fingerprint(reader["model"]), dict(reader)
    for block in python_blocks(DOCS / page):
        for example, own in INSTEAD.items():
            block = block.replace(example, own)
        exec(block, names)
    assert loc_edit.fingerprint(reader["model"]) == before


WANTS = {
    "explore": "serves a page until it is stopped; tests/explore",
    "benchmark": "minutes; tests/experiment/test_benchmark.py",
    "ray": "wants a cluster; tests/experiment/test_ray.py",
    "gpt2": "wants a network",
    "smollm2": "wants a download; tests/models/test_real_models.py",
    "gemma3-270m": "wants a download; tests/models/test_real_models.py",
    "DIR": "wants a model of the reader's",
    "scripts/experiments/builtin_sequence.toml": "a minute; tests/experiment/test_sequence.py",
    "runs/gpt2-xl": "wants the run of a second model; tests/analysis/test_analyze.py",
}
"""Words of commands that are not run, and why."""
LESS = {
    "run": "--facts 2 --layers 1 3 --corpus-tokens 2000 --no-essence --workers 1",
    "edit": "--corpus-tokens 2000",
    "choose-layer": "--facts 3 --layers 1 3",
    "plant": "--facts 2 --kept 4 --layers 1 --steps 100",
    "stats": "--tokens 2000",
    "sequences": "--sequence 2",
}
"""Options that make commands quick, by the name of the command or of the page."""
MINUTES = {"commands", "configuration", "erasure", "gallery", "localizers"}
"""Pages whose commands take a minute and more all the same."""


@pytest.mark.slow
@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.long if page.stem in MINUTES else (), id=page.stem)
        for page in PAGES
        if any(commands(page))
    ],
)
def test_the_commands_of_a_page_run(page, reader, monkeypatch):
    for module in ("figures.paper", "comparisons"):  # pictures take half of the time, and have tests of their own
        monkeypatch.setattr(f"loc_edit.analysis.{module}.save", lambda figure, data, folder, name: [])
    ran = []
    for name, *words in commands(page):
        if WANTS.keys() & {name, *words}:
            continue
        words = [os.environ["LOC_EDIT_CACHE"] if word == "~/.cache/loc_edit" else word for word in words]
        words = [str(ROOT / word) if word.startswith(("scripts/", "examples/")) else word for word in words]
        words += [*LESS.get(name, "").split(), *LESS.get(page.stem, "").split()]
        words += ["--out", f"runs/{page.stem}-{len(ran)}"] if name == "run" else []
        result = call(name, *words)
        assert result.status == 0, (name, words, result.err)
        ran.append(name)
    if not ran:
        pytest.skip("wants what is not here")


@pytest.fixture
def tutorials(tmp_path, monkeypatch):
    """The files that a reader of the tutorials saves, in a folder; the shell blocks of the page."""
    text = (DOCS / "extending.md").read_text(encoding="utf-8")
    for name, code in re.findall(r"Save it as `(\w+\.py)`:\n\n```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(code)
    (scored,) = [block for block in python_blocks(DOCS / "extending.md") if "def entropy" in block]
    (tmp_path / "my_file.py").write_text(f"import loc_edit\n\n{scored}")
    monkeypatch.chdir(tmp_path)
    return [shlex.split(line) for line in re.findall(r"^loc-edit (.*)$", text, re.MULTILINE)]


@pytest.mark.slow
@pytest.mark.usefixtures("registries")
def test_the_commands_of_the_tutorials_work(tutorials, tmp_path):
    (tmp_path / "grid.toml").write_text("[logit_push]\nstrength = [10.0, 30.0]\n")
    assert [command[0] for command in tutorials] == ["trace", "run", "edit", "run", "tune", "run"]
    less = ["--facts", "2", "--layers", "1", "3", "--corpus-tokens", "2000"]
    for i, command in enumerate(tutorials):
        command[0] = "plan" if command[0] == "run" and i > 1 else command[0]  # the grid's one run is enough
        more = {"run": less, "plan": less, "edit": less[-2:], "tune": less[:2]}.get(command[0], [])
        result = call(*command, *more)
        assert result.status == 0, result.err
    rows = loc_edit.load_run(tmp_path / "runs" / "mine")
    assert set(rows.traces["localizer"]) == {"causal_tracing", "output_change", "random"}


@pytest.mark.usefixtures("registries")
def test_the_localizer_and_the_editor_of_the_tutorials_do_what_they_say(tutorials):
    load_plugins(["output_change.py", "logit_push.py"])
    model, facts = loc_edit.load_model("builtin"), loc_edit.load_facts("builtin")[:30]
    fact, layer = facts[1], 2
    prompt = loc_edit.encode(model, fact)
    noise = loc_edit.subject_noise(model, prompt, scale="s3", facts=facts)
    trace = loc_edit.localize(model, prompt, fact.target_true, noise=noise, localizer="output_change", window=1)
    assert trace.effect.max() == pytest.approx(trace.p_clean - trace.p_corrupted, rel=1e-5)
    assert 0 < trace.effect[0, prompt.last_subject] < trace.effect.max()

    requests = [loc_edit.pose(some, "error_injection", model) for some in (fact, facts[2])]
    edit, _ = EDITORS["logit_push"](model, requests, [layer], settings=SETTINGS["logit_push"]())
    name = f"blocks.{layer}.hook_mlp_out"
    _, before = model.run_with_cache(prompt.tokens[None], names_filter=name)
    with edit.applied(model):
        _, after = model.run_with_cache(prompt.tokens[None], names_filter=name)
    added = (after[name] - before[name])[0, prompt.last_subject]
    direction = model.W_U[:, requests[0].target_tokens[0]]
    torch.testing.assert_close(added, 30.0 * direction / direction.norm(), rtol=1e-3, atol=1e-3)
