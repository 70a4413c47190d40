"""A run's edits made again: the same cells, the layer where each fact's edit did best, the tokens that follow."""

import json

import pytest

import loc_edit
from loc_edit.experiment.replay import again, replay
from loc_edit.experiment.setup import Setup
from loc_edit.prompts.recall import next_tokens
from loc_edit.report import sections
from loc_edit.store.folder import RunMismatch


def test_next_tokens_are_the_likeliest_of_the_model(tiny, facts):
    prompt = loc_edit.encode(tiny, facts[1])
    found = next_tokens(tiny, prompt, 4)
    p = tiny(prompt.tokens[None])[0, -1].softmax(-1)
    assert [q for _, q in found] == pytest.approx(p.topk(4).values.tolist(), rel=1e-5)
    assert found[0][0] == tiny.tokenizer.decode([int(p.argmax())])


@pytest.mark.slow
def test_each_fact_s_best_edit_is_made_again(lab, tiny, facts, stats_of):
    run = lab(methods=("rome", "finetune-1"), problems=("error_injection", "fact_forcing")).run()
    before, after = replay(run, [0, 1, 3])
    assert set(before) == set(after) == {0, 1, 3}
    rewrite = run.edits.set_index(["fact_id", "problem", "method", "layer"])["rewrite"].sort_index()
    for fact_id, found in after.items():
        assert before[fact_id] == next_tokens(tiny, loc_edit.encode(tiny, facts[fact_id]))
        assert set(found) == {(p, m, 1) for p in ("error_injection", "fact_forcing") for m in ("rome", "finetune")}
        for (problem, method, _), (layer, tokens) in found.items():
            assert rewrite[fact_id, problem, method, layer] == rewrite[fact_id, problem, method].max()
            assert len(tokens) == 5
    layer, tokens = after[1]["error_injection", "rome", 1]
    request = loc_edit.pose(facts[1], "error_injection", tiny)
    contexts = json.loads((run.path / "contexts.json").read_text())["0"]["rome"]
    settings = loc_edit.RomeSettings(steps=3)
    edit = loc_edit.rome(tiny, request, layer, stats=stats_of(tiny), contexts=contexts, settings=settings)
    with edit.applied(tiny):
        expected = next_tokens(tiny, request.prompt)
    assert expected != before[1]
    assert [p for _, p in tokens] == pytest.approx([p for _, p in expected], rel=1e-3)


def test_another_model_is_refused(lab, make_model, monkeypatch):
    run = lab().run()
    monkeypatch.setattr(Setup, "model", make_model(seed=7))
    with pytest.raises(RunMismatch, match="is of model"):
        again(run)


def test_the_report_of_a_run_has_them(lab, capsys, monkeypatch):
    from loc_edit.cli.main import main

    for name in ("figure_sections", "table_sections"):
        monkeypatch.setattr(sections, name, lambda *given: ([], {}))
    run = lab().run()
    command = ["report", str(run.path), "--draws", "0", "--model", "tiny", "--facts", "2"]
    assert main(command) == 0, capsys.readouterr().err
    html = (run.path / "report.html").read_text(encoding="utf-8")
    assert html.count('"next":[[') == 2
    assert html.count('"next":{"layer":') == 2
    assert "paraphrases" in html
