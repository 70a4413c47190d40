// The first picture: mean scores by edited layer, a line per method, and the mean tracing effect.

function drawOverview(curves, holder, controls) {
  const problems = Object.keys(curves.problems);
  const chosen = { problem: 0, outcome: 0 };
  const hidden = new Set();
  const known = () => curves.outcomes.filter((name) => Object.values(curves.problems[problems[chosen.problem]] ?? {}).some((method) => method[name]?.some(([, value]) => isNumber(value))));
  const redraw = () => {
    const methods = curves.problems[problems[chosen.problem]] ?? {};
    const outcome = curves.outcomes[chosen.outcome];
    const lines = curves.tracing.length ? [{ name: 'tracing effect', color: 'var(--tracing)', area: true, points: curves.tracing }] : [];
    Object.entries(methods).forEach(([name, scores], i) => lines.push({ name, color: `var(--m${i % 6})`, points: scores[outcome] ?? [] }));
    if (lines.some((line) => line.points.length)) drawLines(holder, { lines, hidden, redraw, label: `Mean ${outcome} score by layer and mean tracing effect; tables and figures below have the numbers` });
  };
  if (problems.length > 1) controls.append(choice('overview-problem', 'Problem', problems, 0, (i) => { chosen.problem = i; redraw(); }));
  if (known().length > 1) controls.append(choice('overview-outcome', 'Score', known(), 0, (i) => { chosen.outcome = curves.outcomes.indexOf(known()[i]); redraw(); }));
  if (!problems.length && !curves.tracing.length) byId('overview').remove();
  redraw();
  return redraw;
}
