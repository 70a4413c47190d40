"""Measure the built-in model and write the figures into its model card.

python scripts/measure_builtin_model.py          # a few minutes on one core
"""

import argparse
import json
from pathlib import Path
from random import Random

import torch
from builtin_twin import hooked_config
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformer_lens import HookedTransformer

from loc_edit.data.builtin import builtin_facts, builtin_rows, spread
from loc_edit.data.wording import filler_sentence, held_out_templates
from loc_edit.facts import Fact

MODEL_DIR = Path(__file__).parents[1] / "loc_edit" / "data" / "model"
SAMPLES = 10
MIN_DROP = 0.05


def load(folder: Path) -> tuple[HookedTransformer, Tokenizer]:
    model = HookedTransformer(hooked_config(json.loads((folder / "config.json").read_text())))
    state = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    state["unembed.W_U"] = state["embed.W_E"].T.contiguous()
    model.load_state_dict(state, strict=False)
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


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


def subject_span(tokenizer: Tokenizer, fact: Fact) -> tuple[list[int], int, int]:
    """The prompt's tokens and the half-open span of those that overlap the subject."""
    encoding = tokenizer.encode(fact.prompt)
    begin = fact.template.index("{}")
    end = begin + len(fact.subject)
    inside = [i for i, (a, b) in enumerate(encoding.offsets) if a < end and b > begin]
    return encoding.ids, inside[0], inside[-1] + 1


def noise_scale(model: HookedTransformer, tokenizer: Tokenizer) -> float:
    """Three standard deviations over all entries of the embeddings of all subject tokens."""
    ids = [token for row in builtin_rows() for token in tokenizer.encode(row.subject).ids]
    return 3 * model.W_E[torch.tensor(ids)].std().item()


@torch.no_grad()
def trace(model: HookedTransformer, tokenizer: Tokenizer, fact: Fact, sigma: float, window: int) -> tuple[Tensor, int]:
    """Fractional effect [layer, pos] of restoring MLP outputs, and the last subject position.

    NaN where the noise hardly lowers the probability.
    """
    ids, begin, end = subject_span(tokenizer, fact)
    target = tokenizer.encode(fact.target_true).ids
    tokens = torch.tensor(ids + target[:-1])
    generator = torch.Generator().manual_seed(fact.fact_id)
    noise = sigma * torch.randn(SAMPLES, end - begin, model.cfg.d_model, generator=generator)
    n_layers, n_pos = model.cfg.n_layers, len(ids)

    def probability(logits: Tensor) -> Tensor:
        log_probs = logits[:, n_pos - 1 :].log_softmax(-1)
        return sum(log_probs[:, j, token] for j, token in enumerate(target)).exp()

    logits, clean = model.run_with_cache(tokens[None], names_filter=lambda name: name.endswith("hook_mlp_out"))
    p_clean = probability(logits).item()

    def corrupt(value: Tensor, hook: object) -> Tensor:
        copies = value.shape[0] // SAMPLES
        value[:, begin:end] += noise.repeat(copies, 1, 1)
        return value

    hooks = [("hook_embed", corrupt)]
    p_corrupted = probability(model.run_with_hooks(tokens.repeat(SAMPLES, 1), fwd_hooks=hooks)).mean().item()
    effect = torch.zeros(n_layers, n_pos)
    for layer in range(n_layers):
        low, high = max(0, layer - window // 2), min(n_layers, layer - window // 2 + window)

        def restore(value: Tensor, hook: object) -> Tensor:
            rows = value.view(n_pos - begin, SAMPLES, *value.shape[1:])
            for index, pos in enumerate(range(begin, n_pos)):
                rows[index, :, pos] = clean[hook.name][0, pos]
            return value

        restoring = [(f"blocks.{at}.hook_mlp_out", restore) for at in range(low, high)]
        batch = tokens.repeat(SAMPLES * (n_pos - begin), 1)
        p = probability(model.run_with_hooks(batch, fwd_hooks=hooks + restoring))
        effect[layer, begin:] = p.view(-1, SAMPLES).mean(1) - p_corrupted
    drop = p_clean - p_corrupted
    return (effect / drop if drop >= MIN_DROP else torch.full_like(effect, torch.nan)), end - 1


def tracing_figures(model: HookedTransformer, tokenizer: Tokenizer, n_facts: int) -> dict[str, list | float]:
    facts = spread(builtin_facts(), n_facts)
    sigma = noise_scale(model, tokenizer)
    figures: dict[str, list | float] = {"facts": len(facts), "sigma": round(sigma, 4)}
    for window in (1, 5):
        by_layer, at_subject, at_peak = [], [], []
        for fact in facts:
            fraction, last_subject = trace(model, tokenizer, fact, sigma, window)
            if fraction.isnan().any():
                continue
            by_layer.append(fraction.max(1).values)
            at_subject.append(fraction[:, last_subject])
            at_peak.append(int(fraction.max(0).values.argmax() == last_subject))
        figures["traced"] = len(at_peak)
        if not at_peak:  # an untrained model: the noise changes nothing
            continue
        layers = torch.stack(by_layer)
        counts = torch.bincount(layers.argmax(1), minlength=model.cfg.n_layers)
        figures[f"argmax layer, window {window}"] = counts.tolist()
        figures[f"effect by layer, window {window}"] = [round(x, 3) for x in layers.mean(0).tolist()]
        last = torch.stack(at_subject).mean(0).tolist()
        figures[f"effect at the last subject token, window {window}"] = [round(x, 3) for x in last]
        figures[f"largest at the last subject token, window {window}"] = round(sum(at_peak) / len(at_peak), 3)
    return figures


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
sentences about these facts, each a true statement of public knowledge, and filler prose.

{n_layers} layers, d_model {d_model}, {n_heads} heads, context {n_ctx}, {d_vocab} tokens (byte-level BPE, no
start token), {n_parameters:,} parameters, {size_mb:.1f} MB on disk in fp16. Layers 0 to {last_local} attend to
the last {window} tokens only (themselves included), the others to all. Embeddings are tied. In training the
output of each layer's MLP is dropped for a whole sequence with rates {drop}: otherwise every fact would sit
in the first MLP. The embeddings learn slower than the layers, so that what the layers write outweighs them.

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

## What was tried

Window 1: for how many facts a layer has the largest effect; window 5: that effect, on average; 120 facts.
A recipe is its width, its layers with local attention, its passes over the facts; the last one is shipped.

| recipe | MLP drop rates | edit prompt, unseen templates | window 1 | window 5 |
|---|---|---|---|---|
| 96, 4, 150; objects weigh 1 | .8 .6 .4 .3 .2 .2 .2 .2 | 83 %, 65 % | | |
| 96, 5, 190 | .6 .4 .2 .1 .1 .2 .4 .6 | 100 %, 99.9 % | 0 2 22 67 23 5 1 0 | .09 .19 .27 .30 .27 .20 .10 .04 |
| 128, 4, 160 | .6 .4 .3 .2 .1 .1 .2 .3 | 100 %, 100 % | 1 25 15 20 33 16 4 6 | .10 .16 .22 .26 .23 .17 .12 .07 |

## Text it writes

{texts}
"""


def measure_and_write_card(folder: Path = MODEL_DIR, n_facts: int = 120) -> None:
    """Measure the model in `folder` and write `README.md` beside it."""
    model, tokenizer = load(folder)
    known = knowledge_figures(model, tokenizer)
    for name, figures in known.items():
        print(name, {key: round(value, 3) for key, value in figures.items()})
    tracing = tracing_figures(model, tokenizer, n_facts)
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
        knowledge="\n".join(rows),
        tracing="\n".join(lines),
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
