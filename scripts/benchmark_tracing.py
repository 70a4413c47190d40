"""How fast Causal Tracing is, beside plain code and beside the arithmetic that cannot be avoided.

python scripts/benchmark_tracing.py                        # the built-in model, minutes on one core
python scripts/benchmark_tracing.py --shape gpt2-small     # random weights: speed does not depend on their values

All versions run in turn in one process with the same number of threads, so that each round gives one ratio; printed
are the median ratio and its range.  What is compared:

- ours: `trace_many` of all facts; `trace` of one fact after the other.
- plain loop: one full forward pass per cell of the grid, every layer and position, with one clean row and K corrupted
  ones; and its share for the positions from the subject on, which alone can matter.
- act patch: `transformer_lens.patching.get_act_patch_mlp_out` on all K corrupted rows at once, window 1.
- block floor: for each cell by itself, the layers from its window's first on, the positions from the restored one on,
  times K, times what the model's own block costs per position at its best batch size.  (Cells share layers while
  they restore, which the shared floor counts; so the ratio to the block floor may be below that.)
- matrix floor: the multiplications of these blocks and of the unembedding at the answers, at the machine's speed.
"""

import argparse
import contextlib
import io
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.patching import get_act_patch_mlp_out
from transformers import PreTrainedTokenizerFast

import loc_edit
from loc_edit.data.builtin import spread
from loc_edit.models import BUILTIN, quiet, versions
from loc_edit.prompts import Prompt
from loc_edit.tracing import corruption_hooks, trace_many, window_layers
from loc_edit.tracing.sweep import plan

SHAPES = {
    "gpt2-small": {"n_layers": 12, "d_model": 768, "n_heads": 12, "d_head": 64, "d_mlp": 3072, "d_vocab": 50257},
    "gpt2-xl": {"n_layers": 48, "d_model": 1600, "n_heads": 25, "d_head": 64, "d_mlp": 6400, "d_vocab": 50257},
    "gptj": {
        "n_layers": 28,
        "d_model": 4096,
        "n_heads": 16,
        "d_head": 256,
        "d_mlp": 16384,
        "d_vocab": 50400,
        "positional_embedding_type": "rotary",
        "rotary_dim": 64,
        "rotary_adjacent_pairs": True,
        "parallel_attn_mlp": True,
    },
}
Case = tuple[Prompt, Tensor, Tensor]
"""A prompt, its target of one token, its noise."""


def make_model(shape: str, device: str, dtype: torch.dtype) -> HookedTransformer:
    """The built-in model, or one of another shape with random weights and the built-in tokenizer."""
    if shape == "builtin":
        return loc_edit.load_model("builtin", device=device, dtype=dtype)
    end = "<|endoftext|>"
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(BUILTIN / "tokenizer.json"), name_or_path=shape, eos_token=end, unk_token=end, pad_token=end
    )
    cfg = HookedTransformerConfig(
        n_ctx=128,
        act_fn="gelu_new",
        normalization_type="LN",
        default_prepend_bos=False,
        device=device,
        dtype=dtype,
        model_name=shape,
        seed=0,
        **SHAPES[shape],
    )
    with quiet():
        return loc_edit.load_model(HookedTransformer(cfg, fast), device=device)


def make_cases(model: HookedTransformer, n: int, samples: int) -> list[Case]:
    """Built-in facts whose object is one token, spread over the relations."""
    facts, cases = loc_edit.load_facts("builtin"), []
    for fact in spread(facts, len(facts)):
        prompt = loc_edit.encode(model, fact)
        target = loc_edit.target_tokens(model, prompt.text, fact.target_true)
        if len(target) == 1:
            noise = loc_edit.subject_noise(model, prompt, scale="s3", facts=facts, samples=samples)
            cases.append((prompt, target, noise))
    return cases[:: max(1, len(cases) // n)][:n]


@torch.inference_mode()
def plain_loop(model: HookedTransformer, case: Case, window: int) -> Tensor:
    """One full forward pass per (layer, position): row 0 is clean, the others are corrupted, and patched from it."""
    prompt, target, noise = case
    tokens = prompt.tokens.repeat(len(noise) + 1, 1)
    grid = torch.zeros(model.cfg.n_layers, len(prompt))

    def corrupt(value, hook):
        value[1:, prompt.subject] += noise
        return value

    for layer in range(model.cfg.n_layers):
        for pos in range(len(prompt)):

            def restore(value, hook, pos=pos):
                value[1:, pos] = value[0, pos]
                return value

            names = [f"blocks.{k}.hook_mlp_out" for k in window_layers(layer, window, model.cfg.n_layers)]
            logits = model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", corrupt), *((n, restore) for n in names)])
            grid[layer, pos] = logits[1:, -1].float().softmax(-1)[:, target[0]].mean()
    return grid


@torch.inference_mode()
def act_patch(model: HookedTransformer, case: Case) -> Tensor:
    """TransformerLens's own patching, window 1, mean over the noise."""
    prompt, target, noise = case
    _, clean = model.run_with_cache(prompt.tokens[None])
    with model.hooks(fwd_hooks=corruption_hooks(prompt, noise)), contextlib.redirect_stderr(io.StringIO()):
        return get_act_patch_mlp_out(
            model,
            prompt.tokens.repeat(len(noise), 1),
            clean,
            lambda logits: logits[:, -1].float().softmax(-1)[:, target[0]].mean(),
        )


def work(model: HookedTransformer, cases: list[Case], window: int) -> tuple[int, int, int]:
    """Positions times layers that cannot be avoided: cell by cell, and with shared layers; and rows to unembed."""
    n_layers = model.cfg.n_layers
    cells = [window_layers(layer, window, n_layers) for layer in range(n_layers)]
    steps = plan(sorted({(some[0], some[-1]) for some in cells}), n_layers, entered=True)
    states = sum(len(step.source) for step in steps[:n_layers])
    firsts = len({some[0] for some in cells})
    alone = shared = rows = 0
    for prompt, _, noise in cases:
        tails = range(1, len(prompt) - prompt.subject.start + 1)
        alone += len(noise) * sum(tails) * sum(n_layers - some[0] for some in cells)
        shared += len(noise) * (sum(tails) * states + len(tails) * firsts)
        rows += len(noise) * len(tails) * len(cells)
    return alone, shared, rows


class Floor:
    """Seconds that the model's own blocks, and matrix products of its shape, take for one position and layer."""

    def __init__(self, model: HookedTransformer, length: int) -> None:
        self.model, self.length, cfg = model, length, model.cfg
        costs = {rows: self._blocks(rows, 3) for rows in (4, 8, 16, 32, 64, 128, 256)}
        self.rows = min(costs, key=costs.__getitem__)
        self.multiplications = cfg.d_model * (4 * cfg.n_heads * cfg.d_head + 2 * cfg.d_mlp)

    def block(self) -> float:
        return self._blocks(self.rows, 5)

    @torch.inference_mode()
    def _blocks(self, rows: int, repeats: int) -> float:
        x = torch.randn(rows, self.length, self.model.cfg.d_model).to(self.model.W_E)
        times = []
        for _ in range(repeats):
            times.append(seconds(lambda: [block(x) for block in self.model.blocks]))
        return min(times) / (x.shape[0] * x.shape[1] * len(self.model.blocks))

    @torch.inference_mode()
    def matrix(self) -> float:
        """Seconds per multiplication (with its addition)."""
        cfg, n = self.model.cfg, self.rows * self.length
        x = torch.randn(n, cfg.d_model).to(self.model.W_E)
        w = torch.randn(cfg.d_model, cfg.d_mlp).to(x)
        return min(seconds(lambda: [x @ w for _ in range(10)]) for _ in range(5)) / (10 * n * w.numel())


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = CLOCKS["wall"]


def seconds(run: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def versions_of_tracing(
    model: HookedTransformer, cases: list[Case], window: int
) -> dict[str, Callable[[], list[Tensor]]]:
    """Everything that is timed: name -> the grids of all cases."""
    prompts, targets, noises = (list(column) for column in zip(*cases, strict=True))

    def many(windows: list[int]) -> list[Tensor]:
        return [found[-1].p_restored for found in trace_many(model, prompts, targets, noises=noises, windows=windows)]

    return {
        "ours": lambda: many([window]),
        "ours, one by one": lambda: [
            loc_edit.trace(model, p, t, noise=n, window=window).p_restored for p, t, n in cases
        ],
        "ours, window 1": lambda: many([1]),
        "ours, windows 1 3 10 and this": lambda: many([1, 3, 10, window]),
        "plain loop": lambda: [plain_loop(model, case, window) for case in cases],
        "act patch, window 1": lambda: [act_patch(model, case) for case in cases],
    }


def spread_of(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["builtin", *SHAPES], default="builtin")
    parser.add_argument("--facts", type=int, help="default: 8 of the built-in model, else 1")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--out", type=Path, help="default: benchmark_tracing_SHAPE.json, here")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: this process's processor time, on a machine with neighbours",
    )
    args = parser.parse_args()
    global clock
    clock = CLOCKS[args.clock]
    torch.set_num_threads(args.threads)
    model = make_model(args.shape, args.device, getattr(torch, args.dtype))
    cases = make_cases(model, args.facts or (8 if args.shape == "builtin" else 1), args.samples)
    timed = versions_of_tracing(model, cases, args.window)

    grids = {name: run() for name, run in timed.items()}  # a first round: warms up, and checks
    pairs = [("ours", "plain loop"), ("ours, one by one", "ours"), ("ours, window 1", "act patch, window 1")]
    worst = max(
        (a[:, p.subject.start :].cpu() - b[:, p.subject.start :].cpu()).abs().max().item()
        for one, other in pairs
        for a, b, (p, _, _) in zip(grids[one], grids[other], cases, strict=True)
    )
    length = round(statistics.mean(len(prompt) for prompt, _, _ in cases))
    floor = Floor(model, length)
    alone, shared, rows = work(model, cases, args.window)
    alone_1, shared_1, _ = work(model, cases, 1)
    products = alone * floor.multiplications + rows * model.cfg.d_model * model.cfg.d_vocab_out
    rounds: list[dict[str, float]] = []
    for _ in range(args.rounds):
        before = floor.block()
        found = {name: seconds(run) for name, run in timed.items()}
        block = (before + floor.block()) / 2
        found |= {
            "block floor": alone * block,
            "shared block floor": shared * block,
            "block floor, window 1": alone_1 * block,
            "shared block floor, window 1": shared_1 * block,
            "matrix floor": products * floor.matrix(),
        }
        after_subject = sum(len(p) - p.subject.start for p, _, _ in cases) / sum(len(p) for p, _, _ in cases)
        found["plain loop, from the subject on"] = found["plain loop"] * after_subject
        rounds.append(found)

    ratios = {
        f"{top} / {bottom}": spread_of([r[top] / r[bottom] for r in rounds])
        for top, bottom in [
            ("ours", "block floor"),
            ("ours", "shared block floor"),
            ("ours, one by one", "block floor"),
            ("ours, window 1", "block floor, window 1"),
            ("ours, window 1", "shared block floor, window 1"),
            ("ours", "matrix floor"),
            ("plain loop", "ours"),
            ("plain loop, from the subject on", "ours"),
            ("plain loop", "ours, one by one"),
            ("act patch, window 1", "ours, window 1"),
            ("ours, windows 1 3 10 and this", "ours"),
        ]
    }
    result = {
        "machine": {**versions(), "node": platform.node(), "threads": torch.get_num_threads()},
        "arguments": {name: str(value) for name, value in vars(args).items()},
        "prompts": [len(prompt) for prompt, _, _ in cases],
        "largest difference": worst,
        "seconds a fact": {name: spread_of([r[name] / len(cases) for r in rounds]) for name in rounds[0]},
        "ratios": ratios,
        "microseconds a position and layer": floor.block() * 1e6,
        "peak memory, MB": torch.cuda.max_memory_allocated() / 2**20
        if torch.cuda.is_available()
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(f"\n{args.shape}, {len(cases)} facts of {length} tokens, {args.samples} samples, window {args.window}")
    print(f"{args.threads} threads, {args.rounds} rounds, {args.clock} clock; largest difference {worst:.1e}\n")
    for title in ("seconds a fact", "ratios"):
        print(f"{title:<56}{'median':>9}{'low':>9}{'high':>9}")
        for name, value in result[title].items():
            print(f"  {name:<54}{value['median']:9.3f}{value['low']:9.3f}{value['high']:9.3f}")
    out = args.out or Path(f"benchmark_tracing_{args.shape}.json")
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {out}")
    if args.dtype == "float32" and worst > 1e-5:
        raise SystemExit(f"the versions differ by {worst:.1e}: 1e-5 is allowed")


if __name__ == "__main__":
    main()
