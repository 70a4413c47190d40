"""Files of runs and edits that are damaged, and runs whose facts have no tracing fraction."""

import json

import pytest
import torch
from safetensors.torch import save_file

import loc_edit
from loc_edit.experiment.texts import save_contexts, saved_contexts
from loc_edit.files import Damaged


@pytest.mark.parametrize("content", ["[]", "5", '{"0": 5}', '{"0": {"rome": "text"}}', '{"0": {"rome": [1]}}', "{"])
def test_context_texts_of_a_wrong_shape_are_refused_with_their_file(tmp_path, content):
    (tmp_path / "contexts.json").write_text(content)
    for use in (lambda: saved_contexts(tmp_path, 0), lambda: save_contexts(tmp_path, 1, {"rome": ["{}"]})):
        with pytest.raises(Damaged, match=r"contexts\.json is damaged"):
            use()


@pytest.mark.parametrize(
    "metadata",
    [{}, {"n_tokens": "9"}, {"n_tokens": "x", "ridge": "0"}, {"n_tokens": "9", "ridge": "0", "convergence": "[5]"}],
)
def test_statistics_that_lack_something_are_refused_with_their_file(tmp_path, metadata):
    path = tmp_path / "stats.safetensors"
    save_file({"0": torch.eye(3)}, path, {"format": "loc_edit.key_stats/1", **metadata})
    with pytest.raises(loc_edit.BadKeyStats, match=r"stats\.safetensors"):
        loc_edit.KeyStats.load(path)


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"0.1.full": torch.ones(2, 2)}, {}),
        ({"0.1.full": torch.ones(2, 2)}, {"about": "5"}),
        ({"0.1.full": torch.ones(2, 2)}, {"about": "{"}),
        ({"0.x.full": torch.ones(2, 2)}, {"about": "{}"}),
        ({"a": torch.ones(2, 2)}, {"about": "{}"}),
        ({"0.1.other": torch.ones(2, 2)}, {"about": "{}"}),
        ({"0.1.left": torch.ones(2, 2)}, {"about": "{}"}),
    ],
)
def test_an_edit_that_lacks_something_is_refused_with_its_file(tmp_path, tensors, metadata):
    path = tmp_path / "edit.safetensors"
    save_file(tensors, path, {"format": "loc_edit.edit/1", **metadata})
    with pytest.raises(ValueError, match=r"edit\.safetensors: expected a saved edit"):
        loc_edit.Edit.load(path)
    save_file({"0.1.full": torch.ones(2, 2)}, path, {"format": "loc_edit.edit/1", "about": json.dumps({"a": 1})})
    assert loc_edit.Edit.load(path).about == {"a": 1}


@pytest.mark.slow
def test_a_run_without_a_tracing_fraction_is_analyzed_and_reported(tmp_path):
    config = loc_edit.ExperimentConfig(
        facts=3,
        layers=(2, 3),
        noise="0",
        noise_samples=2,
        corpus_tokens=2000,
        essence=False,
        settings={"rome": {"steps": 2}},
        out=str(tmp_path / "run"),
    )
    run = loc_edit.Experiment(config).run()
    analysis = loc_edit.analyze(run, draws=0)
    assert (run.edits["status"] == "done").all()
    assert "tracing fraction" in analysis.missing["figure_4"]
    assert "figure_7" in analysis.written
    html = loc_edit.write_report(run, draws=0).read_text()
    assert "no fact has a tracing fraction" in html
