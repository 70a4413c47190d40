// Lines over layers: drawn as SVG at the width there is, lines told apart by color and by marker.

const MARKERS = [
  (x, y) => svg('circle', { cx: x, cy: y, r: 3.4 }),
  (x, y) => svg('rect', { x: x - 3, y: y - 3, width: 6, height: 6 }),
  (x, y) => svg('path', { d: `M${x} ${y - 4.2}L${x + 4} ${y + 3}H${x - 4}Z` }),
  (x, y) => svg('path', { d: `M${x} ${y - 4.4}L${x + 4.4} ${y}L${x} ${y + 4.4}L${x - 4.4} ${y}Z` }),
  (x, y) => svg('path', { d: `M${x - 3.4} ${y - 3.4}L${x + 3.4} ${y + 3.4}M${x + 3.4} ${y - 3.4}L${x - 3.4} ${y + 3.4}`, 'stroke-width': 1.8 }),
];

/**
 * Draws into `holder`: lines `{name, points: [[layer, value]], color, area}`; an area is a line filled below.
 * `picked` is the marked layer, `pick(layer)` is called by a click, `hidden` is a set of names not drawn.
 */
function drawLines(holder, { lines, label, picked = null, pick = null, hidden = new Set(), redraw }) {
  const width = Math.max(280, holder.clientWidth || 640);
  const height = Math.min(300, Math.max(200, width * 0.42));
  const box = { left: 34, right: width - 8, top: 10, bottom: height - 34 };
  const drawn = lines.filter((line) => !hidden.has(line.name));
  const layers = [...new Set(lines.flatMap((line) => line.points.map(([layer]) => layer)))].sort((a, b) => a - b);
  const values = drawn.flatMap((line) => line.points.map(([, value]) => value)).filter(isNumber);
  const high = Math.max(1, ...values);
  const low = Math.min(0, ...values);
  const first = layers[0], last = layers[layers.length - 1];
  const x = (layer) => (first === last ? (box.left + box.right) / 2 : box.left + 8 + ((layer - first) / (last - first)) * (box.right - box.left - 16));
  const y = (value) => box.bottom - ((value - low) / (high - low)) * (box.bottom - box.top);
  const picture = svg('svg', { class: 'chart', viewBox: `0 0 ${width} ${height}`, height, role: 'img', 'aria-label': label });
  drawAxes(picture, box, layers, x, y, low, high);
  if (picked !== null && layers.includes(picked)) picture.append(svg('line', { class: 'picked', x1: x(picked), x2: x(picked), y1: box.top, y2: box.bottom }));
  drawn.forEach((line) => drawLine(picture, line, lines.indexOf(line), x, y));
  const readout = el('p', { class: 'readout' });
  const tell = (layer) => readout.replaceChildren(...told(drawn, layer));
  const usual = picked ?? layers[Math.max(0, largest(layers.map((layer) => drawn[0]?.points.find(([at]) => at === layer)?.[1] ?? NaN)))];
  const near = (event) => {
    const at = event.clientX - picture.getBoundingClientRect().left;
    return layers.reduce((a, b) => (Math.abs(x(b) - at) < Math.abs(x(a) - at) ? b : a), first);
  };
  picture.addEventListener('pointermove', (event) => tell(near(event)));
  picture.addEventListener('pointerleave', () => tell(usual));
  if (pick) {
    picture.style.cursor = 'pointer';
    picture.addEventListener('click', (event) => pick(near(event)));
  }
  tell(usual);
  holder.replaceChildren(picture, legend(lines, hidden, redraw), readout);
}

function drawAxes(picture, box, layers, x, y, low, high) {
  const step = high - low > 2.5 ? 1 : high - low > 1.3 ? 0.5 : 0.25;
  for (let value = Math.ceil(low / step) * step; value <= high + 1e-9; value += step) {
    picture.append(svg('line', { class: 'grid', x1: box.left, x2: box.right, y1: y(value), y2: y(value) }));
    picture.append(svg('text', { x: box.left - 6, y: y(value) + 4, 'text-anchor': 'end' }, String(Math.round(value * 100) / 100).replace('-', '−')));
  }
  const most = Math.max(1, Math.floor((box.right - box.left) / 26));
  const every = Math.ceil(layers.length / most);
  layers.filter((_, i) => i % every === 0).forEach((layer) => {
    picture.append(svg('text', { x: x(layer), y: box.bottom + 16, 'text-anchor': 'middle' }, String(layer)));
  });
  picture.append(svg('text', { class: 'title', x: (box.left + box.right) / 2, y: box.bottom + 32, 'text-anchor': 'middle' }, 'layer'));
}

function drawLine(picture, line, i, x, y) {
  const points = line.points.filter(([, value]) => isNumber(value));
  if (!points.length) return;
  const path = points.map(([layer, value], n) => `${n ? 'L' : 'M'}${x(layer).toFixed(1)} ${y(value).toFixed(1)}`).join('');
  if (line.area) {
    const ground = `L${x(points[points.length - 1][0])} ${y(0)}L${x(points[0][0])} ${y(0)}Z`;
    picture.append(svg('path', { d: path + ground, fill: line.color, opacity: 0.16 }));
  }
  picture.append(svg('path', { class: 'line', d: path, stroke: line.color, 'stroke-dasharray': line.area ? '5 3' : null }));
  if (!line.area || points.length === 1) points.forEach(([layer, value]) => picture.append(marker(i, x(layer), y(value), line.color)));
}

function marker(i, x, y, color) {
  return svg('g', { fill: color, stroke: color }, MARKERS[i % MARKERS.length](x, y));
}

function told(lines, layer) {
  const parts = [`layer ${layer}: `];
  lines.forEach((line, i) => {
    const found = line.points.find(([at]) => at === layer);
    parts.push(i ? ' · ' : '', `${line.name} `, el('b', {}, shown(found ? found[1] : NaN, 2)));
  });
  return parts;
}

/** Which line is which; a button hides its line. */
function legend(lines, hidden, redraw) {
  return el('div', { class: 'legend' }, lines.map((line, i) => el(
    'button',
    { type: 'button', 'aria-pressed': String(!hidden.has(line.name)), onclick: () => { if (!hidden.delete(line.name)) hidden.add(line.name); redraw(); } },
    svg('svg', { viewBox: '0 0 26 12', 'aria-hidden': 'true' },
      svg('line', { x1: 0, x2: 26, y1: 6, y2: 6, stroke: line.color, 'stroke-width': 2.2, 'stroke-dasharray': line.area ? '5 3' : null }),
      line.area ? null : marker(i, 13, 6, line.color)),
    line.name,
  )));
}
