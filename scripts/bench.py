"""How fast tracing and editing are, beside plain code and beside the arithmetic that cannot be avoided.

python scripts/bench.py                                       # built-in model and GPT-2 small, this machine
python scripts/bench.py --shapes gptj --device cuda --facts 25 --plain 1 --layers 3 --tf32
python scripts/bench.py --shapes gptj --device cuda --dtype bfloat16 --facts 25 --plain 0

All versions run in one process with the same number of threads, in turn and then in reverse, so that each round gives
one ratio; printed are the median ratio and its range.  Shapes but the built-in one have random weights (speed does not
depend on their values) and statistics that are the identity.  One JSON file holds everything.

- ours: `trace_many` of all facts; a method's edits of all facts and all their scores, mean over the layers.
- plain: one forward pass per cell of a trace; one fact at a time, no work reused, weights written (`benching.plain`).
- act patch: `transformer_lens.patching.get_act_patch_mlp_out` on all noise samples at once, window 1.
- block floor: positions times layers that cannot be avoided, times what TransformerLens's own block costs per position
  at its best batch size (forward, or forward and backward); fine-tuning's backward pass has the trained weights'
  gradients too, each fact's by itself (the floor without them is beside it).  In a trace, cell by cell; the shared
  floor counts layers that several cells share once.  It can be gone below: our blocks compute GELU, LayerNorm and
  attention by one kernel each (the fused block floor is made of such blocks), the last layer for the answers' positions
  only, and in the first edited layer nothing but what the edit adds.  Not in it: the unembedding, and fine-tuning's
  Adam and box (floors of their own, named for what they add).
- matrix floor: the multiplications of these blocks and of the unembedding, at the machine's speed.
"""

import argparse
import itertools
import json
import os
from typing import Any

import torch
from benching.parts import editing, growth, tracing
from benching.setup import SHAPES, make_cases, make_model
from benching.timing import Clock, add_options, new_result
from benching.totals import precision, study

PARTS = ("tracing", "editing", "growth", "study", "precision")
BY_DEFAULT = {"builtin": (12, 8), "tiny": (2, 2), "tiny-llama": (2, 2), "gpt2": (2, 2), "smollm2-135m": (2, 2)}
"""Facts and edited layers of each shape; of larger ones 8 and 3."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--shapes", nargs="+", choices=["builtin", *SHAPES], default=["builtin", "gpt2"])
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS[:4]))
    made.add_argument("--facts", type=int, help="default: 12 of the built-in model, fewer of large ones")
    made.add_argument("--layers", type=int, help="how many layers to edit, spread; default: all of the built-in model")
    made.add_argument("--plain", type=int, help="facts for the plain code, scaled up; 0: none; default: all, else 1")
    made.add_argument("--samples", type=int, default=10, help="noise samples")
    made.add_argument("--window", type=int, default=5)
    add_options(made, "bench.json")
    return made


def main() -> None:
    args = parser().parse_args()
    result: dict[str, Any] = {**new_result(args), "shapes": {}}
    wanted, numbers = (args.facts, args.layers, args.plain), args.threads
    for shape, threads in itertools.product(args.shapes, numbers):
        torch.set_num_threads(threads)
        name = shape if threads == numbers[0] else f"{shape}, {threads} threads"
        facts, layers = BY_DEFAULT.get(shape, (8, 3))
        args.facts, args.layers = wanted[0] or facts, wanted[1] or layers
        args.plain = wanted[2] if wanted[2] is not None else (args.facts if shape in ("builtin", "tiny") else 1)
        result["shapes"][name] = found = bench(shape, args)
        result["machine"]["load after"] = os.getloadavg()
        print_table(name, found, args)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {args.out}")


def bench(shape: str, args: argparse.Namespace) -> dict[str, Any]:
    """All parts of one shape."""
    clock, found = Clock(args.clock), {}
    model = make_model(shape, args.device, getattr(torch, args.dtype))
    cases = make_cases(model, args.facts, args.samples)
    if "tracing" in args.parts or "study" in args.parts:
        found["tracing"] = tracing(model, cases, args, clock)
    if "editing" in args.parts or "study" in args.parts:
        found["editing"] = editing(model, cases, args, clock)
    if "growth" in args.parts:
        found["growth"] = growth(model, shape, args, clock)
    if "study" in args.parts:
        found["study"] = study(model, cases, found["tracing"], found["editing"], clock)
    if "precision" in args.parts:
        found["precision"] = precision(shape, min(2, args.facts), args)
    return found


def print_table(shape: str, found: dict[str, Any], args: argparse.Namespace) -> None:
    print(f"\n{shape}: {args.facts} facts, {args.samples} samples, {args.dtype}, {args.device}, ", end="")
    print(f"{torch.get_num_threads()} threads, {args.rounds} rounds, {args.clock} clock")
    print(f"  {'':<54}{'median':>10}{'low':>10}{'high':>10}")
    if "tracing" in found:
        _lines("seconds per trace: ", found["tracing"]["seconds per trace"])
        _lines("traces: ", found["tracing"]["ratios"])
    for method, one in found.get("editing", {}).get("methods", {}).items():
        _lines("", {f"{method}: edits per second": one["edits per second"]})
        _lines(f"{method}: ", one["ratios"])
    for what, series in found.get("growth", {}).items():
        for n, times in series.items():
            print(f"  {what} {n:<10}" + "".join(f"  {name} {seconds:.4f} s" for name, seconds in times.items()))
    for setting, gaps in found.get("precision", {}).items():
        for name, gap in gaps.items():
            print(f"  {setting}: {name:<46}{gap:10.1e}")
    if "study" in found:
        print(f"  the whole study: {found['study']['hours']:.1f} hours")
        minutes = (found["study"][f"built-in grid, {which}minutes"] for which in ("", "block floors, "))
        print("  100 facts x 8 layers x 4 methods x 5 problems: {:.1f} minutes, block floors {:.1f}".format(*minutes))
    for part in ("tracing", "editing"):
        if part in found:
            print(f"  peak memory after {part}: {found[part]['peak memory, MB']:.0f} MB")


def _lines(before: str, values: dict[str, dict[str, float]]) -> None:
    for name, value in values.items():
        print(f"  {before + name:<54}{value['median']:10.3f}{value['low']:10.3f}{value['high']:10.3f}")


if __name__ == "__main__":
    main()
