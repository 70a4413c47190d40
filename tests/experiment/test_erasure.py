"""Scores that look at the whole data set, in a run: rows have them, or say why not, and cells depend on the data."""

import pytest

from loc_edit.names import scores_of
from loc_edit.scoring.contract import gets


@pytest.mark.parametrize("scorer", ["formats", "relearning"])
def test_a_run_has_the_scores_or_says_why_not(lab, scorer):
    edits = lab(layers=(1,), localizers=(), scores=(scorer,)).run().edits
    assert set(scores_of(scorer)) <= set(edits)
    done = edits[(edits["status"] == "done") & (edits["method"] == "rome")]
    assert len(done) > 2
    expected = {"formats": "formats_choice: expected 4 objects", "relearning": "expected 4 facts of other relations"}
    assert done["reason"].str.contains(expected[scorer]).all()


def test_cells_depend_on_the_data_set_if_a_score_looks_at_it(lab):
    assert gets("formats", "facts")
    assert not gets("survival", "facts")
    identity = {
        scorer: lab(scores=(scorer,)).setup.score_identity("error_injection")
        for scorer in ("formats", "relearning", "survival")
    }
    assert [scorer for scorer, values in identity.items() if "data" in values] == ["formats", "relearning"]
