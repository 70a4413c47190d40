"""Parts of `scripts/bench_real.py` that are measured beside Hugging Face: decoding, keys; and loading."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import loc_edit
from benching.peers import FirstLayers, best, generate
from benching.real_cases import Case, load
from benching.setup import SHAPES
from benching.timing import spread_of
from loc_edit.keys.builtin_corpus import builtin_corpus
from loc_edit.keys.compute import SMALL_BATCH
from loc_edit.keys.streaming import BATCH, start_pass
from loc_edit.keys.tokens import write_tokens
from loc_edit.models.decoding import TOP_K, sample_tokens
from loc_edit.prompts.encoding import tokenize
from loc_edit.prompts.recall import ANSWER_LENGTH, answers
from loc_edit.prompts.sampling import ESSENCE_LENGTH, ESSENCE_TEXTS, ROME_LENGTHS, sample_contexts, sample_essences

PEER_BATCHES = (256, 512, 1024, 2048, 8192)
"""Tokens of a batch that Hugging Face's pass for the keys is tried with."""


def filtering(case: Case) -> Iterator[dict[str, Any]]:
    """Known-fact filter: `answers` beside `generate`, 36 greedy tokens, prompts of mixed lengths."""
    model, facts = case.model, case.spread(case.sizes["known"])
    prompts = [loc_edit.encode(model, fact).tokens for fact in facts]
    peer, same_weights = case.peer

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            answers(model, facts, cache=folder)

    wanted = generate(peer, prompts, ANSWER_LENGTH)
    made = sample_tokens(model, prompts, [torch.zeros(ANSWER_LENGTH)] * len(prompts), top_k=1)
    equal = sum(row[-ANSWER_LENGTH:].tolist() == other for row, other in zip(made, wanted, strict=True))
    what = f"{len(facts)} facts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens, {ANSWER_LENGTH} new"
    versions = {"ours": ours, "generate": lambda: generate(peer, prompts, ANSWER_LENGTH)}
    note = f"{equal} of {len(facts)} answers the same" if same_weights else "other random weights"
    yield case.beside_peer("filter", what, versions, 0.65, equal=equal if same_weights else None, note=note)


def sampling(case: Case) -> Iterator[dict[str, Any]]:
    """Essence and context texts beside `generate` with as many new tokens; ratios of seconds for each token."""
    model, (peer, _), facts = case.model, case.peer, case.facts[: case.sizes["subjects"]]
    subjects, ids = [fact.subject for fact in facts], [fact.fact_id for fact in facts]
    starts = [tokenize(model, f"{subject} is a") for subject in subjects for _ in range(ESSENCE_TEXTS)]
    length = min(ESSENCE_LENGTH, model.cfg.n_ctx)
    n_new = [length - len(start) for start in starts]
    each = round(sum(n_new) / len(n_new))
    bos = torch.tensor([model.tokenizer.eos_token_id], device=model.W_E.device)
    contexts = sum(count * (n - 1) for count, n in ROME_LENGTHS)
    for what, ours, theirs, ours_new, theirs_new in (
        (
            f"{len(starts)} essence texts to {length} tokens",
            lambda: sample_essences(model, subjects, ids),
            lambda: generate(peer, starts, each, top_k=TOP_K),
            sum(n_new),
            each * len(starts),
        ),
        (
            f"{sum(count for count, _ in ROME_LENGTHS)} contexts",
            lambda: sample_contexts(model, "rome"),
            lambda: [generate(peer, [bos] * count, n - 1, top_k=TOP_K) for count, n in ROME_LENGTHS],
            contexts,
            contexts,
        ),
    ):
        found = case.beside_peer("sampling", what, {"ours": ours, "generate": theirs}, 1.2)
        speeds = [ours_new / found["ours, s"]["median"], theirs_new / found["peer, s"]["median"]]
        slower, share = found["ratio"], ours_new / theirs_new
        found["ratio"] = {
            "median": share / slower["median"],
            "low": share / slower["high"],
            "high": share / slower["low"],
        }
        found["tokens per second"] = dict(zip(("ours", "generate"), speeds, strict=True))
        yield found | {"note": f"{speeds[0]:.0f} tokens/s, generate {speeds[1]:.0f}; at least"}


def keys(case: Case) -> Iterator[dict[str, Any]]:
    """The pass of `key_stats`, without and with its convergence, beside Hugging Face's first layers and k^T k."""
    model, layer = case.model, case.layer
    first = FirstLayers(case.peer[0], layer + 1)
    with tempfile.TemporaryDirectory() as folder:
        tokens = write_tokens(model, builtin_corpus(), case.sizes["tokens"], Path(folder))
        rows = tokens.read(0, len(tokens))
        batch = min(BATCH, max(SMALL_BATCH, tokens.n_tokens // 32))
        peer_batch = best(lambda size: first.run(rows, size), PEER_BATCHES, case.clock.seconds)

        def ours(convergence: bool) -> None:
            work = start_pass(model, [layer], torch.float32, batch)
            if not convergence:
                work.samples.marks = ()
            work.run(model, tokens)

        for convergence, goal in ((False, 1.05), (True, None)):
            what = f"{tokens.n_tokens} tokens, layer {layer}" + ", with convergence" * convergence
            versions = {
                "ours": lambda convergence=convergence: ours(convergence),
                "first layers": lambda: first.run(rows, peer_batch),
            }
            yield case.beside_peer("keys", what, versions, goal, note=f"its best batch: {peer_batch} tokens")


def loading(case: Case) -> Iterator[dict[str, Any]]:
    """The second and later loads of the model."""
    if case.source in SHAPES:
        return
    dtype = getattr(torch, case.args.dtype)
    load(case.source, case.args.device, dtype)
    n = case.args.rounds
    seconds = spread_of([case.clock.seconds(lambda: load(case.source, case.args.device, dtype)) for _ in range(n)])
    ratios = {name: value / 3 for name, value in seconds.items()}
    yield {
        "part": "loading",
        "what": "a load after the first",
        "peer": "3 s",
        "ours, s": seconds,
        "peer, s": spread_of([3.0]),
        "ratio": ratios,
        "goal": 1.0,
    }
