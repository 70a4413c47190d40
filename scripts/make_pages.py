"""Fill in the numbers of the pages about the study's answer from the CSV files of `figures/`.

python scripts/make_pages.py          # writes figures/README.md and the answer in README.md
python scripts/make_pages.py --check  # fails if a page does not say what the files say

A page is a Jinja template beside its result (`figures/README.md.jinja`).  In it, `t("builtin/table_3")` is the frame of
`figures/builtin/table_3.csv`, `value("builtin/statistics", "r_fact", method="rome", ...)` is one number, and
`claim(condition)` stops the build if the sentence after it is no longer true.
"""

import argparse
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "figures"
ANSWER = re.compile(
    r"(?<=<!-- answer: made by scripts/make_pages.py -->\n).*?(?=<!-- end of the answer -->)", re.DOTALL
)


NAMES = {"smollm2": "SmolLM2-135M", "gemma3-270m": "Gemma 3 270M", "builtin": "built-in model"}
"""The models that may have a folder of figures, in the order of the page."""


class NotTrue(ValueError):
    """A sentence of a page is contradicted by its files."""


@cache
def table(name: str) -> pd.DataFrame:
    """A CSV file of the folder of figures."""
    return pd.read_csv(FIGURES / f"{name}.csv")


def rows(name: str, **where: Any) -> pd.DataFrame:
    """The rows of a table whose columns have the given values."""
    frame = table(name)
    for column, wanted in where.items():
        frame = frame[frame[column] == wanted]
    return frame


def value(name: str, column: str, **where: Any) -> float:
    """The only value of a column in these rows."""
    found = rows(name, **where)
    if len(found) != 1:
        raise ValueError(f"{name}.csv has {len(found)} rows where {where}, expected 1")
    return float(found[column].iloc[0])


def models() -> list[str]:
    """The models whose folder has a verdict."""
    return [name for name in NAMES if (FIGURES / name / "verdict.csv").is_file()]


def counts(model: str, question: str) -> str:
    """How many pairs of problem and method answer a question about the rewrite score with no, unclear and yes."""
    answers = list(rows(f"{model}/verdict", outcome="rewrite")[question])
    return " / ".join(str(answers.count(answer)) for answer in ("no", "unclear", "yes"))


def claim(condition: bool) -> str:
    """Nothing, if the condition holds.

    Raises:
        NotTrue: it does not hold.
    """
    if not condition:
        raise NotTrue("a claim does not hold any more")
    return ""


def decimals(number: float, digits: int = 2) -> str:
    """A number between -1 and 1 without its leading zero: `.84`."""
    text = f"{number:.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def points(number: float) -> str:
    """A share as percentage points with one decimal: `3.7`."""
    return f"{100 * number:.1f}"


def percent(number: float) -> str:
    """A share as whole percents, without the sign: `84`."""
    return f"{100 * number:.0f}"


def environment() -> jinja2.Environment:
    """Where the templates are rendered."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FIGURES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    made.globals |= {"t": table, "rows": rows, "value": value, "claim": claim}
    made.globals |= {"models": models, "names": NAMES, "counts": counts}
    made.filters |= {"decimals": decimals, "points": points, "percent": percent}
    return made


def pages() -> dict[Path, str]:
    """The text of each page."""
    made = environment()
    readme = ROOT / "README.md"
    answer = made.get_template("answer.md.jinja").render()
    text, n = ANSWER.subn(lambda match: answer, readme.read_text(encoding="utf-8"))
    if n != 1:
        raise ValueError(f"{readme}: expected one place for the answer, found {n}")
    return {readme: text, FIGURES / "README.md": made.get_template("README.md.jinja").render()}


def write() -> None:
    """Write the pages that have changed."""
    for path, text in pages().items():
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(ROOT)} has new numbers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    args = parser.parse_args()
    if not args.check:
        return write()
    old = [path for path, text in pages().items() if path.read_text(encoding="utf-8") != text]
    sys.exit("\n".join(f"{path.relative_to(ROOT)} does not say what the files say" for path in old) or 0)


if __name__ == "__main__":
    main()
