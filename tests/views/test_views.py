"""Views of a trace and an edit in a notebook: the right numbers, and no text from data as markup."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest
import torch

import loc_edit
from loc_edit.prompts.recall import next_tokens
from loc_edit.views.edit import EditView
from loc_edit.views.table import html_table


@pytest.fixture(scope="module")
def trace(deep, facts):
    prompt = loc_edit.encode(deep, facts[0])
    noise = loc_edit.subject_noise(deep, prompt, scale=1.0, samples=2)
    return loc_edit.trace(deep, prompt, facts[0].target_true, noise=noise, window=1)


def shown(trace):
    """The properties that circuitsvis is given."""
    html = trace.show().cdn_src
    assert html.count("</script>") == 1
    return json.loads(re.search(r"ColoredTokensMulti,\s*(\{.*\})\s*\)\s*</script>", html, re.DOTALL).group(1))


def test_tokens_are_colored_by_the_effect_on_one_scale(trace):
    found = shown(trace)
    assert [text.strip() for text in found["tokens"]] == [text.strip() for text in trace.token_texts]
    torch.testing.assert_close(torch.tensor(found["values"]), trace.effect.T, atol=1e-6, rtol=0)
    assert found["labels"] == [f"layer {layer}" for layer in range(4)]
    most = trace.effect.abs().max().item()
    assert found["positiveBounds"] == pytest.approx([most] * 4)
    assert found["negativeBounds"] == pytest.approx([-most] * 4)


def test_a_token_cannot_be_markup(trace):
    hostile = ("</script><script>alert(1)</script>", '<img src=x onerror="x">')
    odd = dataclasses.replace(trace, token_texts=(*hostile, *trace.token_texts[2:]))
    found = shown(odd)  # one </script> only, or it fails
    assert not any(set("<>\"'") & set(text) for text in found["tokens"])
    assert "onerror" in found["tokens"][1]


def test_a_trace_of_no_numbers_is_refused(trace):
    with pytest.raises(ValueError, match="fact 0: the trace has cells without a number"):
        dataclasses.replace(trace, p_restored=trace.p_restored * torch.nan).show()


@pytest.fixture(scope="module")
def edited(deep, facts):
    request = loc_edit.pose(facts[0], "error_injection", deep)
    return request, loc_edit.finetune(
        deep, request, layers=[1, 2], settings=loc_edit.FinetuneSettings(lr=0.02, eps=0.1)
    )


def test_an_edit_before_and_after(deep, facts, edited):
    request, edit = edited
    weights = {name: p.clone() for name, p in deep.named_parameters()}
    score = loc_edit.score(deep, facts[0], request, edit)
    view = score.show(deep, n=3)
    assert isinstance(view, EditView)
    assert all(torch.equal(p, weights[name]) for name, p in deep.named_parameters())
    assert view.before == next_tokens(deep, request.prompt, 3) != view.after
    with edit.applied(deep):
        logits = deep(request.prompt.tokens[None])[0, -1].softmax(-1)
        assert view.after == next_tokens(deep, request.prompt, 3)
    torch.testing.assert_close(torch.tensor([p for _, p in view.after]), logits.topk(3).values)
    frame = view.to_frame()
    assert frame["kind"].tolist() == ["rewrite", "paraphrase", "neighborhood"]
    assert frame["prompt"].tolist() == [facts[0].prompt, *facts[0].paraphrases, *facts[0].neighbors]
    assert frame.loc[0, "before"] == pytest.approx(score.before.rewrite)
    assert frame.loc[0, "after"] > frame.loc[0, "before"]
    norm, part = view.norms[2]
    assert norm == pytest.approx(edit.delta(2).norm().item())
    assert part == pytest.approx(norm / deep.blocks[2].mlp.W_out.norm().item())


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


def test_the_view_of_an_edit_is_text_and_html(deep, facts, edited):
    request, edit = edited
    fact = dataclasses.replace(facts[0], paraphrases=("<script>alert(1)</script> The Golden Bridge is",))
    view = loc_edit.score(deep, fact, request, edit).show(deep)
    html = Tags(view._repr_html_())
    assert "script" not in html.tags
    for words in ("Next tokens before", "layer 2", "<script>alert(1)</script>", request.target):
        assert words in html.text
    assert "next before: " in str(view)
    assert "|delta|" in str(view)


def test_a_table_keeps_texts_and_rounds_numbers():
    html = html_table([("<b>", 0.12345, "a < b"), ("none", float("nan"), 3)], header=("", "p", "&"), title="<i>")
    assert "<b>" not in html
    assert "<i>" not in html
    for part in ("&lt;b&gt;", "0.123", "a &lt; b", "\u2013", ">3</td>", ">&amp;</th>"):
        assert part in html


def test_a_score_shows_probabilities_before_and_after(deep, facts):
    request = loc_edit.pose(facts[0], "error_injection", deep)
    scored = loc_edit.score(deep, facts[0], request, essence=False)
    html = scored._repr_html_()
    before = f">{scored.before.rewrite:.3f}</td>"
    assert html.count(before) >= 2  # nothing was edited, so it stands before and after
    assert "\u2013" in html  # essence was not measured
