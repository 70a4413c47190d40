"""The report's content: what is in the file, that no text becomes markup, and what half a run gives."""

import json
import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_runs import HOSTILE, few_pictures, hostile_facts, hostile_run, make_run, rows_of_a_run

import loc_edit
from loc_edit.analysis.tables.rows import EffectDefinition, RowsMissing, by_layer
from loc_edit.facts.fact import Fact
from loc_edit.report import sections
from loc_edit.report.explorer import Continuations, explorer as explorer_data, thinned
from loc_edit.report.packing import STEPS, embedded, packed
from loc_edit.report.page import circuitsvis_bundle
from loc_edit.report.summary import headline
from loc_edit.report.texts import belongs, facts_of
from loc_edit.store.layout import BadRun

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def unpacked(pack):
    """The page's way back, in Python."""
    low, high, text = (0, 1, pack) if isinstance(pack, str) else pack
    steps = [64 * DIGITS.index(a) + DIGITS.index(b) for a, b in zip(text[::2], text[1::2], strict=True)]
    return np.array([np.nan if step > STEPS else low + (high - low) * step / STEPS for step in steps])


@pytest.fixture(scope="module")
def rows():
    return rows_of_a_run()


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave out tables and figures, which take seconds and are not what is asked."""
    for name in ("figure_sections", "table_sections"):
        monkeypatch.setattr(sections, name, lambda *given: ([], {}))


@pytest.fixture(scope="module")
def run(rows, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "whole", *rows)


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    with few_pictures():
        return loc_edit.write_report(run, tmp_path_factory.mktemp("page"), draws=50).read_text(encoding="utf-8")


class Reader(HTMLParser):
    """The page's elements, scripts by id, and its text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.scripts, self.text, self.attributes, self._in = [], {}, "", [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self._in = dict(attrs).get("id", "code") if tag == "script" else tag

    def handle_data(self, data):
        if self.lasttag == "script" and self._in:
            self.scripts[self._in] = self.scripts.get(self._in, "") + data
        elif self._in != "style":
            self.text += data

    def handle_endtag(self, tag):
        self._in = None


def explored(folder, traces, edits, **options):
    """The explorer's data of rows as a run keeps them."""
    run = make_run(folder, traces, edits)
    return explorer_data(run.traces, run.read("edits", lists=True), {}, most=12, **options)


def explorer(html):
    return json.loads(Reader(html).scripts["data"])["explorer"]


def test_packed_numbers_come_back():
    rng = np.random.default_rng(0)
    for values in (rng.random(200), rng.random(50) * 1e-4, rng.normal(size=30) * 7, np.zeros(3), np.ones((2, 2))):
        spread = np.ptp(values) or 1
        np.testing.assert_allclose(unpacked(packed(values)), np.ravel(values), atol=max(spread, 1) / STEPS)
    np.testing.assert_allclose(unpacked(packed([1e-6, 3e-6, 2e-6])), [1e-6, 3e-6, 2e-6], rtol=1e-3)
    np.testing.assert_array_equal(np.isnan(unpacked(packed([0.5, np.nan, np.inf]))), [False, True, True])
    assert unpacked(packed([np.nan])).shape == (1,)


def test_embedded_data_has_no_markup_and_no_nan():
    text = embedded({"a": list(HOSTILE)})
    assert "<" not in text
    assert json.loads(text) == {"a": list(HOSTILE)}
    with pytest.raises(ValueError, match="JSON"):
        embedded([float("nan")])


def test_the_page_is_one_file_that_loads_nothing(page):
    reader = Reader(page)
    assert "link" not in [tag for tag, value in reader.attributes if value and value.startswith("http")]
    addresses = [value for name, value in reader.attributes if name in ("src", "href") and value]
    assert all(value.startswith(("data:", "#")) for value in addresses)
    assert any(value.startswith("data:image/svg+xml") for value in addresses)
    assert page.count("createElement") > 0
    assert page.count(circuitsvis_bundle()) == 1


def test_bundle_stays_inside_its_element_and_is_the_library_s_code():
    bundle = circuitsvis_bundle()
    assert "</script" not in bundle
    assert "<!--" not in bundle
    assert "ColoredTokensMulti" in bundle
    assert "sourceMappingURL" not in bundle


def test_the_page_s_policy_names_exactly_its_scripts(page):
    import base64
    import hashlib

    scripts = Reader(page).scripts
    policy = re.search(r"script-src ([^;]*);", page).group(1)
    for name in ("code", "circuitsvis"):
        digest = base64.b64encode(hashlib.sha256(scripts[name].encode()).digest()).decode()
        assert f"sha256-{digest}" in policy.replace("x", "x")
    assert "unsafe" not in policy
    assert "default-src 'none'" in page


def test_the_explorer_has_the_rows_numbers(page, rows):
    traces, edits = rows
    found = explorer(page)
    assert [fact["id"] for fact in found["facts"]] == list(range(12))
    assert [(c["problem"], c["method"]) for c in found["combos"]] == [
        (p, m) for p in ("Error injection", "Fact forcing") for m in ("ROME", "MEMIT")
    ]
    fact = found["facts"][3]
    cells = traces.query("fact_id == 3 and window == 5").sort_values(["layer", "pos"])
    grid = fact["traces"]["mlp_out/5"]
    np.testing.assert_allclose(unpacked(grid["restored"]), cells["p_restored"], atol=2e-4)
    curve = by_layer(traces, EffectDefinition(5)).query("fact_id == 3")["trace"]
    np.testing.assert_allclose(unpacked(grid["curve"]), curve, atol=2e-4)
    mine = edits.query("fact_id == 3 and method == 'memit' and problem == 'fact_forcing'").sort_values("layer")
    edit = fact["edits"]["3"]
    scores = unpacked(edit["scores"]).reshape(-1, len(found["outcomes"]))
    names = ["rewrite", "paraphrase", "neighborhood", "essence", "overall"]
    np.testing.assert_allclose(scores, mine[names], atol=2e-4)
    numbers = unpacked(edit["numbers"]).reshape(1 + len(mine), sum(edit["lengths"]))
    assert edit["lengths"] == [1, 0, 2, 1]
    np.testing.assert_allclose(numbers[1:, 0], [after[0] for after in mine["rewrite_after"]], atol=2e-4)
    np.testing.assert_allclose(numbers[2, 1:], [0.6, 0.7, 0.4], atol=2e-4)


def test_the_page_tells_the_answer_and_what_made_it(page, run):
    text = Reader(page).text
    assert "Cannot say" in text  # of twelve facts
    assert "expected at least 20, got 12" in text
    assert "of the variance" in text
    for words in (
        "Table 3.",
        "Statistics.",
        "p_clustered_holm",
        "Figure 7.",
        "abc",
        "nowhere.json",
        "Not made, and why",
        "seed = 0",
    ):
        assert words in text
    assert f"{len(run.traces):,}" in text


@pytest.mark.parametrize(
    ("answers", "word"),
    [
        (["no", "no"], "No"),
        (["yes"], "Yes"),
        (["no", "no", "unclear"], "Mostly no"),
        (["unclear"], "Unclear"),
        (["yes", "no"], "In part"),
        (["in part", "no"], "In part"),
        (["no", "cannot say"], "Mostly no"),
        (["unclear", "no", "cannot say"], "Unclear"),
        (["cannot say"], "Cannot say"),
        ([], "Cannot say"),
    ],
)
def test_headline(answers, word):
    found, sentence = headline(answers, "no rows")
    assert found == word
    assert sentence.endswith(".")
    assert ("no rows" in sentence) == (word == "Cannot say")
    few = answers.count("cannot say")
    assert (f"{few} more" in sentence) == (0 < few < len(answers))  # these are too few facts, and not unclear
    assert ("too wide" in sentence) == (0 < answers.count("unclear") < len(answers) - few)


@pytest.mark.long
def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    first = loc_edit.write_report(run, tmp_path / "a.html", draws=20)
    second = loc_edit.write_report(loc_edit.load_run(run.path), tmp_path / "b.html", draws=20)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_no_text_from_data_is_markup(rows, tmp_path, page, no_pictures):
    run = hostile_run(tmp_path / "run", rows)
    path = loc_edit.write_report(run, draws=20, texts=hostile_facts(run))
    reader, usual = Reader(path.read_text(encoding="utf-8")), Reader(page)
    assert reader.tags.count("script") == usual.tags.count("script") == 3
    assert set(reader.tags) <= set(usual.tags) | {"small", "p", "li", "h3"}
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert HOSTILE[0] in reader.text
    assert HOSTILE[1] in json.dumps(json.loads(reader.scripts["data"]), ensure_ascii=False).replace('\\"', '"')


def test_facts_lend_their_texts_only_where_they_are_the_traced_ones(rows, tmp_path, no_pictures):
    traces, edits = rows
    tokens = traces.query("fact_id == 0 and window == 5 and layer == 0").sort_values("pos")
    begin, end = tokens[["subject_begin", "subject_end"]].iloc[0]
    words = tokens["token"].tolist()
    subject = "".join(words[begin:end]).strip()
    right = Fact(fact_id=0, template="{} is", subject=subject, target_true="Rome", paraphrases=("one", "two"))
    wrong = Fact(fact_id=1, template="{} is", subject="Somebody else", target_true="Rome")
    assert belongs(right, words, begin, end)
    assert not belongs(wrong, words, begin, end)
    run = make_run(tmp_path / "run", traces, edits)
    html = loc_edit.write_report(run, draws=0, texts={0: right, 1: wrong}).read_text(encoding="utf-8")
    first, second = explorer(html)["facts"][:2]
    assert (first["prompt"], first["paraphrases"]) == (right.prompt, ["one", "two"])
    assert "paraphrases" not in second
    assert second["prompt"].startswith(("The", "old", "city", "of", "river", "north", "tower", "garden"))


def test_facts_are_found_by_the_configuration_and_never_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("LOC_EDIT_CACHE", str(tmp_path))
    found, why = facts_of({"data": "builtin", "seed": 0})
    assert found[5].fact_id == 5
    assert why == ""
    assert facts_of({"data": "counterfact"}) == ({}, "the facts (counterfact) are not a file on this machine")
    rewrite = {"prompt": "{} is in", "subject": "Rome", "relation_id": "P1"}
    rewrite |= {"target_new": {"str": "France"}, "target_true": {"str": "Italy"}}
    record = {"case_id": 7, "requested_rewrite": rewrite, "paraphrase_prompts": [], "neighborhood_prompts": []}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "counterfact.json").write_text(json.dumps([record]))
    assert facts_of({"data": "counterfact"})[0][7].prompt == "Rome is in"
    (tmp_path / "data" / "counterfact.json").write_text("[")
    assert "cannot be read" in facts_of({"data": "counterfact"})[1]
    assert facts_of({})[0] == {}


def test_next_tokens_are_shown_where_they_are_given(run, tmp_path, no_pictures):
    found = Continuations({2: [("a", 0.5)]}, {2: {("error_injection", "rome", 1): (3, [("b", 0.9)])}})
    path = loc_edit.write_report(run, tmp_path / "r.html", draws=0, next_tokens=found)
    facts = explorer(path.read_text(encoding="utf-8"))["facts"]
    assert facts[2]["next"] == [["a", 0.5]]
    assert facts[2]["edits"]["0"]["next"] == {"layer": 3, "tokens": [["b", 0.9]]}
    assert "next" not in facts[2]["edits"]["1"]
    assert "next" not in facts[1]


def test_next_tokens_without_edits_and_of_other_edits_are_left_out(rows, tmp_path):
    traces, edits = rows
    key = ("error_injection", "rome", 1)
    found = Continuations({0: [("a", 0.5)]}, {0: {key: (3, [("b", 0.9)])}, 1: {key: (3, [("c", 0.9)])}})
    alone = explored(tmp_path / "alone", traces, edits[:0], next_tokens=found)["facts"]
    assert (alone[0]["next"], alone[0]["edits"]) == ([["a", 0.5]], {})
    other = explored(tmp_path / "other", traces, edits.query("method == 'memit'"), next_tokens=found)["facts"]
    assert all("next" not in edit for edit in other[0]["edits"].values())
    assert "next" not in other[1], "what it was before is not known"


@pytest.mark.parametrize(("window", "key"), [(1, "mlp_out/1"), (5, "mlp_out/5"), (3, "mlp_out/1"), (None, "mlp_out/1")])
def test_the_page_opens_with_tracing_of_the_window_or_else_the_first_grid(rows, tmp_path, window, key):
    traces, edits = rows
    both = pd.concat([traces.assign(localizer=name) for name in ("attribution", "causal_tracing")])
    found = explored(tmp_path / "run", both, edits, window=window)
    assert [grid["key"] for grid in found["grids"]] == [
        "mlp_out/1", "mlp_out/5", "attribution/mlp_out/1", "attribution/mlp_out/5",
    ]  # fmt: skip
    assert found["grids"][found["grid"]]["key"] == key


def test_a_grid_that_lacks_a_cell_is_left_out_and_the_others_stay(rows, tmp_path):
    traces, edits = rows
    lost = traces.query("fact_id == 2 and window == 5 and layer == 1").index[0]
    found = explored(tmp_path / "run", traces.drop(index=lost), edits)["facts"]
    assert set(found[2]["traces"]) == {"mlp_out/1"}
    assert set(found[1]["traces"]) == set(found[3]["traces"]) == {"mlp_out/1", "mlp_out/5"}
    whole = traces.query("not (fact_id == 2 and window == 5 and layer == 1)")
    found = explored(tmp_path / "layer", whole, edits)["facts"]
    assert found[2]["traces"]["mlp_out/5"]["layers"] == [layer for layer in sorted(set(traces["layer"])) if layer != 1]


def test_the_explorer_is_thinned_evenly(run, tmp_path, no_pictures):
    assert thinned(np.arange(100), 3).tolist() == [0, 49, 99]
    assert thinned(np.arange(3), 10).tolist() == [0, 1, 2]
    path = loc_edit.write_report(run, tmp_path / "r.html", draws=0, facts=4)
    found = explorer(path.read_text(encoding="utf-8"))
    assert len(found["facts"]) == 4
    assert found["total"] == 12
    with pytest.raises(ValueError, match="facts 0"):
        loc_edit.write_report(run, tmp_path / "r.html", draws=0, facts=0)


def test_a_heavy_explorer_holds_fewer_facts(run, tmp_path, monkeypatch, no_pictures):
    import loc_edit.report.write as write

    whole = loc_edit.write_report(run, tmp_path / "r.html", draws=0)
    size = len(embedded(explorer(whole.read_text(encoding="utf-8"))))
    monkeypatch.setattr(write, "HEAVIEST", size // 2)
    less = explorer(loc_edit.write_report(run, tmp_path / "s.html", draws=0).read_text(encoding="utf-8"))
    assert 3 <= len(less["facts"]) <= 6
    assert less["total"] == 12


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["traces", "edits"])
def test_half_a_run_is_shown_with_a_word_on_the_rest(rows, tmp_path, kept):
    traces, edits = rows
    run = make_run(
        tmp_path / "half", *((traces, edits[:0]) if kept == "traces" else (traces[:0], edits)),
        problems=["error_injection"], methods=["rome"], layers=[0, 1], chunk=5,
    )  # fmt: skip
    html = loc_edit.write_report(run, draws=20).read_text(encoding="utf-8")
    text, found = Reader(html).text, explorer(html)
    assert "Cannot say" in text
    assert "The run is not finished" in text
    assert len(found["facts"]) == 12
    assert all(bool(fact["traces"]) == (kept == "traces") for fact in found["facts"])
    assert all(bool(fact["edits"]) == (kept == "edits") for fact in found["facts"])


@pytest.mark.slow
def test_a_single_fact_and_a_single_layer_say_what_cannot_be_said(rows, tmp_path):
    traces, edits = rows
    one = traces["fact_id"] == 0
    few = make_run(tmp_path / "one", traces[one & (traces["layer"] == 2)], edits.query("fact_id == 0 and layer == 2"))
    text = Reader(loc_edit.write_report(few, draws=20).read_text(encoding="utf-8")).text
    assert "Cannot say" in text
    assert "Not made, and why" in text


@pytest.mark.slow
def test_windows_and_sites_are_chosen_sensibly(rows, tmp_path):
    traces, edits = rows
    elsewhere = traces.assign(site="attn_out", window=traces["window"].replace({5: 3}))
    run = make_run(tmp_path / "attn", elsewhere, edits)
    with few_pictures():
        text = Reader(loc_edit.write_report(run, draws=0).read_text(encoding="utf-8")).text
    assert "tracing window 1 at attn_out" in " ".join(text.split())
    assert "Figure 1." in text
    with pytest.raises(RowsMissing, match=r"window 9; expected one of \[1, 3\]"):
        loc_edit.write_report(run, window=9)


@pytest.mark.slow
def test_numbers_that_are_none_are_null(rows, tmp_path, no_pictures):
    traces, edits = rows
    traces, edits = traces.copy(), edits.copy()
    traces.loc[traces["fact_id"] == 0, ["p_clean", "p_corrupted", "p_restored"]] = np.nan
    edits.loc[edits["fact_id"] == 0, ["rewrite", "overall"]] = np.nan
    html = loc_edit.write_report(make_run(tmp_path / "nan", traces, edits), draws=20).read_text(encoding="utf-8")
    fact = explorer(html)["facts"][0]
    assert fact["traces"]["mlp_out/5"]["clean"] is None
    assert np.isnan(unpacked(fact["traces"]["mlp_out/5"]["restored"])).all()
    assert np.isnan(unpacked(fact["edits"]["0"]["scores"]).reshape(-1, 5)[:, 0]).all()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(BadRun, match="no such folder"):
        loc_edit.write_report(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadRun, match="is empty"):
        loc_edit.write_report(tmp_path / "empty")
    no_rows = make_run(tmp_path / "rowless", pd.DataFrame(), pd.DataFrame())
    with pytest.raises(RowsMissing, match="no rows yet"):
        loc_edit.write_report(no_rows)
    newer = make_run(tmp_path / "newer", pd.DataFrame(), pd.DataFrame()).path / "provenance.json"
    newer.write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(BadRun, match="newer loc_edit"):
        loc_edit.write_report(newer.parent)


def test_the_command_writes_the_file_and_says_where(run, tmp_path, capsys, no_pictures):
    from loc_edit.cli.main import main

    assert main(["report", str(run.path), "--out", str(tmp_path / "r.html"), "--draws", "0", "--facts", "2"]) == 0
    assert "r.html" in "".join(capsys.readouterr().out.split())
    assert len(explorer((tmp_path / "r.html").read_text(encoding="utf-8"))["facts"]) == 2
    assert main(["report", str(tmp_path / "nothing")]) == 1
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_wheel_carries_the_page_s_files(tmp_path):
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(root),
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    for path in (root / "loc_edit" / "report" / "assets").iterdir():
        assert f"loc_edit/report/assets/{path.name}" in names
    assert "loc_edit/views/edit.html.j2" in names
