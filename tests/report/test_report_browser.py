"""The report in a real browser: opened from its file, offline; it reacts, and no text from data runs."""

import dataclasses
import json
import re

import browser as browsers
import pytest
from report_runs import HOSTILE, few_pictures, hostile_facts, hostile_run, make_run, rows_of_a_run

import loc_edit
from loc_edit.analysis.tables.rows import EffectDefinition, by_layer
from loc_edit.report import sections
from loc_edit.report.explorer import Continuations

pytestmark = pytest.mark.slow  # a browser starts, and pages are written

PEAK = """
const row = [...document.querySelectorAll('#fact-list tbody tr')].find((r) => r.dataset.fact === arguments[0]);
return [...row.cells].slice(1).map((cell) => cell.textContent);
"""


@pytest.fixture(scope="module")
def rows():
    return rows_of_a_run()


@pytest.fixture(scope="module")
def pages(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    found = Continuations({0: [("</b>before", 0.75)]}, {0: {("error_injection", "rome", 1): (2, [("after", 0.5)])}})
    usual = make_run(folder / "usual", *rows)
    hostile = hostile_run(folder / "hostile", rows)
    traces, edits = rows
    with few_pictures():
        made = {"usual": loc_edit.write_report(usual, folder / "usual.html", draws=20, next_tokens=found)}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("figure_sections", "table_sections"):
            patch.setattr(sections, name, lambda *given: ([], {}))
        made["hostile"] = loc_edit.write_report(
            hostile, folder / "hostile.html", draws=20, texts=hostile_facts(hostile)
        )
        made["traces"] = loc_edit.write_report(make_run(folder / "traces", traces, edits[:0]), draws=0)
        made["edits"] = loc_edit.write_report(make_run(folder / "edits", traces[:0], edits), draws=0)
    return made


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browsers.chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def show(chromium, pages):
    """Open a page; at the end nothing may have gone wrong in it."""

    def show(name, width=1280, dark=False):
        media = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chromium.get("about:blank")
        chromium.get(pages[name].as_uri())
        return chromium

    chromium.get_log("browser")
    yield show
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


def all_of(browser, selector):
    return browser.find_elements("css selector", selector)


def one(browser, selector):
    return browser.find_element("css selector", selector)


def text(browser, selector):
    return browser.execute_script("return document.querySelector(arguments[0]).textContent", selector)


def choose(browser, selector, label):
    select = one(browser, selector)
    next(option for option in select.find_elements("tag name", "option") if option.text == label).click()


def wait_for(browser, script):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 30).until(lambda b: b.execute_script(f"return {script}"))


def listed(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('#fact-list tr[data-fact]')].map((r) => +r.dataset.fact)"
    )


def test_it_opens_from_its_file_without_a_network(show):
    browser = show("usual")
    assert browser.execute_script("return navigator.onLine") is False
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map((r) => r.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.execute_script(
        "return [...document.images].every((i) => { i.loading = 'eager'; return i.alt.length > 0; })"
    )
    wait_for(browser, "[...document.images].every((i) => i.complete && i.naturalWidth > 0)")


def test_a_click_shows_another_fact(show, rows):
    browser = show("usual")
    first = text(browser, "#fact .prompt")
    one(browser, "tr[data-fact='5'] button").click()
    assert text(browser, "#fact .prompt") != first
    assert "#5" in text(browser, "#fact .tiles")
    assert browser.current_url.endswith("#fact-5")
    assert text(browser, "tr.chosen") == text(browser, "tr[data-fact='5']")
    traces, _ = rows
    mine = traces.query("fact_id == 5 and window == 5")
    assert len(all_of(browser, ".heat td.cell")) == len(mine)
    subject = mine.drop_duplicates("pos").query("pos >= subject_begin and pos < subject_end")
    assert len(all_of(browser, ".heat th.subject")) == len(subject) >= 1
    restored = mine.query("layer == 3 and pos == 1").iloc[0]
    cell = all_of(browser, ".heat tbody tr")[1].find_elements("css selector", "td")[3]
    shown = float(cell.get_attribute("aria-label").rpartition(": ")[2].replace("\u2212", "-").replace("<", ""))
    assert shown == pytest.approx(restored["p_restored"] - restored["p_corrupted"], abs=2e-3)


def test_the_list_s_numbers_are_the_rows(show, rows):
    browser = show("usual")
    traces, edits = rows
    curve = by_layer(traces, EffectDefinition(5)).query("fact_id == 4").set_index("layer")["trace"]
    scores = edits.query("fact_id == 4 and method == 'rome' and problem == 'error_injection'").set_index("layer")[
        "rewrite"
    ]
    peak, effect, best, rewrite, there = browser.execute_script(PEAK, "4")
    assert int(peak) == curve.idxmax()
    assert float(effect) == pytest.approx(curve.max(), abs=6e-3)
    assert int(best) == scores.idxmax() or scores[int(best)] == pytest.approx(scores.max(), abs=1e-3)
    assert float(rewrite) == pytest.approx(scores.max(), abs=6e-3)
    assert float(there) == pytest.approx(scores[curve.idxmax()], abs=6e-3)


def test_search_and_sort(show):
    browser = show("usual")
    assert listed(browser) == list(range(12))
    search = one(browser, "#search")
    search.send_keys("RELATION rome #1")
    assert listed(browser) == [1, 10, 11]
    assert text(browser, "#fact-count").startswith("3 of 12 facts")
    search.send_keys(" nonsense")
    assert listed(browser) == []
    assert "No fact matches" in text(browser, "#fact-list")
    search.clear()
    search.send_keys("#7")
    assert listed(browser) == [7]
    browser.execute_script(
        "const s = document.querySelector('#search'); s.value = ''; s.dispatchEvent(new Event('input'))"
    )
    one(browser, "[data-sort='effect']").click()
    down = [float(browser.execute_script(PEAK, str(fact))[1]) for fact in listed(browser)]
    assert down == sorted(down, reverse=True)
    assert len(set(down)) > 3
    assert all_of(browser, "th[aria-sort='descending'] [data-sort='effect']")
    one(browser, "[data-sort='effect']").click()
    up = [float(browser.execute_script(PEAK, str(fact))[1]) for fact in listed(browser)]
    assert up == down[::-1]
    one(browser, "[data-sort='effect']").click()
    assert listed(browser) == list(range(12))


def test_controls_choose_problem_method_window_and_layer(show):
    browser = show("usual")
    was = {part: text(browser, part) for part in ("#fact .scores", ".heat", "#fact-list")}
    choose(browser, "#problem", "Fact forcing")
    choose(browser, "#method", "MEMIT")
    assert text(browser, "#fact .scores") != was["#fact .scores"]
    assert text(browser, "#fact-list") != was["#fact-list"]
    scale = text(browser, "#fact .scale")
    choose(browser, "#window", "1 (mlp_out)")
    assert text(browser, "#fact .scale") != scale
    at_best = text(browser, "#fact .scores")
    one(browser, ".heat td.cell").click()
    assert "layer 0" in text(browser, "label[for='layer']").replace("Edited layer: ", "layer ")
    assert text(browser, "#fact .scores") != at_best


def test_keys_move_through_facts_and_cells(show):
    from selenium.webdriver.common.keys import Keys

    browser = show("usual")
    button = one(browser, "tr[data-fact='0'] button")
    button.send_keys(Keys.ARROW_DOWN)
    assert "#1" in text(browser, "#fact .tiles")
    assert browser.execute_script("return document.activeElement.dataset.fact") == "1"
    one(browser, ".heat td.cell[tabindex='0']").send_keys(Keys.ARROW_RIGHT)
    assert browser.execute_script("return document.activeElement.getAttribute('aria-label')").startswith("layer 1")
    assert text(browser, "#fact .readout").startswith("layer 1")
    browser.execute_script(
        "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true}))"
    )
    assert "Edited layer: 1" in text(browser, "label[for='layer']")


def test_circuitsvis_colors_the_prompt_when_asked(show):
    browser = show("usual")
    assert browser.execute_script("return typeof window.CircuitsVis") == "undefined"
    one(browser, ".tokens summary").click()
    wait_for(browser, "document.querySelector('.circuitsvis .colored-tokens') !== null")
    tokens = browser.execute_script("return document.querySelector('.circuitsvis .colored-tokens').textContent")
    names = browser.execute_script(
        "return [...document.querySelectorAll('.heat tbody th')].map((th) => th.title.trim())"
    )
    assert re.sub(r"\s", "", tokens) == "".join(names)
    assert "layer 5" in text(browser, ".circuitsvis")
    one(browser, "tr[data-fact='3'] button").click()
    wait_for(browser, "document.querySelector('.circuitsvis .colored-tokens') !== null")


def test_next_tokens_stand_before_and_after(show):
    browser = show("usual")
    assert "</b>before0.750" in text(browser, "#fact .next")
    assert "after the edit at layer 2" in text(browser, "#fact .next")
    one(browser, "tr[data-fact='1'] button").click()
    assert all_of(browser, "#fact .next") == []


def test_hostile_texts_are_shown_and_do_not_run(show):
    browser = show("hostile")
    scripts = "return document.scripts.length"
    assert browser.execute_script(scripts) == 3
    for fact in listed(browser):
        browser.execute_script("document.querySelector(`tr[data-fact='${arguments[0]}'] button`).click()", fact)
        choose(browser, "#method", "MEMIT" if fact % 2 else "ROME")
        browser.execute_script("document.querySelector('.tokens').open = true")
        wait_for(browser, "document.querySelector('.circuitsvis .colored-tokens') !== null")
        assert text(browser, ".heat tbody th").startswith(HOSTILE[0])
    assert browser.execute_script("return window.ran ?? null") is None
    assert browser.execute_script(scripts) == 4  # circuitsvis, run when asked
    assert all_of(browser, "main img:not(figure img)") == []
    words = text(browser, "#fact")
    assert HOSTILE[1] in words
    assert HOSTILE[0] in text(browser, ".probes")
    assert HOSTILE[4] in text(browser, ".probes")
    assert HOSTILE[0] in text(browser, "#provenance")


def test_the_policy_stops_what_slips_through(show):
    browser = show("usual")
    browser.execute_script(
        "const i = document.createElement('img'); i.setAttribute('onerror', 'window.ran = 5');"
        "i.src = 'x'; document.body.append(i)"
    )
    browser.execute_async_script("setTimeout(arguments[0], 300)")
    assert browser.execute_script("return window.ran ?? null") is None
    stopped = [entry["message"] for entry in browser.get_log("browser")]
    assert any("Content Security Policy" in message for message in stopped)


@pytest.mark.parametrize("name", ["traces", "edits"])
def test_half_a_run_is_explored_as_far_as_it_goes(show, name):
    browser = show(name)
    one(browser, "tr[data-fact='2'] button").click()
    words = text(browser, "#fact")
    assert ("no trace with this window" in words or not all_of(browser, ".heat")) == (name == "edits")
    assert ("no edit of this problem" in words) == (name == "traces")


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_narrow_screen(show, dark):
    browser = show("usual", width=390, dark=dark)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    one(browser, "tr[data-fact='2'] button").click()
    assert "#2" in text(browser, "#fact .tiles")
    color = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(json.loads(color.replace("rgb(", "[").replace(")", "]"))) < 200) == dark


def test_it_prints_dark_on_light_with_its_legends(show):
    browser = show("usual", dark=True)
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [dark]})
    color = "return getComputedStyle(document.body).backgroundColor"
    assert sum(json.loads(browser.execute_script(color).replace("rgb(", "[").replace(")", "]"))) > 700
    assert not one(browser, "#fact-list").is_displayed()
    assert one(browser, "#fact .legend").is_displayed()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_notebook_s_view_draws_offline_and_runs_no_text(chromium, tiny, facts, tmp_path):
    prompt = loc_edit.encode(tiny, facts[1])
    noise = loc_edit.subject_noise(tiny, prompt, scale=1.0, samples=2)
    trace = loc_edit.trace(tiny, prompt, facts[1].target_true, noise=noise, window=1)
    texts = (*HOSTILE, *trace.token_texts[len(HOSTILE) :])[: len(trace.token_texts)]
    page = tmp_path / "view.html"
    html = dataclasses.replace(trace, token_texts=texts).show().local_src
    page.write_text(f"<!doctype html><meta charset=utf-8><link rel=icon href=data:,>{html}", encoding="utf-8")
    chromium.get_log("browser")
    chromium.get(page.as_uri())
    wait_for(chromium, "document.querySelector('.colored-tokens') !== null")
    assert re.sub(r"\s", "", HOSTILE[0] + HOSTILE[1]) in re.sub(r"\s", "", text(chromium, ".colored-tokens"))
    assert chromium.execute_script("return window.ran ?? null") is None
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []
