// circuitsvis' colored tokens.  Its code waits in an inert element and runs when a view is first asked for.

let views = 0;

function circuitsvis() {
  if (!window.CircuitsVis) document.head.append(el('script', {}, byId('circuitsvis').textContent));
  return window.CircuitsVis;
}

/** circuitsvis sets a token's text as HTML, so what is markup there is spelled out here. */
function harmless(token) {
  return token.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;').replace(/"/g, '&quot;');
}

/** Draws the prompt's tokens colored by the effect at each layer, on one scale for all layers. */
function drawTokens(holder, fact, trace) {
  const { grid, most } = effects(fact, trace);
  if (!grid.flat().every(isNumber)) {
    holder.replaceChildren(el('p', {}, 'This trace has cells without a number, which the view cannot color.'));
    return;
  }
  const view = el('div', { id: `circuitsvis-${++views}` });
  holder.replaceChildren(view);
  const library = circuitsvis();
  library.render(view.id, library.ColoredTokensMulti, {
    tokens: fact.tokens.map(harmless),
    values: fact.tokens.map((_, pos) => grid.map((row) => row[pos])),
    labels: trace.layers.map((layer) => `layer ${layer}`),
    positiveBounds: trace.layers.map(() => Math.max(most, 1e-6)),
    negativeBounds: trace.layers.map(() => -Math.max(most, 1e-6)),
  });
}
