"""Write `docs/report.png`: a run's report as a reader sees it, with one fact open.

python scripts/picture_report.py runs/figures       # wants Chromium and its driver
"""

import argparse
import sys
import tempfile
from pathlib import Path

import loc_edit

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests"))

from browser import chromium, programs  # noqa: E402  (the browser of the tests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--fact", default="6", help="whose row is clicked")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "report.png")
    args = parser.parse_args()
    if programs() is None:
        sys.exit("no Chromium here: apt-get install chromium chromium-driver")
    page = loc_edit.write_report(args.run)
    with tempfile.TemporaryDirectory() as profile, chromium(profile) as browser:
        browser.set_window_size(1280, 1140)
        browser.get(Path(page).resolve().as_uri())
        browser.find_element("css selector", f"tr[data-fact='{args.fact}'] button").click()
        browser.execute_script("document.querySelector('.heat').closest('section').scrollIntoView()")
        browser.save_screenshot(str(args.out))
    print(args.out)


if __name__ == "__main__":
    main()
