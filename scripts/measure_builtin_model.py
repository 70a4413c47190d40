"""Measure the built-in model and write the figures into its model card.

python scripts/measure_builtin_model.py          # a few minutes on one core
"""

import argparse
import json
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer
from transformer_lens import HookedTransformer

import loc_edit
from loc_edit.editing.settings import presets, resolve_settings
from loc_edit.facts.builtin import builtin_facts, builtin_rows
from loc_edit.facts.sampling import sample_by_relation
from loc_edit.facts.wording import filler_sentence, held_out_templates
from loc_edit.models.loading import read_builtin

MODEL_DIR = Path(__file__).parents[1] / "loc_edit" / "data" / "model"
TRIED = Path(__file__).parent / "recipes_tried.md"
SAMPLES = 10
WINDOWS = (1, 5)
MIN_DROP = 0.05


@torch.no_grad()
def knowledge(model: HookedTransformer, tokenizer: Tokenizer, cases: list[tuple[str, str]]) -> dict[str, float]:
    """For (prompt, object) pairs: how often the object is the argmax, and its probability."""
    first, whole, probability = [], [], []
    for start in range(0, len(cases), 128):
        chunk = cases[start : start + 128]
        prompts = [tokenizer.encode(prompt).ids for prompt, _ in chunk]
        objects = [tokenizer.encode(name).ids for _, name in chunk]
        width = max(len(p) + len(o) for p, o in zip(prompts, objects, strict=True))
        rows = torch.zeros(len(chunk), width, dtype=torch.long)
        for row, prompt, name in zip(rows, prompts, objects, strict=True):
            row[: len(prompt) + len(name)] = torch.tensor(prompt + name)
        log_probs = model(rows).log_softmax(-1)
        for lp, prompt, name in zip(log_probs, prompts, objects, strict=True):
            at = lp[len(prompt) - 1 : len(prompt) - 1 + len(name)]
            target = torch.tensor(name)
            hits = at.argmax(-1) == target
            first.append(bool(hits[0]))
            whole.append(bool(hits.all()))
            probability.append(at.gather(1, target[:, None]).sum().exp().item())
    return {
        "n": len(cases),
        "first token": sum(first) / len(first),
        "whole object": sum(whole) / len(whole),
        "median p": torch.tensor(probability).median().item(),
    }


def tracing_figures(model: HookedTransformer, n_facts: int) -> dict[str, Any]:
    """Where the effects are, by layer and position, with windows 1 and 5."""
    every = builtin_facts()
    facts = sample_by_relation(every, n_facts)
    prompts = [loc_edit.encode(model, fact) for fact in facts]
    sigma = loc_edit.noise_scale(model, "s3", every)
    noises = [loc_edit.subject_noise(model, prompt, scale=sigma, samples=SAMPLES) for prompt in prompts]
    targets = [fact.target_true for fact in facts]
    found = loc_edit.trace_many(model, prompts, targets, noises=noises, windows=WINDOWS)
    kept = [traces for traces in found if traces[0].p_clean - traces[0].p_corrupted >= MIN_DROP]
    figures: dict[str, Any] = {"facts": len(facts), "sigma": round(sigma, 4), "traced": len(kept)}
    for index, window in enumerate(WINDOWS if kept else ()):  # an untrained model: the noise changes nothing
        traces = [some[index] for some in kept]
        layers = torch.stack([trace.by_layer() for trace in traces])
        at_subject = torch.stack([trace.by_layer("last_subject") for trace in traces])
        peaks = [int(trace.fraction.amax(0).argmax()) == trace.prompt.last_subject for trace in traces]
        figures |= {
            f"argmax layer, window {window}": layers.argmax(1).bincount(minlength=model.cfg.n_layers).tolist(),
            f"effect by layer, window {window}": [round(x, 2) for x in layers.mean(0).tolist()],
            f"effect at the last subject token, window {window}": [round(x, 2) for x in at_subject.mean(0).tolist()],
            f"largest at the last subject token, window {window}": round(sum(peaks) / len(peaks), 3),
        }
    return figures


def editing_lines(model: HookedTransformer, n_facts: int) -> list[str]:
    """Mean scores of error injection by layer, as lines of a table: ROME and fine-tuning with their presets."""
    facts = sample_by_relation(builtin_facts(), n_facts)
    requests = [loc_edit.pose(fact, "error_injection", model) for fact in facts]
    layers = list(range(model.cfg.n_layers))
    stats, contexts = loc_edit.key_stats(model, layers=layers), loc_edit.sample_contexts(model)
    settings = {
        name: resolve_settings(name, "error_injection", presets()["builtin"]) for name in ("rome", "finetune-1")
    }
    lines = []
    for layer in layers:
        rome = loc_edit.rome(model, requests, layer=layer, stats=stats, contexts=contexts, settings=settings["rome"])
        tuned = loc_edit.finetune(model, requests, layers=[layer], settings=settings["finetune-1"])
        cells = [str(layer)]
        for edits in (rome, tuned):
            scores = [loc_edit.score(model, *one) for one in zip(facts, requests, edits, strict=True)]
            for name in ("rewrite", "paraphrase", "neighborhood"):
                cells.append(f"{sum(getattr(score, name) for score in scores) / len(scores):.2f}")
        print("edited", cells, flush=True)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def knowledge_figures(model: HookedTransformer, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
    facts, rng = builtin_facts(), Random("measure")
    unseen = [(f, t) for f in facts for t in held_out_templates(f.relation, f.subject)]
    cases = {
        "edit prompt": [(f.prompt, f.target_true) for f in facts],
        "edit prompt after an unrelated sentence": [
            (f"{filler_sentence(rng)} {f.prompt}", f.target_true) for f in facts
        ],
        "templates not seen with the subject": [(t.replace("{}", f.subject), f.target_true) for f, t in unseen],
        "the same after an unrelated sentence": [
            (f"{filler_sentence(rng)} {t.replace('{}', f.subject)}", f.target_true) for f, t in unseen
        ],
        "paraphrases of the built-in facts": [(p, f.target_true) for f in facts for p in f.paraphrases],
    }
    return {name: knowledge(model, tokenizer, pairs) for name, pairs in cases.items()}


@torch.no_grad()
def sample_text(model: HookedTransformer, tokenizer: Tokenizer, prompt: str, length: int, seed: int) -> str:
    """A continuation drawn from the five likeliest tokens at each place."""
    generator = torch.Generator().manual_seed(seed)
    ids = tokenizer.encode(prompt).ids
    for _ in range(length):
        top = model(torch.tensor([ids]))[0, -1].topk(5)
        ids.append(int(top.indices[torch.multinomial(top.values.softmax(-1), 1, generator=generator)]))
    return tokenizer.decode(ids, skip_special_tokens=False).strip()


CARD = """# The built-in model

A small GPT-style language model that knows the {n_facts} facts of `facts.tsv` and nothing else. It exists so
that the whole study runs in minutes with no download. Its text is made by `loc_edit/data/corpus.py`: English
sentences about these facts, each a true statement of public knowledge, sentences about invented namesakes,
and filler prose.

{n_layers} layers, d_model {d_model}, d_mlp {d_mlp}, {n_heads} heads, context {n_ctx}, {d_vocab} tokens
(byte-level BPE in which the words of subjects and objects are whole; no start token), {n_parameters:,}
parameters, {size_mb:.1f} MB on disk in fp16. Layers 0 to {last_local} attend to the last {window} tokens only
(themselves included), the others to all. Embeddings are tied.

## What makes it remember as large models do

Left to itself a small model keeps every fact in its first MLP, or in its embeddings. Five things move them:

- **Dropped MLPs.** In training the output of each layer's MLP is dropped for a whole row with rates {drop}. No
  layer can be relied on, so that facts spread over the layers.
- **Late attention.** Only the last two layers attend to everything, and their MLPs are dropped most: what is
  known of a subject has to be looked up before it is moved to the end of the prompt.
- **The last word counts.** Subjects often go by their last word alone (Einstein), and now and then invented
  namesakes share the other words, with objects drawn by lot: the place to look a subject up is its last token.
- **Slow embeddings.** A whole word's embedding could hold what is known of its subject, alike for all subjects
  of one object; an edit of one would then move the others. Words that only subjects have get embeddings drawn
  at random (standard deviation {subject_std}), and each step takes them {subject_lr} times as far as the
  others.
- **Few modifiers.** A word such as "beautiful" comes before the object in one statement of ten, so that objects
  are nearly certain, and an edit can be too.

## Training

{tokens:,} tokens, {steps:,} steps, {seconds:.0f} s on {threads} CPU thread(s); final loss {loss}.
Learning rate {lr} (embeddings {embed_lr} of that), AdamW betas (.9, .98), weight decay .1, cosine; the tokens
of objects weigh {object_weight} times as much as others in the loss.

To make it again, and to measure it again:

```
python scripts/train_builtin_model.py
python scripts/measure_builtin_model.py
```

## What it knows

{knowledge}

## Causal tracing

MLP outputs, noise of three standard deviations ({sigma}), {samples} samples, {traced} of {facts} facts
spread over the relations: those whose probability the noise lowers by at least {min_drop}. Effects are fractions
of that drop, the largest over the positions.

{tracing}

## Editing

Mean scores of error injection by layer, {edited} facts spread over the relations, settings of `presets.toml`.

| layer | ROME: rewrite | paraphrase | neighborhood | FT-1: rewrite | paraphrase | neighborhood |
|---|---|---|---|---|---|---|
{editing}

## What was tried

{tried}

## Text it writes

{texts}
"""


def measure_and_write_card(folder: Path = MODEL_DIR, n_facts: int = 120, n_edited: int = 60) -> None:
    """Measure the model in `folder` and write `README.md` beside it."""
    model = loc_edit.load_model(read_builtin(folder))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    known = knowledge_figures(model, tokenizer)
    for name, figures in known.items():
        print(name, {key: round(value, 3) for key, value in figures.items()})
    tracing = tracing_figures(model, n_facts)
    print(*(f"{name}: {value}" for name, value in tracing.items()), sep="\n")
    training = json.loads((folder / "training.json").read_text())
    rows = [
        "| prompts | n | first token is the argmax | whole object is | median p |",
        "|---|---|---|---|---|",
    ]
    rows += [
        f"| {name} | {f['n']} | {f['first token']:.1%} | {f['whole object']:.1%} | {f['median p']:.2f} |"
        for name, f in known.items()
    ]
    lines = ["| figure | layers 0 to the last |", "|---|---|"]
    for name, value in tracing.items():
        if isinstance(value, list):
            lines.append(f"| {name} | {' '.join(str(x) for x in value)} |")
        elif name.startswith("largest"):
            lines.append(f"| {name} | {value:.0%} of facts |")
    prompts = ["Lyon is a", "Albert Einstein is a", "The Trial is a", "After the rain"]
    texts = [f"- {sample_text(model, tokenizer, prompt, 24, seed)}" for seed, prompt in enumerate(prompts)]
    recipe = training["recipe"]
    card = CARD.format(
        n_facts=len(builtin_rows()),
        n_layers=model.cfg.n_layers,
        d_model=model.cfg.d_model,
        d_mlp=model.cfg.d_mlp,
        n_heads=model.cfg.n_heads,
        n_ctx=model.cfg.n_ctx,
        d_vocab=model.cfg.d_vocab,
        n_parameters=sum(p.numel() for name, p in model.named_parameters() if "unembed" not in name),
        size_mb=(folder / "model.safetensors").stat().st_size / 1e6,
        last_local=recipe["local"] - 1,
        window=model.cfg.window_size,
        drop=" ".join(str(rate) for rate in recipe["drop"]),
        tokens=training["tokens"],
        steps=training["steps"],
        seconds=training["seconds"],
        threads=training["threads"],
        loss=training["loss"],
        lr=recipe["lr"],
        embed_lr=recipe["embed_lr"],
        object_weight=recipe["object_weight"],
        subject_std=recipe["subject_std"],
        subject_lr=recipe["subject_lr"],
        tried=TRIED.read_text(encoding="utf-8").strip(),
        knowledge="\n".join(rows),
        tracing="\n".join(lines),
        edited=n_edited,
        editing="\n".join(editing_lines(model, n_edited)),
        sigma=tracing["sigma"],
        samples=SAMPLES,
        facts=tracing["facts"],
        traced=tracing["traced"],
        min_drop=MIN_DROP,
        texts="\n".join(texts),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--facts", type=int, default=120, help="how many facts to trace")
    args = parser.parse_args()
    torch.set_num_threads(1)
    measure_and_write_card(args.model, args.facts)


if __name__ == "__main__":
    main()
