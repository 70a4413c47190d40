// One fact in a frame: drawn as in the report, from data that the page around the frame posts.

/** What the model writes after the prompt, before and after the edits. */
function writtenPart([before, after]) {
  const column = (title, words) => el('div', {}, el('h4', {}, title), el('p', { dir: 'auto' }, text(words || '–')));
  return el('div', { class: 'next' }, column('The model writes, before', before), column('and after', after));
}

function drawPanel(data) {
  const { explorer: { facts: [fact], combos, grids, outcomes }, edited, caption, written } = data;
  const trace = grids.length ? fact.traces[grids[0].key] : undefined;
  const edit = combos.length ? fact.edits[0] : undefined;
  const holder = byId('fact');
  const part = (title) => {
    const inside = el('div', {});
    holder.append(el('h3', {}, title), inside);
    return inside;
  };
  holder.replaceChildren(promptLine(fact), tiles(fact, trace, edit));
  if (trace) {
    const pick = (layer) => {
      data.layer = layer;
      drawPanel(data);
      parent.postMessage({ layer }, '*');
    };
    drawHeatmap(part('Where restoring brings the object back'), fact, trace, data.layer, pick);
    holder.append(tokensPart(fact, trace));
  }
  if (edit) {
    const inside = part(caption);
    inside.append(writtenPart(written));
    drawEdit(inside, fact, edit, { combo: combos[0], outcomes, layer: edited });
  }
}

addEventListener('message', (event) => { if (event.source === parent) drawPanel(event.data); });
new ResizeObserver(() => parent.postMessage({ height: document.documentElement.offsetHeight }, '*')).observe(document.documentElement);
parent.postMessage({ ready: true }, '*');
