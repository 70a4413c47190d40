"""What a user's type checker sees: real signatures behind the lazily loaded names, not `Any`."""

import re
import subprocess
import sys

import pytest

SCRIPT = """
import loc_edit

model = loc_edit.load_model("builtin")
facts = loc_edit.load_facts("builtin")
prompt = loc_edit.encode(model, facts[0])
noise = loc_edit.subject_noise(model, prompt, scale=0.1)
stats = loc_edit.key_stats(model, layers=[2])
contexts = loc_edit.sample_contexts(model)
request = loc_edit.pose(facts[0], "error_injection", model)
run = loc_edit.load_run("runs/demo")
reveal_type(facts[0])
reveal_type(loc_edit.trace)
reveal_type(loc_edit.trace(model, prompt, "Paris", noise=noise))
reveal_type(loc_edit.rome(model, request, layer=2, stats=stats, contexts=contexts))
reveal_type(loc_edit.rome(model, [request], layer=2, stats=stats, contexts=contexts))
reveal_type(loc_edit.memit(model, request, layers=[1, 2], stats=stats, contexts=contexts))
reveal_type(loc_edit.finetune(model, [request], layers=[2]))
reveal_type(run)
reveal_type(run.frame())
reveal_type(loc_edit.fit(run.frame(), outcome="rewrite"))
reveal_type(loc_edit.score(model, facts[0], request))
"""
SEEN = [
    "loc_edit.facts.fact.Fact",
    "def (model: ",
    "loc_edit.localization.trace.Trace",
    "loc_edit.editing.update.Edit",
    "list[loc_edit.editing.update.Edit]",
    "loc_edit.editing.update.Edit",
    "list[loc_edit.editing.update.Edit]",
    "loc_edit.analysis.run.Run",
    "pandas.DataFrame",
    "loc_edit.analysis.regression.ols.Fit",
    "loc_edit.scoring.scores.EditScore",
]
WRONG = """
import loc_edit

model = loc_edit.load_model("builtin")
loc_edit.trace(model, nois=None)
loc_edit.load_run(3)
loc_edit.rome(model, layer="two")
loc_edit.nothing
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What mypy prints for two scripts of users; once for both, as it reads all of torch and pandas."""
    folder = tmp_path_factory.mktemp("scripts")
    (folder / "right.py").write_text(SCRIPT)
    (folder / "wrong.py").write_text(WRONG)
    command = [sys.executable, "-m", "mypy", "--config-file=", "--ignore-missing-imports", "--follow-imports=silent"]
    result = subprocess.run(
        [*command, str(folder / "right.py"), str(folder / "wrong.py")], capture_output=True, text=True, check=False
    )
    return result.stdout


@pytest.mark.slow
def test_a_user_s_type_checker_sees_the_real_signatures(said):
    types = re.findall(r'right.py:\d+: note: Revealed type is "(.*)"', said)
    assert len(types) == len(SEEN), said
    for revealed, expected in zip(types, SEEN, strict=True):
        assert revealed.replace("pandas.core.frame.", "pandas.").startswith(expected), said
    assert "Any" not in {*types}
    assert not re.search(r"right.py:\d+: error", said), said


@pytest.mark.slow
def test_a_user_s_type_checker_sees_mistakes(said):
    errors = re.findall(r"wrong.py:(\d+): error", said)
    assert set(errors) == {"5", "6", "7", "8"}, said
