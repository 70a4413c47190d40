"""Attacks the package at random for a set time: kills and damages runs, and feeds bad input.

    python scripts/attack.py [--minutes 60] [--most 1000] [--seed 0] [--kinds kill damage feed] [--only NUMBER]
                             [--out attack.csv]

Nothing may be lost, doubled or silently wrong, and no error may leave its reader without the name of what was wrong.
`--only` repeats one attack of a seed (a kill, which depends on the time, may then hit another moment).  Prints the
counts and every attack that did harm; the exit status is 1 if there was one.
"""

import argparse
import csv
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import astuple, fields
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from attacking.faults import damage, kill
from attacking.feeds import feed
from attacking.world import Attempt, World

ATTACKS = {"kill": kill, "damage": damage, "feed": feed}
TURNS = ("kill", "damage", *["feed"] * 10)
"""What is done in turn, as one run takes as long as some tens of refusals."""


def attack(world: World, seed: int, number: int, kinds: list[str]) -> Attempt | None:
    """The attack of a number, or none if its kind is not asked for."""
    kind = TURNS[number % len(TURNS)]
    if kind not in kinds:
        return None
    return ATTACKS[kind](world, number, random.Random(f"{seed}/{number}"), world.folder / kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--most", type=int, default=10**9, help="attacks, if they do not take the whole time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=sorted(ATTACKS), default=sorted(ATTACKS))
    parser.add_argument("--only", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: list[Attempt] = []
    deadline = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for number in range(10**9) if options.only is None else [options.only]:
            if time.monotonic() > deadline or len(found) == options.most:
                break
            attempt = attack(world, options.seed, number, options.kinds)
            if attempt is None:
                continue
            found.append(attempt)
            if attempt.is_bad or options.only is not None:
                text = f"{attempt.number}  {attempt.outcome:9}  {attempt.what}\n        {attempt.text}"
                print(text.encode(errors="backslashreplace").decode(), flush=True)
    if options.out:
        with options.out.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([field.name for field in fields(Attempt)])
            writer.writerows(astuple(attempt) for attempt in found)
    for kind in sorted(ATTACKS):
        counts = Counter(attempt.outcome for attempt in found if attempt.kind == kind)
        print(f"{kind}: {sum(counts.values())} tried: " + ", ".join(f"{n} {name}" for name, n in counts.most_common()))
    sys.exit(any(attempt.is_bad for attempt in found))


if __name__ == "__main__":
    main()
