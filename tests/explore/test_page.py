"""The playground in a real browser: trace, edit, stop, take back, download; and no text that is typed runs."""

import json
import re
import time
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import browser as browsers
import pytest

pytest.importorskip("gradio", reason="the playground needs Gradio: pip install 'loc-edit[explore]'")

import loc_edit
from loc_edit.experiment.setup import Setup
from loc_edit.facts.loading import save_facts
from loc_edit.models.identity import checksums

pytestmark = pytest.mark.slow  # a server and a browser start

HOSTILE = (
    "<script>ran = 1</script>",
    "</script><script>ran = 2",
    "<img src=x onerror='ran=3'>",
    "${ran=4}{{ran}} @children",
)


@pytest.fixture(scope="module")
def served(tiny, facts, stats_of, tmp_path_factory):
    from loc_edit.explore.page import playground, serve

    data = tmp_path_factory.mktemp("data") / "facts.jsonl"
    save_facts(facts, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Setup, "model", tiny)
        patch.setattr(Setup, "stats", stats_of(tiny))
        finetune = {"steps": 4, "eps": 0.5, "lr": 0.05}
        page = playground(model="tiny", data=str(data), noise="1.5", noise_samples=2, settings={"finetune": finetune})
        yield serve(page).rstrip("/")
        page.close(verbose=False)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browsers.chromium(tmp_path_factory.mktemp("profile"), offline=False) as browser:
        browser.set_script_timeout(60)
        yield browser


@pytest.fixture
def page(chromium, served):
    """The page, just opened; at the end nothing may have gone wrong in it, and no typed text may have run."""
    chromium.get_log("browser")
    chromium.get(served)
    wait_for(chromium, lambda b: b.find_elements("css selector", "#chosen input"))
    wait_for(chromium, lambda b: not inside(b, "return document.querySelectorAll('#fact > *').length"))
    yield chromium
    assert chromium.execute_script("return window.ran ?? null") is None
    assert inside(chromium, "return window.ran ?? null") is None
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


def wait_for(browser, condition):
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20, ignored_exceptions=[StaleElementReferenceException]).until(condition)


def inside(browser, script, *given):
    """A script's result inside the panel's frame."""
    browser.switch_to.frame(browser.find_element("css selector", "#panel iframe"))
    try:
        return browser.execute_script(script, *given)
    finally:
        browser.switch_to.default_content()


def status(browser):
    return browser.execute_script("return document.querySelector('#status textarea').value")


def panel(browser):
    return inside(browser, "return document.querySelector('#fact').textContent")


def press(browser, name):
    """Click a button, and wait for what it starts to end; the status must end as another one."""
    before = status(browser)
    browser.find_element("css selector", f"#{name}").click()
    wait_for(browser, lambda b: status(b) != before)
    wait_for(browser, lambda b: not re.search(r"\(\d+ (s|min)\)$", status(b)))
    time.sleep(0.3)
    return status(browser)


def choose(browser, words):
    from selenium.webdriver.common.keys import Keys

    field = browser.find_element("css selector", "#chosen input")
    field.click()
    field.send_keys(words)
    field.send_keys(Keys.ENTER)
    wait_for(browser, lambda b: words in b.find_element("css selector", "#prompt textarea").get_attribute("value"))


def write(browser, **texts):
    for name, words in texts.items():
        field = browser.find_element("css selector", f"#{name} textarea, #{name} input")
        field.clear()
        field.send_keys(words)


def pick(browser, name, label):
    """Choose from a list, which opens when its field is clicked, and may close again while the page is drawn."""

    def click(b):
        options = [o for o in b.find_elements("css selector", "[role=option]") if o.text.strip().endswith(label)]
        (options or b.find_elements("css selector", f"#{name} input"))[0].click()
        return bool(options)

    wait_for(browser, click)


def test_it_is_only_for_this_machine_and_loads_nothing_from_elsewhere(page, served):
    assert served.startswith("http://127.0.0.1:")
    with urlopen(served) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert json.loads(urlopen(f"{served}/config").read())["analytics_enabled"] is False
    with pytest.raises(HTTPError, match="400"):
        urlopen(Request(served, headers={"Host": "elsewhere.example"}))
    loaded = page.execute_script("return performance.getEntriesByType('resource').map((r) => r.name)")
    assert loaded
    assert [name for name in loaded if not name.startswith((served, "data:", "blob:"))] == []


def test_trace_edit_stack_and_take_back(page, tiny, facts):
    weights = checksums(tiny)
    choose(page, "mother tongue")
    assert press(page, "locate").startswith("done")
    assert "The mother tongue of Anna Kowalska is" in panel(page)
    assert inside(page, "return document.querySelectorAll('.heat td.cell').length") == 2 * len(
        loc_edit.encode(tiny, facts[1])
    )
    inside(page, "document.querySelector('.tokens summary').click()")
    wait_for(page, lambda b: inside(b, "return document.querySelector('.circuitsvis .colored-tokens') !== null"))
    inside(page, "document.querySelectorAll('.heat td.cell')[1].click()")
    wait_for(page, lambda b: b.find_element("css selector", "#layer input").get_attribute("value") == "1")
    pick(page, "method", "FT-1")
    assert press(page, "edit").startswith("done")
    shown = panel(page)
    assert "Before and after FT-1 at layer 1" in shown
    assert "Neighbors" not in shown  # this fact has none
    assert inside(page, "return document.querySelector('.heat') !== null")
    assert press(page, "edit").startswith("done")
    assert "and 1 more" in panel(page)
    assert checksums(tiny) == weights
    assert status(page).endswith("2 edits in the model")
    assert press(page, "undo").startswith("done")
    assert "and 1 more" not in panel(page)
    assert press(page, "undo").startswith("done")
    assert "Before and after" not in panel(page)
    assert page.find_element("css selector", "#undo").get_attribute("disabled")


def test_essence_is_measured_where_it_is_ticked(page):
    choose(page, "mother tongue")
    pick(page, "method", "FT-1")
    essence = "return [...document.querySelectorAll('.scores li')].find((li) => li.textContent.endsWith('essence'))"
    assert press(page, "edit").startswith("done")
    assert not inside(page, f"{essence}.textContent")[0].isdigit()
    page.find_element("css selector", "#essence input").click()
    assert press(page, "edit").startswith("done")
    assert re.fullmatch(r"[01]\.\d\dessence", inside(page, f"{essence}.textContent"))


def test_typed_markup_is_shown_and_does_not_run(page):
    page.find_element("xpath", "//button[contains(., 'Paraphrases')]").click()
    wait_for(page, lambda b: b.find_elements("css selector", "#neighbors textarea"))
    for words in HOSTILE:
        write(page, prompt=f"{words} is", subject=words, true="Paris", new=words[:9], neighbors=f"{words} in")
        assert press(page, "locate").startswith("done")
        pick(page, "method", "FT-1")
        assert press(page, "edit").startswith("done")
        inside(page, "document.querySelector('.tokens').open = true")
        wait_for(page, lambda b: inside(b, "return document.querySelector('.circuitsvis .colored-tokens') !== null"))
        assert words in panel(page)
        assert inside(page, "return document.querySelectorAll('img').length") == 0
    assert page.execute_script("return document.querySelectorAll('img[src=x]').length") == 0


def test_the_download_is_the_edit(page, chromium, served, tmp_path):
    chromium.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    choose(page, "mother tongue")
    pick(page, "method", "FT-1")
    assert press(page, "edit").startswith("done")
    page.find_element("css selector", "#save").click()
    wait_for(page, lambda b: list(tmp_path.glob("*.safetensors")))
    [path] = tmp_path.glob("*.safetensors")
    assert loc_edit.Edit.load(path).about["method"] == "finetune"


def test_what_cannot_be_done_is_said_in_words(page):
    assert "subject" in press(page, "locate")
    write(page, prompt="<b>The river</b> is in", subject="<b>The lake</b>")
    assert "<b>The lake</b>" in press(page, "edit")
    assert page.execute_script("return [...document.querySelectorAll('b')].map((b) => b.textContent)") == []


def test_stop_ends_the_work_and_leaves_the_model(page, tiny, monkeypatch):
    weights = checksums(tiny)
    step = loc_edit.events.step
    monkeypatch.setattr(loc_edit.events, "step", lambda *given: (time.sleep(0.5), step(*given)))
    choose(page, "mother tongue")
    pick(page, "method", "FT-1")
    page.find_element("css selector", "#edit").click()
    wait_for(page, lambda b: "steps" in status(b))
    page.find_element("css selector", "#stop").click()
    wait_for(page, lambda b: status(b).startswith("stopped"))
    assert checksums(tiny) == weights


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen(page, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        choose(page, "mother tongue")
        press(page, "locate")
        for wide in (page.execute_script, lambda script: inside(page, script)):
            assert wide("return document.documentElement.scrollWidth <= innerWidth")
        frame = page.find_element("css selector", "#panel iframe").size
        needed = inside(page, "return document.documentElement.offsetHeight")
        assert abs(frame["height"] - needed) < 5
        assert inside(page, "return document.documentElement.scrollHeight <= innerHeight")  # no bar to scroll it
        assert frame["width"] > 0.55 * min(width, 900)
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_public_address_is_made_only_on_request_and_without_one_nothing_is_served(monkeypatch):
    import gradio

    from loc_edit.explore.page import serve

    asked = []

    def no_network(**given):
        asked.append(given["local_port"])
        raise RuntimeError("no answer")

    monkeypatch.setattr(gradio.networking, "setup_tunnel", no_network)
    monkeypatch.setenv("GRADIO_SHARE", "true")
    with gradio.Blocks() as page:
        pass
    address = serve(page)
    assert urlopen(address).status == 200
    page.close(verbose=False)
    assert asked == []
    with pytest.raises(ConnectionError, match="--share needs a network"):
        serve(page, share=True)
    with pytest.raises(URLError):
        urlopen(f"http://127.0.0.1:{asked[0]}")


def test_an_unknown_option_is_refused_with_the_nearest_one():
    from loc_edit.explore.page import playground

    with pytest.raises(loc_edit.BadConfig, match="'noise'"):
        playground(nois="1")
