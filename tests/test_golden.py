"""Agreement with what the study's public implementation computed on a tiny trained GPT-2."""

from collections import defaultdict

import numpy as np
import oracles
import pytest
import torch

import loc_edit
from loc_edit.prompts.encoding import find_subject

CONTEXTS = [
    "{}",
    "The old bridge was heavy. {}",
    "They painted a green table after lunch. {}",
    "A teacher is gentle and quiet. {}",
    "Nobody crossed the river. {}",
]
SITES = {"resid": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}
PROBLEM = {"raise": "error_injection", "lower": "fact_erasure"}
ROME = loc_edit.RomeSettings(steps=20, lr=0.5, kl=0.0625, decay=0.5, clamp=4.0)
MEMIT = loc_edit.MemitSettings(steps=20, lr=0.5, kl=0.0625, decay=0.5, clamp=0.75, moment_weight=20.0)
ONE, WINDOW = (loc_edit.FinetuneSettings(steps=25, lr=5e-4, eps=eps) for eps in (1e-2, 3e-3))
LAST = 5


@pytest.mark.slow
def test_every_trace_agrees(golden):
    worst = 0.0
    for expected in golden.traces:
        fact = golden.facts[expected["case_id"]]
        prompt = loc_edit.encode(golden.model, fact)
        begin, end = expected["subject"]
        assert prompt.subject == slice(begin, end)
        assert [golden.model.tokenizer.decode([i]) for i in prompt.tokens.tolist()] == expected["tokens"]
        eps = np.random.RandomState(1).randn(10, end - begin, 96)
        noise = torch.from_numpy(0.1 * eps).float()
        trace = loc_edit.trace(
            golden.model,
            prompt,
            fact.target_true,
            noise=noise,
            site=SITES[expected["site"]],
            window=expected["window"],
        )
        wanted = torch.from_numpy(golden.arrays[expected["scores"]]).float().T
        assert abs(trace.p_clean - expected["p_clean"]) < 1e-5
        assert abs(trace.p_corrupted - expected["p_corrupted"]) < 1e-5
        torch.testing.assert_close(trace.p_restored[:, begin:], wanted, rtol=0, atol=1e-5)
        worst = max(worst, (trace.p_restored[:, begin:] - wanted).abs().max().item())
    assert len(golden.traces) == 42
    print(f"traces: largest difference {worst:.1e}")


def edits_of(golden, method):
    """[(expected, edit)] of one method, each group of equal settings in one batch of facts."""
    groups = defaultdict(list)
    for expected in golden.edits:
        if expected["method"].startswith(method):
            groups[tuple(expected["layers"]), expected["center"]].append(expected)
    for (layers, _), group in groups.items():
        requests = [request_of(golden, expected) for expected in group]
        common = {"stats": golden.stats, "contexts": CONTEXTS}
        if method == "rome":
            edits = loc_edit.rome(golden.model, requests, layers[0], settings=ROME, **common)
        elif method == "memit":
            edits = loc_edit.memit(golden.model, requests, layers, settings=MEMIT, **common)
        else:
            settings = ONE if len(layers) == 1 else WINDOW
            edits = loc_edit.finetune(golden.model, requests, layers, settings=settings)
        yield from zip(group, edits, strict=True)


def request_of(golden, expected):
    request = loc_edit.pose(golden.facts[expected["case_id"]], PROBLEM[expected["objective"]], golden.model)
    assert (request.target, request.objective) == (expected["target"], expected["objective"])
    return request


def probabilities(golden, expected):
    """p(target) on every prompt of the fact, by kind."""
    fact, target = golden.facts[expected["case_id"]], expected["target"]
    texts = {"rewrite": [fact.prompt], "paraphrase": fact.paraphrases, "neighborhood": fact.neighbors}
    return {kind: [probability(golden.model, text, target) for text in some] for kind, some in texts.items()}


def probability(model, text, target):
    answer = loc_edit.target_tokens(model, text, target)
    prompt = find_subject(model, text, text[:3])  # any span: only the tokens matter here
    logits = model(torch.cat([prompt.tokens, answer[:-1]])[None])[0]
    return oracles.probability(logits, len(prompt), answer).item()


ARBITRARY = 2e-2
"""Where an update starts from rounding noise in other code, and is 0 in ours: expected probabilities change by up to
8e-3."""


def arbitrary(expected):
    """Whether the update cannot reach the answer: a last layer's change before the last token."""
    return expected["center"] == LAST and expected["method"] in ("rome", "memit")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rome", "memit", "finetune"])
def test_every_edit_agrees(golden, method):
    counted = compared = 0
    worst = {"update": 0.0, "before": 0.0, "after": 0.0}
    for expected, edit in edits_of(golden, method):
        counted += 1
        name = f"{method} {expected['case_id']} {expected['objective']} center {expected['center']}"
        assert edit.layers == tuple(expected["layers"]), name
        for update in expected["updates"] if not arbitrary(expected) else ():
            arrays = {k: torch.from_numpy(golden.arrays[update[k]]) for k in ("left", "right", "delta") if k in update}
            wanted = arrays["delta"] if "delta" in arrays else torch.outer(arrays["left"], arrays["right"])
            (mine,) = [u for u in edit.updates if u.layer == update["layer"]]
            got = mine.delta if update["weight"] == "W_out" else mine.bias
            relative = ((got - wanted).norm() / wanted.norm()).item()
            assert relative < 1e-3, f"{name}: {update['weight']} of layer {update['layer']} differs by {relative:.1e}"
            worst["update"] = max(worst["update"], relative)
            compared += 1
        before = probabilities(golden, expected)
        with edit.applied(golden.model):
            after = probabilities(golden, expected)
        for when, got, tolerance in (
            ("before", before, 1e-5),
            ("after", after, ARBITRARY if arbitrary(expected) else 1e-4),
        ):
            for kind, wanted in expected[f"p_{when}"].items():
                assert len(got[kind]) == len(wanted), f"{name}: {kind}"
                for a, b in zip(got[kind], wanted, strict=True):
                    assert abs(a - b) < tolerance, f"{name}: {kind} {when} {a} instead of {b}"
                    if not arbitrary(expected):
                        worst[when] = max(worst[when], abs(a - b))
    assert counted == {"rome": 36, "memit": 18, "finetune": 36}[method]
    assert compared == {"rome": 30, "memit": 48, "finetune": 12}[method]
    print(method, {k: f"{v:.1e}" for k, v in worst.items()})


def test_an_edit_alone_is_the_edit_in_the_batch(golden):
    expected = next(e for e in golden.edits if e["method"] == "rome" and e["center"] == 2)
    edit = loc_edit.rome(
        golden.model, request_of(golden, expected), 2, stats=golden.stats, contexts=CONTEXTS, settings=ROME
    )
    (update,) = expected["updates"]
    wanted = torch.outer(*(torch.from_numpy(golden.arrays[update[k]]) for k in ("left", "right")))
    assert (edit.delta(2) - wanted).norm() < 1e-3 * wanted.norm()
