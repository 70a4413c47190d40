// The page's state: which fact, problem and method, window and layer are chosen.

const data = JSON.parse(byId('data').textContent);
const { facts, combos, grids, outcomes } = data.explorer;
combos.forEach((combo, i) => Object.assign(combo, { index: String(i), outcomes: outcomes.length }));
const factById = new Map(facts.map((fact) => [fact.id, fact]));
const state = { fact: null, combo: combos[0] ?? null, grid: grids[data.explorer.grid] ?? null, layer: null, asked: null, outcomes, pick: pickLayer };

function drawn() {
  if (!state.fact) return;
  const best = summarize(state.fact, state.combo, state.grid).best;
  const { layers } = state.combo ?? { layers: [] };
  state.layer = layers.includes(state.asked) ? state.asked : isNumber(best) ? best : layers[0] ?? null;
  drawFact(byId('fact'), state.fact, state);
}

function pickLayer(layer) {
  const at = document.activeElement?.id === 'layer';
  state.asked = layer;
  drawn();
  if (at) byId('layer')?.focus();
}

function pickFact(id, scroll = true) {
  if (!factById.has(id) || state.fact?.id === id) return;
  state.fact = factById.get(id);
  state.asked = null;
  list.mark(id);
  drawn();
  try { history.replaceState(null, '', `#fact-${id}`); } catch { /* some viewers forbid it; the link is a convenience */ }
  if (scroll && matchMedia('(max-width: 62rem)').matches) byId('fact').scrollIntoView();
}

function pickCombo(problem, method) {
  state.combo = combos.find((combo) => combo.problem === problem && combo.method === method) ?? combos.find((combo) => combo.problem === problem);
  controls();
  list.show(state.combo, state.grid);
  drawn();
}

/** Search, problem, method and window; methods are those that the problem has. */
function controls() {
  const problems = [...new Set(combos.map((combo) => combo.problem))];
  const methods = combos.filter((combo) => combo.problem === state.combo.problem).map((combo) => combo.method);
  const search = byId('search')?.closest('label') ?? el('label', { class: 'wide', for: 'search' }, 'Search facts',
    el('input', { type: 'search', id: 'search', placeholder: 'subject, object, relation, #id', autocomplete: 'off', spellcheck: 'false', oninput: (event) => list.search(event.target.value) }));
  const parts = [search];
  if (problems.length) {
    parts.push(choice('problem', 'Problem', problems, problems.indexOf(state.combo.problem), (i) => pickCombo(problems[i], state.combo.method)));
    parts.push(choice('method', 'Method', methods, methods.indexOf(state.combo.method), (i) => pickCombo(state.combo.problem, methods[i])));
  }
  if (grids.length) parts.push(choice('window', 'Tracing window', grids.map(({ label }) => label), grids.indexOf(state.grid), (i) => { state.grid = grids[i]; list.show(state.combo, state.grid); drawn(); }));
  const focused = document.activeElement?.id;
  byId('explorer-controls').replaceChildren(...parts);
  if (focused) byId(focused)?.focus();
}

function count(n) {
  const all = `${facts.length.toLocaleString('en')} ${facts.length === 1 ? 'fact' : 'facts'}`;
  const left = data.explorer.total > facts.length ? `; ${data.explorer.total.toLocaleString('en')} in the run, evenly chosen` : '';
  byId('fact-count').textContent = (n === facts.length ? all : `${n.toLocaleString('en')} of ${all}`) + left;
}

const redrawOverview = drawOverview(data.curves, byId('overview-chart'), byId('overview-controls'));
const list = new FactList(facts, byId('fact-list'), count, pickFact);
controls();
list.show(state.combo, state.grid);
const asked = Number(/^#fact-(\d+)$/.exec(location.hash)?.[1] ?? NaN);
if (facts.length) pickFact(factById.has(asked) ? asked : facts[0].id, false);

let resizing = 0;
let width = innerWidth;
addEventListener('resize', () => {
  if (innerWidth === width) return; // a phone's address bar comes and goes
  width = innerWidth;
  clearTimeout(resizing);
  resizing = setTimeout(() => { redrawOverview(); drawn(); }, 150);
});
addEventListener('hashchange', () => pickFact(Number(/^#fact-(\d+)$/.exec(location.hash)?.[1] ?? NaN)));
