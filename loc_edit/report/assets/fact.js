// One fact: its prompt, its trace, its edits.

const OUTCOME_COLORS = { rewrite: 'var(--rewrite)', paraphrase: 'var(--paraphrase)', neighborhood: 'var(--neighborhood)', essence: 'var(--essence)', overall: 'var(--overall)' };
const hiddenScores = new Set(['overall']);
let tokensOpen = false;

/** The prompt with its subject marked, and the objects. */
function promptLine(fact) {
  const line = el('h3', { class: 'prompt', dir: 'auto' });
  const at = fact.about ? fact.prompt.indexOf(fact.about) : -1;
  if (at >= 0) line.append(fact.prompt.slice(0, at), el('mark', { title: 'subject' }, fact.about), fact.prompt.slice(at + fact.about.length));
  else line.append(text(fact.prompt));
  if (fact.true) line.append(' ', el('span', { class: 'to' }, '→ '), text(fact.true));
  return line;
}

function drawFact(holder, fact, state) {
  const { combo, grid } = state;
  const trace = grid ? fact.traces[grid.key] : undefined;
  const edit = combo ? fact.edits[combo.index] : undefined;
  holder.replaceChildren(promptLine(fact), tiles(fact, trace, edit));
  const part = (title, hint) => {
    const inside = el('div', {});
    holder.append(el('h3', {}, title), ...(hint ? [el('p', { class: 'hint' }, hint)] : []), inside);
    return inside;
  };
  if (trace) {
    drawHeatmap(part('Where restoring brings the object back'), fact, trace, state.layer, state.pick);
    holder.append(tokensPart(fact, trace));
  } else part('Where restoring brings the object back').append(el('p', { class: 'note' }, 'This fact has no trace with this window.'));
  if (edit) {
    drawScores(part('Scores by edited layer, next to the tracing curve', 'Click a layer to see the edit there.'), fact, trace, edit, state);
    drawEdit(part(`The edit at layer ${state.layer}`), fact, edit, state);
  } else part('The edit').append(el('p', { class: 'note' }, 'This fact has no edit of this problem and method.'));
}

function tiles(fact, trace, edit) {
  const list = el('ul', { class: 'tiles' });
  const add = (name, value) => list.append(el('li', {}, `${name} `, el('b', {}, value)));
  add('fact', `#${fact.id}`);
  if (fact.relation) add('relation', text(fact.relation));
  if (edit?.target) add(edit.objective === 'lower' ? 'to be lowered' : 'to be raised', text(edit.target));
  if (trace) {
    const what = trace.metric === 'probability' ? 'p(object)' : trace.metric.replaceAll('_', ' ');
    add(`${what} clean`, shown(trace.clean));
    add('subject corrupted', shown(trace.corrupted));
  }
  return list;
}

/** circuitsvis' view, drawn when it is opened; it then stays open from fact to fact. */
function tokensPart(fact, trace) {
  const view = el('div', { class: 'circuitsvis' });
  const part = el('details', { class: 'tokens' }, el('summary', {}, 'The prompt colored layer by layer (circuitsvis)'), view);
  const draw = () => { if (part.open && !view.firstChild) drawTokens(view, fact, trace); };
  part.addEventListener('toggle', () => { tokensOpen = part.open; draw(); });
  if (tokensOpen) { part.open = true; requestAnimationFrame(draw); }
  return part;
}

function drawScores(holder, fact, trace, edit, state) {
  const { combo, outcomes } = state;
  const scores = unpack(edit.scores);
  const lines = [];
  if (trace) {
    const curve = unpack(trace.curve);
    lines.push({ name: 'tracing effect', color: 'var(--tracing)', area: true, points: trace.layers.map((layer, l) => [layer, curve[l]]) });
  }
  outcomes.forEach((name, i) => {
    const points = combo.layers.map((layer, l) => [layer, scores[l * outcomes.length + i]]);
    if (points.some(([, value]) => isNumber(value))) lines.push({ name, color: OUTCOME_COLORS[name], points });
  });
  const chart = el('div', {});
  const redraw = () => drawLines(chart, {
    lines, hidden: hiddenScores, redraw, picked: state.layer, pick: (layer) => combo.layers.includes(layer) && state.pick(layer),
    label: `Scores of the edit by layer and the tracing effect of fact ${fact.id}; the numbers are below`,
  });
  holder.append(chart);
  redraw();
  const slider = el('input', { type: 'range', id: 'layer', min: 0, max: combo.layers.length - 1, value: combo.layers.indexOf(state.layer), 'aria-valuetext': `layer ${state.layer}`, onchange: (event) => state.pick(combo.layers[Number(event.target.value)]) });
  holder.append(el('div', { class: 'controls' }, el('label', { for: 'layer' }, `Edited layer: ${state.layer}`, slider)));
  holder.append(numbersTable(lines));
}

function numbersTable(lines) {
  const layers = [...new Set(lines.flatMap((line) => line.points.map(([layer]) => layer)))].sort((a, b) => a - b);
  const at = (line, layer) => line.points.find(([l]) => l === layer)?.[1];
  return el('details', {}, el('summary', {}, 'Numbers'), el('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Scores by layer' }, el('table', {},
    el('thead', {}, el('tr', {}, el('th', { scope: 'col' }, 'layer'), layers.map((layer) => el('th', { scope: 'col', class: 'number' }, String(layer))))),
    el('tbody', {}, lines.map((line) => el('tr', {}, el('th', { scope: 'row' }, line.name), layers.map((layer) => el('td', { class: 'number' }, shown(at(line, layer), 2)))))))));
}

/** Before and after the edit at the chosen layer: scores, next tokens, and the probability prompt by prompt. */
function drawEdit(holder, fact, edit, state) {
  const { combo, outcomes, layer } = state;
  const l = combo.layers.indexOf(layer);
  const note = edit.notes?.[String(layer)];
  if (note) holder.append(el('p', { class: 'note' }, `Not done here. ${note}`));
  const scores = unpack(edit.scores).slice(l * outcomes.length, (l + 1) * outcomes.length);
  holder.append(el('ul', { class: 'scores' }, outcomes.map((name, i) => el('li', {}, el('b', {}, shown(scores[i], 2)), name))));
  if (fact.next && edit.next) holder.append(nextTokens(fact, edit, state));
  const width = edit.lengths.reduce((a, b) => a + b, 0);
  if (!width) return;
  const numbers = unpack(edit.numbers);
  const before = numbers.slice(0, width), after = numbers.slice((1 + l) * width, (2 + l) * width);
  const target = edit.target || 'the target';
  const bodies = probeGroups(fact, edit).map(({ title, texts, start }) => el('tbody', {},
    el('tr', {}, el('th', { scope: 'rowgroup', colspan: 3 }, title)),
    texts.map((words, i) => probeRow(words, before[start + i], after[start + i]))));
  holder.append(el('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Probabilities before and after' }, el('table', { class: 'probes' },
    el('thead', {}, el('tr', {}, el('th', { scope: 'col' }, 'Probability of ', el('b', {}, text(target)), ' as the continuation of'), el('th', { scope: 'col' }, 'before'), el('th', { scope: 'col' }, 'after'))), bodies)));
}

function probeGroups(fact, edit) {
  const [own, other, paraphrases, neighbors] = edit.lengths;
  const named = (texts, n, what) => Array.from({ length: n }, (_, i) => (texts?.length === n ? texts[i] : `${what} ${i + 1}`));
  const rival = fact.true && edit.target === fact.true ? fact.new : fact.true;
  return [
    { title: 'The edit prompt', texts: named([fact.prompt], own, 'prompt'), start: 0 },
    { title: rival ? ['The same prompt, probability of ', text(rival)] : 'The same prompt, the other object', texts: named([fact.prompt], other, 'prompt'), start: own },
    { title: 'Paraphrases, which should follow', texts: named(fact.paraphrases, paraphrases, 'paraphrase'), start: own + other },
    { title: 'Neighbors, which should stay as they are', texts: named(fact.neighbors, neighbors, 'neighbor'), start: own + other + paraphrases },
  ].filter((group) => group.texts.length);
}

function probeRow(words, before, after) {
  const meter = (p, kind) => el('span', { class: `meter ${kind}`, 'aria-hidden': 'true' }, el('i', { '--p': isNumber(p) ? Math.min(1, Math.max(0, p)) : 0 }));
  return el('tr', {}, el('td', { class: 'text', dir: 'auto' }, text(words)), el('td', { class: 'p' }, shown(before), meter(before, 'before')), el('td', { class: 'p' }, shown(after), meter(after, 'after')));
}

function nextTokens(fact, edit, state) {
  const column = (title, tokens) => el('div', {}, el('h4', {}, title), el('table', {}, el('tbody', {}, tokens.map(([token, p]) =>
    el('tr', {}, el('td', {}, text(visible(token))), el('td', { class: 'p number' }, shown(p)))))));
  return el('div', { class: 'next' }, column('Next tokens before', fact.next),
    column(`Next tokens after the edit at layer ${edit.next.layer}${edit.next.layer === state.layer ? '' : ' (its best)'}`, edit.next.tokens));
}
