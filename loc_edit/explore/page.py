"""The playground's page, made with Gradio: fields and buttons around `Session`, and the report's panel in a frame.

Texts of readers stay values of text fields, or go as JSON to the panel, which makes text nodes of them.
"""

import base64
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads both when it is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from loc_edit.events import duration
from loc_edit.experiment.config import ExperimentConfig
from loc_edit.experiment.experiment import Experiment
from loc_edit.explore.job import Cancelled, Job
from loc_edit.explore.lines import python_lines
from loc_edit.explore.session import Session, fact_of_texts, texts_of_fact
from loc_edit.names import LOCALIZERS, METHODS, PROBLEMS, method_label, parse_method
from loc_edit.report.page import panel
from loc_edit.views.heatmap import SITES

LONGEST = 1000
"""Most characters of a text that a reader types."""
LOCAL = "127.0.0.1"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; form-action 'self'; base-uri 'self'"
)
"""Gradio writes scripts into its page; nothing is loaded from, or sent to, another place than this server."""
CSS = """
.gradio-container { max-width: 84rem !important; }
#panel iframe { display: block; width: 100%; height: 0; border-radius: var(--block-radius); }
#panel iframe { border: 1px solid var(--border-color-primary); }
#stop { align-self: center; }
#panel .empty { color: var(--body-text-color-subdued); padding: 1rem 0; }
#status textarea { font-variant-numeric: tabular-nums; }
#work { position: sticky; top: 0; z-index: 9; background: var(--body-background-fill); padding: .3rem 0; }
footer { display: none !important; }
@media (max-width: 40rem) {
  .gradio-container .main { padding: .5rem !important; }
  #panel .html-container { padding: 0; }
}
"""
FRAME = """
<p class="empty">Choose a fact or write one, then locate it or edit it.</p>
<iframe title="The fact" sandbox="allow-scripts"></iframe>
"""
ON_LOAD = """
const frame = () => element.querySelector('iframe');
let ready = false;
const show = () => {
  element.querySelector('.empty').hidden = Boolean(props.value);
  if (!props.value) frame().style.display = 'none';
  else if (ready) { frame().style.display = ''; frame().contentWindow.postMessage(JSON.parse(props.value), '*'); }
  if (props.value && element.getBoundingClientRect().top > innerHeight) element.scrollIntoView({ behavior: 'smooth' });
};
window.addEventListener('message', ({ source, data }) => {
  if (source !== frame()?.contentWindow) return;
  if (data.ready) { ready = true; show(); }
  if (data.height && props.value) frame().style.height = `${Math.ceil(data.height) + 2}px`;
  if (Number.isInteger(data.layer)) trigger('select', { index: data.layer, value: data.layer });
});
watch('value', show);
frame().srcdoc = new TextDecoder().decode(Uint8Array.from(atob(props.shell), (c) => c.charCodeAt(0)));
"""
"""Fills the frame once, hands it each new value, gives it the height that it asks for and 2 px for its border, and
hears of clicked layers."""


QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
WORK: dict[str, Any] = {**QUIET, "concurrency_id": "model", "concurrency_limit": 1}


@dataclass
class Visit:
    """One open page: its session, and what it computes at the moment."""

    session: Session
    job: Job[Any] | None = None


def playground(**options: Any) -> gr.Blocks:
    """The page, with its model loaded; `serve` opens it.

    Args:
        options: of `loc_edit.ExperimentConfig`: `model`, `data`, `known`, `noise`, `seed`, `preset` and so on.

    Raises:
        BadConfig: an option does not exist, or its value does not suit.
    """
    experiment = Experiment(ExperimentConfig.from_values({"facts": "all", "essence": False, **options}, "explore"))
    return _Page(experiment).blocks


def serve(page: gr.Blocks, port: int | None = None, *, host: str = LOCAL, share: bool = False) -> str:
    """Opens the page to browsers, and returns its address; it goes on beside the program until `page.close()`.

    Args:
        page: from `playground`.
        port: by default the first free one from 7860 on.
        host: the network interface; by default, only this machine can open the page.
        share: whether Gradio makes a public address for it, for which it downloads a program and asks its servers.

    Raises:
        OSError: no port is free, or there is no public address.
    """
    middleware = [Middleware(_Policy)]
    if host == LOCAL and not share:  # another site's name that leads here is not this page
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=[LOCAL, "localhost"]))
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    _, address, public = page.queue(default_concurrency_limit=1).launch(
        server_name=host, server_port=port, share=share, prevent_thread_lock=True, quiet=True, theme=theme, css=CSS,
        allowed_paths=[], app_kwargs={"middleware": middleware}, max_file_size=1, footer_links=[], ssr_mode=False,
    )  # fmt: skip
    if share and public is None:  # Gradio says why, and would go on without one
        page.close(verbose=False)
        raise ConnectionError(
            "no public address: --share needs a network and Gradio's servers; the page opens without it"
        )
    return public or address


class _Policy:
    """Adds the policy to every answer of the server."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)


class _Page:
    """The components, and what happens when they are used."""

    def __init__(self, experiment: Experiment) -> None:
        self.setup, self.facts = experiment.setup, {fact.fact_id: fact for fact in experiment.facts}
        with gr.Blocks(title="loc_edit", analytics_enabled=False, delete_cache=(3600, 86400)) as self.blocks:
            self.visit = gr.State()
            gr.HTML(f"<h1>Locate a fact, edit it, look again</h1><p>Model: {escape(self.setup.config.model)}</p>")
            with gr.Row(elem_id="work"):
                self.status = gr.Textbox(
                    "ready",
                    label="Status",
                    lines=1,
                    max_lines=4,
                    interactive=False,
                    elem_id="status",
                    scale=6,
                    min_width=200,
                )
                self.stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=70, variant="stop", interactive=False)
            with gr.Row():
                with gr.Column(scale=2, min_width=320):
                    self._add_fact()
                    self._add_locate()
                    self._add_edit()
                with gr.Column(scale=3, min_width=320):
                    self._add_results()
            self._connect()

    def _add_fact(self) -> None:
        """The fact: chosen, or typed."""
        choices = [(f"{fact.prompt} → {fact.target_true}", i) for i, fact in self.facts.items()]
        label = f"One of {len(choices):,} facts, or write your own below"
        self.chosen = gr.Dropdown(choices, value=None, label=label, elem_id="chosen")
        self.texts = {
            "prompt": _text("prompt", "Prompt", lines=2),
            "subject": _text("subject", "Subject: words of the prompt"),
        }
        with gr.Row():
            self.texts["target_true"] = _text("true", "Object", placeholder="what the model says", min_width=120)
            self.texts["target_new"] = _text("new", "False object", min_width=120)
        with gr.Accordion("Paraphrases and neighbors", open=False):
            self.texts["paraphrases"] = _text(
                "paraphrases", "Paraphrases, one a line: an edit should reach them", lines=3
            )
            self.texts["neighbors"] = _text("neighbors", "Neighbors, one a line: an edit should spare them", lines=3)

    def _add_locate(self) -> None:
        with gr.Group():
            localizers = [(name.replace("_", " "), name) for name in LOCALIZERS]
            self.localizer = gr.Dropdown(localizers, label="Localizer", elem_id="localizer")
            with gr.Row():
                sites = [(label, site) for site, label in SITES.items()]
                self.site = gr.Dropdown(sites, label="Site", elem_id="site", min_width=150)
                self.window = gr.Number(
                    5, label="Layers together", precision=0, minimum=1, elem_id="window", min_width=100
                )
            self.locate = gr.Button("Locate", variant="primary", elem_id="locate")

    def _add_edit(self) -> None:
        n_layers = self.setup.model.cfg.n_layers
        with gr.Group():
            with gr.Row():
                methods = [(method_label(*parse_method(name)), name) for name in METHODS]
                self.method = gr.Dropdown(
                    methods, value="rome", label="Editor", elem_id="method", min_width=150, allow_custom_value=True,
                    info="memit-3 has a window of 3",
                )  # fmt: skip
                problems = [(problem.label, name) for name, problem in PROBLEMS.items()]
                self.problem = gr.Dropdown(problems, label="Problem", elem_id="problem", min_width=150)
            self.layer = gr.Slider(
                0, n_layers - 1, n_layers // 3, step=1, label="Layer, or the window's center", elem_id="layer",
                info="a click in the heatmap sets it",
            )  # fmt: skip
            self.essence = gr.Checkbox(label="Measure essence too, which takes longer", elem_id="essence")
            self.edit = gr.Button("Edit", variant="primary", elem_id="edit")
        with gr.Group():
            self.made = gr.Dropdown([], label="Edits in the model", elem_id="made", interactive=True)
            with gr.Row():
                self.undo = gr.Button("Take back", interactive=False, elem_id="undo", min_width=120)
                self.save = gr.DownloadButton("Download", interactive=False, elem_id="save", min_width=120)

    def _add_results(self) -> None:
        shell = base64.b64encode(panel().encode()).decode()
        self.panel = gr.HTML("", html_template=FRAME, js_on_load=ON_LOAD, elem_id="panel", shell=shell)
        with gr.Accordion("The same in Python", open=False):
            self.lines = gr.Code(language="python", show_label=False, interactive=False, elem_id="lines")

    def _connect(self) -> None:
        fields = list(self.texts.values())
        fact = [self.visit, *fields, self.essence, self.problem, self.layer]
        seen = [self.status, self.stop, *self._shown]
        self.blocks.load(lambda: Visit(Session(self.setup)), None, self.visit, queue=False, **QUIET)
        self.chosen.input(self._texts_of, self.chosen, fields, queue=False, **QUIET)
        self.locate.click(_streamed(self._locate), [*fact, self.localizer, self.site, self.window], seen, **WORK)
        self.edit.click(_streamed(self._edit), [*fact, self.method], seen, **WORK)
        self.undo.click(_streamed(self._undo), [*fact, self.made], seen, **WORK)
        self.stop.click(_stop, self.visit, None, queue=False, **QUIET)
        self.panel.select(_clicked_layer, None, self.layer, queue=False, **QUIET)

    @property
    def _shown(self) -> list[Any]:
        return [self.panel, self.lines, self.made, self.undo, self.save]

    def _texts_of(self, fact_id: int) -> list[str]:
        return list(texts_of_fact(self.facts[fact_id]).values())

    def _locate(self, visit: Visit, *given: Any) -> Iterator[dict[Any, Any]]:
        *fact, localizer, site, window = given
        yield from self._work(visit, "locating", fact, lambda: visit.session.locate(localizer, site, int(window)))

    def _edit(self, visit: Visit, *given: Any) -> Iterator[dict[Any, Any]]:
        *fact, method = given
        *_, problem, layer = fact
        yield from self._work(visit, "editing", fact, lambda: visit.session.edit(problem, method, int(layer)))

    def _undo(self, visit: Visit, *given: Any) -> Iterator[dict[Any, Any]]:
        *fact, number = given
        yield from self._work(visit, "taking back", fact, lambda: visit.session.undo(-1 if number is None else number))

    def _work(self, visit: Visit, title: str, fact: list[Any], act: Callable[[], object]) -> Iterator[dict[Any, Any]]:
        """Do something with the fact in the fields and compare before and after, saying how far it is; then show it."""
        *values, essence, problem, layer = fact
        session = visit.session

        def work() -> None:
            session.choose(fact_of_texts(self.setup, self.facts.values(), dict(zip(self.texts, values, strict=True))))
            act()
            session.compare(problem, essence=essence)

        start, job = time.monotonic(), Job(title, work)
        visit.job = job
        try:
            for line in job.progress():
                yield {self.status: line, self.stop: gr.Button(interactive=True)}
        except Cancelled:
            said = "stopped; the model is as it was"
        except (ValueError, RuntimeError, OSError) as error:
            said = str(error)
        else:
            n = len(session.made)
            took = duration(time.monotonic() - start)
            said = f"done {title} in {took}; {n} edit{'s' * (n != 1)} in the model"
        finally:
            visit.job = None
        yield {self.status: said, self.stop: gr.Button(interactive=False), **self._results(session, int(layer))}

    def _results(self, session: Session, layer: int) -> dict[Any, Any]:
        shown = session.shown(layer)
        choices = [(f"{number + 1}. {made}", number) for number, made in enumerate(session.made)]
        path = session.save(Path(self.save.GRADIO_CACHE)) if session.made else None
        return {
            self.panel: "" if shown is None else json.dumps(shown, allow_nan=False),
            self.lines: python_lines(session),
            self.made: gr.Dropdown(choices, value=len(choices) - 1 if choices else None),
            self.undo: gr.Button(interactive=bool(choices)),
            self.save: gr.DownloadButton(value=path, interactive=bool(choices)),
        }


def _text(name: str, label: str, lines: int = 1, **more: Any) -> gr.Textbox:
    limit = LONGEST * (20 if name in ("paraphrases", "neighbors") else 1)
    return gr.Textbox("", label=label, lines=lines, max_lines=max(4, lines), elem_id=name, max_length=limit, **more)


def _streamed(act: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
    """The same as a generator function by Gradio's test for one, which type checks at run time hide."""
    return lambda *given: (yield from act(*given))


def _stop(visit: Visit) -> None:
    if visit.job is not None:
        visit.job.cancel()


def _clicked_layer(event: gr.SelectData) -> int:
    return int(event.index)
