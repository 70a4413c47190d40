"""From run folders to tables and figures: several runs together, a second model, the study's numbers."""

import pandas as pd
import pytest
from synthetic import edit_rows, trace_rows

from loc_edit.analysis.analyze import analyze, gather
from loc_edit.analysis.run import Run, load_run
from loc_edit.analysis.tables.rows import RowsMissing, StudyRows
from loc_edit.store.folder import RunMismatch

CONFIG = {"data": "d", "facts": 8, "problems": ["error_injection"], "sigma": 0.5}
SETTINGS = {"rome-1": {"error_injection": {"lr": 0.5}}}


@pytest.fixture(scope="module")
def rows():
    traces = trace_rows(n_facts=8, n_layers=4, windows=(1, 10)).assign(cell="t", metric="p")
    return traces, edit_rows(traces, methods=(("rome", 1),), controls=False).assign(cell="e")


@pytest.fixture
def make(tmp_path, rows):
    """(name, facts, ...) -> a finished run of some facts of the rows."""

    def run(name, facts, fingerprint="a", settings=SETTINGS, problems=("error_injection",), **config):
        with Run.create(
            tmp_path / name, CONFIG | config | {"settings": settings}, {"model_fingerprint": fingerprint}
        ) as writer:
            for kind, frame in zip(("traces", "edits"), rows, strict=True):
                if kind == "edits":
                    frame = frame[frame["problem"].isin(problems)]
                for fact in facts:
                    writer.write(kind, f"fact_{fact}", frame[frame["fact_id"] == fact])
        return load_run(tmp_path / name)

    return run


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Figures as names: drawing is tested elsewhere."""
    monkeypatch.setattr(
        "loc_edit.analysis.figures.paper.save", lambda figure, data, folder, name: [folder / f"{name}.png"]
    )


@pytest.mark.slow
def test_runs_of_parts_are_analyzed_as_one(make, tmp_path):
    whole, first, second = make("whole", range(8)), make("first", range(5), chunk=5), make("second", range(3, 8))
    pd.testing.assert_frame_equal(gather([first, second])[0], whole.traces)
    analyze(whole, tmp_path / "one", window=1, draws=0)
    analysis = analyze([second, first], tmp_path / "two", window=1, draws=0)
    assert (tmp_path / "one/tables/table_3.csv").read_text() == (tmp_path / "two/tables/table_3.csv").read_text()
    assert analysis.fits["n_facts"].tolist() == [8]
    with pytest.raises(ValueError, match="tables and figures of 2 runs: say where they go"):
        analyze([first, second], window=1)


@pytest.mark.slow
def test_runs_of_other_problems_add_up(make, tmp_path):
    other = {"rome-1": {"fact_forcing": {"lr": 0.1}}}
    forcing = make("forcing", range(8), problems=["fact_forcing"], settings=other)
    analysis = analyze([make("injection", range(8)), forcing], tmp_path / "out", window=1, draws=0)
    assert analysis.fits["problem"].tolist() == ["error_injection", "fact_forcing"]


def test_a_method_that_one_run_lacks_does_not_count(make):
    both = SETTINGS | {"memit-5": {"error_injection": {"lr": 0.3}}}
    fewer, more = make("fewer", range(4)), make("more", range(4, 8), settings=both)
    for runs in ([fewer, more], [more, fewer]):
        assert set(gather(runs)[1]["fact_id"]) == set(range(8))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"fingerprint": "b"}, 'model_fingerprint is "a" there and "b" here'),
        ({"sigma": 0.6}, "sigma is 0.5 there and 0.6 here"),
        ({"settings": {"rome-1": {"error_injection": {"lr": 0.1}}}}, "settings.rome-1.error_injection.lr is 0.5"),
    ],
)
def test_rows_of_other_settings_are_not_mixed(make, tmp_path, change, named):
    with pytest.raises(RunMismatch, match=named) as error:
        analyze([make("one", range(4)), make("two", range(4, 8), **change)], tmp_path / "out", draws=0)
    assert "one" in str(error.value)
    assert "two" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_run_without_rows_is_named(make, tmp_path):
    empty = make("empty", [])
    with pytest.raises(RowsMissing, match="empty: no trace and no finished edit yet"):
        analyze([make("some", range(8)), empty], tmp_path / "out")
    with pytest.raises(RowsMissing, match="empty: no trace and no finished edit yet"):
        analyze(empty)


def test_traces_alone_are_drawn_and_the_rest_says_why(make, rows, tmp_path):
    traces, _ = rows
    with Run.create(tmp_path / "traced", CONFIG | {"settings": SETTINGS}, {"model_fingerprint": "a"}) as writer:
        writer.write("traces", "all", traces)
    analysis = analyze(load_run(tmp_path / "traced"), draws=0)
    assert {"figure_1", "figure_2", "figure_10"} <= set(analysis.written)
    assert analysis.fits.empty
    assert analysis.scores.empty
    assert "no edit rows" in analysis.missing["regressions"]
    assert "table_3" in analysis.missing


@pytest.mark.slow
def test_another_site_and_other_windows_have_their_tables(make, rows, tmp_path):
    traces, edits = rows
    chosen = StudyRows.of(traces.assign(site="attn_out"), edits)
    assert (chosen.site, chosen.window) == ("attn_out", 1)
    assert (StudyRows.of(traces, edits).site, StudyRows.of(traces, edits).window) == ("mlp_out", 1)
    assert chosen.joined()["trace"].tolist() == StudyRows.of(traces, edits).joined()["trace"].tolist()
    with Run.create(
        tmp_path / "attn", CONFIG | {"settings": SETTINGS, "site": "attn_out"}, {"model_fingerprint": "a"}
    ) as w:
        w.write("traces", "all", traces.assign(site="attn_out", cell="u"))
        w.write("edits", "all", edits)
    analysis = analyze([make("mlp", range(8), site="mlp_out"), load_run(tmp_path / "attn")], tmp_path / "both", draws=0)
    (path,) = [path for path in analysis.written["sensitivity"] if path.suffix == ".csv"]
    assert set(pd.read_csv(path)["site"]) == {"mlp_out", "attn_out"}


@pytest.mark.slow
def test_a_second_model_gives_figure_13_and_the_same_model_does_not(make, tmp_path):
    run = make("run", range(8))
    assert "figure_13" in analyze(run, tmp_path / "out", window=1, draws=0).missing
    analysis = analyze(run, tmp_path / "out", window=1, draws=0, second=make("other", range(8), fingerprint="b"))
    assert "figure_13" in analysis.written
    with pytest.raises(RunMismatch, match="other again is of the same model as"):
        analyze(run, tmp_path / "out", window=1, draws=0, second=make("other again", range(8)))


@pytest.mark.slow
def test_the_studys_numbers_stand_beside_ours_when_asked_for(make, tmp_path):
    run = make("run", range(8))
    assert "compare_paper" not in analyze(run, tmp_path / "out", window=1, draws=0).written
    analyze(run, tmp_path / "out", window=1, draws=0, compare_paper=True)
    beside = pd.read_csv(tmp_path / "out/tables/compare_paper.csv")
    concentrated = beside[beside["facts"] == "concentrated"]  # the study's Table 2
    assert concentrated["r2_layer_paper"].tolist() in ([0.927], [])
    beside = beside[beside["facts"] == "all"]
    assert beside.set_index("outcome")["r2_layer_paper"].to_dict() == {
        "rewrite": 0.947,
        "paraphrase": 0.279,
        "neighborhood": 0.011,
        "overall": 0.62,
    }
