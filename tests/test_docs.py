"""The documentation names what exists, and its Python runs; `.ci/run` builds it with warnings as errors."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import loc_edit
from loc_edit import names
from loc_edit.localization import registry
from loc_edit.names import Localizer, Method

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "figures" / "README.md", *sorted(DOCS.glob("*.md"))]
EXAMPLES = ("localization/output_change.py", "editing/logit_push.py")
"""Files that a reader of `extending.md` writes."""


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
        assert first in {*loc_edit.__all__, "json", "cli"} or find_spec(f"loc_edit.{name}"), name
    for path in re.findall(r"`([\w-]+/[\w/.-]+\.(?:py|toml|md))`", text):
        assert path in EXAMPLES or (ROOT / path).exists() or (ROOT / "loc_edit" / path).exists(), path
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_is_python(page):
    for block in python_blocks(page):
        compile(block, str(page), "exec")


def test_the_readme_fits_on_a_screen():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 90


@pytest.mark.slow
def test_the_lines_of_the_readme_run(capsys):
    (block,) = python_blocks(ROOT / "README.md")
    exec(block, {})
    assert "EditScore(rewrite=0.9" in capsys.readouterr().out


def test_the_examples_of_a_localizer_and_a_method_work(monkeypatch):
    examples = {}
    for block in python_blocks(DOCS / "extending.md"):
        exec(block, examples)
    monkeypatch.setitem(names.LOCALIZERS, "output_change", Localizer("how far the noise moves an output", "K + 1"))
    monkeypatch.setitem(registry.EFFECTS, "output_change", registry.one_by_one(examples["output_change"]))
    monkeypatch.setitem(names.METHODS, "logit_push", Method("Push", "the target's logit direction", one_layer=True))
    model, facts = loc_edit.load_model("builtin"), loc_edit.load_facts("builtin")[:30]
    fact, layer = facts[1], 2
    prompt = loc_edit.encode(model, fact)
    noise = loc_edit.subject_noise(model, prompt, scale="s3", facts=facts)
    trace = loc_edit.localize(model, prompt, fact.target_true, noise=noise, localizer="output_change", window=1)
    assert trace.effect.max() == pytest.approx(trace.p_clean - trace.p_corrupted, rel=1e-5)
    assert 0 < trace.effect[0, prompt.last_subject] < trace.effect.max()

    request = loc_edit.pose(fact, "error_injection", model)
    name = f"blocks.{layer}.hook_mlp_out"
    edit = examples["logit_push"](model, request, layer)
    _, before = model.run_with_cache(prompt.tokens[None], names_filter=name)
    with edit.applied(model):
        _, after = model.run_with_cache(prompt.tokens[None], names_filter=name)
    added = (after[name] - before[name])[0, prompt.last_subject]
    direction = model.W_U[:, request.target_tokens[0]]
    torch.testing.assert_close(added, 30.0 * direction / direction.norm(), rtol=1e-3, atol=1e-3)
    [again] = examples["logit_push"](model, [request], layer)
    torch.testing.assert_close(again.delta(layer), edit.delta(layer))
