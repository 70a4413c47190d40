// The grid of one trace as a table: tokens down, layers across, white (or black) at 0, subject tokens starred.

/** A token as one line that can be seen: spaces and line breaks are spelled out. */
function visible(token) {
  const spelled = token.replace(/\n/g, '⏎').replace(/\t/g, '⇥').replace(/\r/g, '␍');
  return spelled.trim() || '␣'.repeat(Math.max(1, spelled.length));
}

/** Effects [layer][pos] of a fact's trace, and the largest in size. */
function effects(fact, trace) {
  const restored = unpack(trace.restored);
  const width = fact.tokens.length;
  const grid = trace.layers.map((_, l) => fact.tokens.map((_, pos) => (trace.corrupted === null ? NaN : restored[l * width + pos] - trace.corrupted)));
  const most = Math.max(0, ...grid.flat().filter(isNumber).map(Math.abs));
  return { grid, most };
}

/** Draws the heatmap of `fact` into `holder`; `pick(layer)` is called by a click or Enter on a cell. */
function drawHeatmap(holder, fact, trace, picked, pick) {
  const { grid, most } = effects(fact, trace);
  const [begin, end] = fact.subject;
  const readout = el('p', { class: 'readout', 'aria-live': 'polite' }, 'Point at a cell, or move with the arrow keys.');
  const cells = [];
  const tell = (l, pos) => readout.replaceChildren(
    `layer ${trace.layers[l]}, token `, el('b', {}, text(visible(fact.tokens[pos]))), pos >= begin && pos < end ? ' (subject)' : '',
    ': effect ', el('b', {}, shown(grid[l][pos])), `, restored ${shown(grid[l][pos] + trace.corrupted)}`,
  );
  const move = (event, l, pos) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const next = step && cells[pos + step[1]]?.[l + step[0]];
    if (next) { event.preventDefault(); event.target.tabIndex = -1; next.tabIndex = 0; next.focus(); }
    if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); pick(trace.layers[l]); }
  };
  const rows = fact.tokens.map((token, pos) => {
    const subject = pos >= begin && pos < end;
    cells.push(trace.layers.map((layer, l) => {
      const value = grid[l][pos];
      return el('td', {
        class: isNumber(value) ? 'cell' : 'cell none', tabindex: l || pos ? -1 : 0,
        '--amount': isNumber(value) && most ? (Math.abs(value) / most).toFixed(3) : 0, '--tone': value < 0 ? 'var(--negative)' : 'var(--positive)',
        'aria-label': `layer ${layer}, ${visible(token)}: ${shown(value)}`,
        onpointerenter: () => tell(l, pos), onfocus: () => tell(l, pos), onclick: () => pick(layer), onkeydown: (event) => move(event, l, pos),
      });
    }));
    return el('tr', {}, el('th', { scope: 'row', class: subject ? 'subject' : null, title: token }, text(visible(token)), subject ? ' ★' : ''), cells[pos]);
  });
  const every = Math.ceil(trace.layers.length / 24);
  const head = trace.layers.map((layer, l) => el('th', { scope: 'col', class: layer === picked ? 'at' : null }, l % every === 0 || layer === picked ? String(layer) : ''));
  holder.replaceChildren(
    el('div', { class: 'scroll' }, el('table', { class: 'heat', '--layers': trace.layers.length },
      el('thead', {}, el('tr', {}, el('td', {}), head)), el('tbody', {}, rows))),
    el('p', { class: 'scale' }, `−${shown(most, 2)}`, el('span', { class: 'ramp', 'aria-hidden': 'true' }), `+${shown(most, 2)}`,
      ` effect on the ${trace.metric.replaceAll('_', ' ')} of the object; ★ subject, corrupted`),
    readout,
  );
}
