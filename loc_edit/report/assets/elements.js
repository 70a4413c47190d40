// Elements are made by name; texts only ever become text nodes, so no text from data is read as markup.

const SVG = 'http://www.w3.org/2000/svg';

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name.startsWith('--')) node.style.setProperty(name, value);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function el(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** A text in its own direction: Arabic or Hebrew in an English line does not turn the line around. */
function text(value) {
  return el('bdi', {}, value);
}

function byId(id) {
  return document.getElementById(id);
}

/** A labelled list of choices. */
function choice(name, label, options, chosen, act) {
  const list = el('select', { id: name, onchange: (event) => act(Number(event.target.value)) });
  options.forEach((option, i) => list.append(el('option', { value: i, selected: i === chosen }, option)));
  return el('label', { for: name }, label, list);
}
