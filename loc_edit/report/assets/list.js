// The list of facts: searched, sorted, one chosen.

/** What the list says of a fact under a choice of problem, method and window. */
function summarize(fact, combo, grid) {
  const trace = grid ? fact.traces[grid.key] : undefined;
  const curve = trace ? unpack(trace.curve) : [];
  const peak = curve.some((value) => value !== curve[0]) ? largest(curve) : -1; // a level curve has none
  const edit = combo ? fact.edits[combo.index] : undefined;
  const scores = edit ? unpack(edit.scores) : [];
  const rewrite = edit ? combo.layers.map((_, l) => scores[l * combo.outcomes]) : [];
  const best = largest(rewrite);
  const peakLayer = peak >= 0 ? trace.layers[peak] : NaN;
  const there = combo ? combo.layers.indexOf(peakLayer) : -1;
  return {
    prompt: fact.prompt,
    peak: peakLayer,
    effect: peak >= 0 ? curve[peak] : NaN,
    best: best >= 0 ? combo.layers[best] : NaN,
    rewrite: best >= 0 ? rewrite[best] : NaN,
    atPeak: there >= 0 ? rewrite[there] : NaN,
  };
}

const COLUMNS = [
  { key: 'prompt', name: 'Fact', say: 'prompt and object' },
  { key: 'peak', name: 'Peak', say: 'layer with the largest tracing effect', digits: 0 },
  { key: 'effect', name: 'Effect', say: 'the largest tracing effect, as a share of the probability lost', digits: 2, wide: true },
  { key: 'best', name: 'Best', say: 'layer where the edit works best', digits: 0 },
  { key: 'rewrite', name: 'Rewrite', say: 'rewrite score at the best layer', digits: 2 },
  { key: 'atPeak', name: 'At peak', say: 'rewrite score at the tracing peak', digits: 2, wide: true },
];

function folded(value) {
  return value.normalize('NFKC').toLowerCase();
}

class FactList {
  constructor(facts, holder, counter, choose) {
    this.choose = choose;
    this.counter = counter;
    this.sort = { key: null, down: false };
    this.words = [];
    this.items = facts.map((fact, place) => this.item(fact, place));
    this.body = el('tbody', { onclick: (event) => this.clicked(event), onkeydown: (event) => this.moved(event) });
    this.heads = COLUMNS.map((column) => el('th', { scope: 'col', class: this.classes(column), 'aria-sort': 'none', title: column.say },
      el('button', { type: 'button', 'data-sort': column.key, 'aria-label': `${column.name}: ${column.say}; sort`, onclick: () => this.sortBy(column.key) }, column.name)));
    holder.replaceChildren(el('table', { class: 'list' }, el('thead', {}, el('tr', {}, this.heads)), this.body));
  }

  classes(column) {
    return [column.digits === undefined ? '' : 'number', column.wide ? 'wide' : ''].join(' ').trim() || null;
  }

  item(fact, place) {
    const found = [fact.prompt, fact.true, fact.new, fact.relation, `#${fact.id}`, String(fact.id), ...Object.values(fact.edits).map((edit) => edit.target)];
    const button = el('button', { type: 'button', class: 'pick', 'data-fact': fact.id }, text(fact.prompt));
    if (fact.true) button.append(' ', el('span', { class: 'object' }, '→ ', text(fact.true)));
    const cells = COLUMNS.slice(1).map((column) => el('td', { class: this.classes(column) }));
    const row = el('tr', { 'data-fact': fact.id }, el('td', {}, button), cells);
    return { fact, place, row, cells, button, words: folded(found.filter(Boolean).join('\n')), values: {} };
  }

  /** Fill in the columns for another problem, method or window. */
  show(combo, grid) {
    for (const item of this.items) {
      item.values = summarize(item.fact, combo, grid);
      item.cells.forEach((cell, i) => { cell.textContent = shown(item.values[COLUMNS[i + 1].key], COLUMNS[i + 1].digits); });
    }
    this.arrange();
  }

  search(words) {
    this.words = folded(words).split(/\s+/).filter(Boolean);
    this.arrange();
  }

  sortBy(key) {
    if (this.sort.key !== key) this.sort = { key, down: key !== 'prompt' };
    else if (this.sort.down === (key !== 'prompt')) this.sort.down = !this.sort.down;
    else this.sort = { key: null, down: false };
    this.arrange();
  }

  arrange() {
    const { key, down } = this.sort;
    const found = this.items.filter((item) => this.words.every((word) => item.words.includes(word)));
    if (key) found.sort((a, b) => this.compare(a.values[key], b.values[key], down) || a.place - b.place);
    this.body.replaceChildren(...found.map((item) => item.row));
    if (!found.length) this.body.append(el('tr', {}, el('td', { class: 'empty', colspan: COLUMNS.length }, 'No fact matches.')));
    this.heads.forEach((head, i) => head.setAttribute('aria-sort', COLUMNS[i].key !== key ? 'none' : down ? 'descending' : 'ascending'));
    this.counter(found.length);
  }

  /** Numbers before what is none, whichever way they are sorted. */
  compare(a, b, down) {
    if (typeof a === 'string') return (down ? -1 : 1) * a.localeCompare(b);
    if (!isNumber(a) || !isNumber(b)) return Number(isNumber(b)) - Number(isNumber(a));
    return down ? b - a : a - b;
  }

  clicked(event) {
    const row = event.target.closest('tr[data-fact]');
    if (row) this.choose(Number(row.dataset.fact));
  }

  moved(event) {
    const row = event.target.closest('tr[data-fact]');
    const next = row && { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling }[event.key];
    if (!next?.dataset.fact) return;
    event.preventDefault();
    next.querySelector('button').focus();
    this.choose(Number(next.dataset.fact));
  }

  mark(id) {
    for (const { fact, row, button } of this.items) {
      row.classList.toggle('chosen', fact.id === id);
      button.setAttribute('aria-current', String(fact.id === id));
    }
  }
}
