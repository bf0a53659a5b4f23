/* Draws a run after some of its steps. It reads the run, and changes no state. */
"use strict";

const picture = (() => {
  const { SIDE, PLACES, find, add, format, across, height } = drawing;
  const { onLine, inPlane, paint, curves } = drawing;

  // ---- The two pictures of points -------------------------------------------------------------

  const withoutZeros = (entries) => entries.filter(([, c]) => c !== 0);

  /* The two functions that a picture may show: coefficients by point, and words. */
  function functions(run, t, weights, taken) {
    const { steps, points } = run;
    const n = points.length;
    const finished = t === steps.length;
    const m = taken.reduce((sum, is) => sum + is, 0);
    return {
      walk: finished
        ? withoutZeros([...weights].map((w, p) => [p, w - 1]))
        : [...experiment.walkAt(run, t, true)],
      after: [...experiment.walkAt(run, t, false)],
      error: withoutZeros(taken.map((is, p) => [p, (is * n) / m - 1])),
      finished,
    };
  }

  /* Nodes of the points, made once for a run, so that a finger may hold one while they change. */
  function prepare(svg, points, movable) {
    svg.replaceChildren();
    const layers = {};
    for (const name of ["under", "dots", "over"]) layers[name] = add(svg, "g");
    layers.nodes = points.map(() => add(layers.dots, "circle", { class: "point" }));
    if (movable) {
      const r = points.length > 64 ? 8 : 15;
      layers.grabs = points.map(() => add(svg, "circle", { class: "grab", r }));
    }
    return layers;
  }

  function dots(layers, points, classOf, weightOf) {
    points.forEach((point, p) => {
      const [cx, cy] = [across(point[0]), height(point)];
      const base = points.length > 128 ? 3.2 : points.length > 32 ? 4.2 : 5.5;
      const r = base * Math.max(weightOf(p), 1) ** 0.22 * (weightOf(p) === 0 ? 0.75 : 1);
      const node = layers.nodes[p];
      node.setAttribute("class", `point ${classOf(p)}`);
      for (const [key, value] of Object.entries({ cx, cy, r })) node.setAttribute(key, value);
      layers.grabs?.[p].setAttribute("cx", cx);
      layers.grabs?.[p].setAttribute("cy", cy);
    });
  }

  /* Points that the current round has already kept. */
  function keptThisRound({ steps }, t, weights) {
    const round = t ? steps[t - 1].round : 0;
    return (p) => weights[p] === 2 ** (round + 1);
  }

  function drawThinned(run, t, layers, { weights, shown, selected }) {
    const { points, steps, bandwidth: h } = run;
    const step = t ? steps[t - 1] : null;
    const bucket = new Set(step && !shown.finished ? step.points : points.keys());
    const isKept = keptThisRound(run, t, weights);
    for (const name of ["under", "over"]) layers[name].replaceChildren();
    if (points[0].length === 1) {
      const before = { name: "before", values: onLine(points, shown.walk, h, PLACES) };
      const after = { name: "walk", area: true, values: onLine(points, shown.after, h, PLACES) };
      const list = shown.finished ? [{ ...before, name: "walk", area: true }] : [after];
      if (!shown.finished && step?.kind === "pair") {
        const pair = [[step.points[2 * step.i], 1], [step.points[2 * step.i + 1], -1]];
        list.push(before, { name: "f", values: onLine(points, pair, h, PLACES) });
      }
      curves(layers.under, list);
    }
    paint(find("thinned-field"), points[0].length === 2 && inPlane(points, shown.walk, h),
      shown.finished ? errorScale(run) : 2.5);
    dots(layers, points, (p) => {
      const state = weights[p] === 0 ? "dropped" : isKept(p) ? "kept" : "";
      return `${state} ${bucket.has(p) ? "" : "outside"}`;
    }, (p) => weights[p]);
    if (step?.kind === "pair" && !shown.finished) markPair(layers, points, step);
    if (selected !== null) {
      const [cx, cy] = [across(points[selected][0]), height(points[selected])];
      add(layers.over, "circle", { class: "selected", r: 13, cx, cy });
    }
  }

  function markPair(layers, points, step) {
    const ends = [0, 1].map((k) => points[step.points[2 * step.i + k]]);
    const [[x1, y1], [x2, y2]] = ends.map((point) => [across(point[0]), height(point)]);
    const flat = ends[0].length === 1;
    add(layers.under, "line", { class: "link", x1, y1, x2, y2 });
    [[x1, y1], [x2, y2]].forEach(([cx, cy], k) => {
      const chosen = step.swap === (k === 1);
      add(layers.over, "circle", { class: `pair ${chosen ? "" : "not"}`, r: 9, cx, cy });
      const outward = (k === 0) === (x1 < x2) ? -1 : 1; // labels do not stand between the points
      const [aside, below] = flat ? [Math.abs(x1 - x2) < 18 ? 8 : 0, 27] : [17, 5];
      const at = { x: Math.max(10, Math.min(SIDE - 10, cx + aside * outward)), y: cy + below };
      add(layers.over, "text", { class: "label", ...at, "text-anchor": "middle" }, k + 1);
    });
  }

  /* The size that n times the error of m independent points has. */
  const errorScale = ({ points, size }) => (0.7 * points.length) / Math.sqrt(size);

  function drawRandom(run, layers, shown, taken) {
    const { points, bandwidth: h } = run;
    layers.under.replaceChildren();
    if (points[0].length === 1) {
      const values = onLine(points, shown.error, h, PLACES);
      curves(layers.under, [{ name: "walk", area: true, values }]);
    }
    paint(find("random-field"), points[0].length === 2 && inPlane(points, shown.error, h),
      errorScale(run));
    dots(layers, points, (p) => (taken[p] ? "kept" : "dropped"), (p) => (taken[p] ? 1 : 0));
  }

  // ---- All of it ------------------------------------------------------------------------------

  function legends(run, t, shown) {
    const line = run.points[0].length === 1;
    const where = "Purple: too many points are kept there. Green: too few.";
    find("thinned-legend").textContent = shown.finished
      ? `${line ? "Curve" : "Colour"}: the error, kept points against all. ${where}`
      : line
        ? "Thick: the walk ψ after the decision, thin: before it. Dashed: f, the kernel at point 1 " +
          "minus that at point 2."
        : `Colour: the walk ψ of this bucket, before the decision. ${where}`;
    find("random-legend").textContent =
      `As many points, drawn at random. ${line ? "Curve" : "Colour"}: their error, on ` +
      `${shown.finished ? "the same scale" : "its own scale"}.`;
  }

  let layers = null;

  /* Draw a run after its first t steps. */
  function draw(run, t, { ofSeeds = [], selected = null, fresh = false }) {
    if (fresh || !layers) {
      layers = { thinned: prepare(find("thinned"), run.points, true),
        random: prepare(find("random"), run.points, false) };
    }
    const weights = experiment.weightsAt(run, t);
    const state = run.states[t];
    const taken = new Array(run.points.length).fill(0);
    for (const p of run.order.slice(run.points.length - state.left)) taken[p] = 1;
    const shown = functions(run, t, weights, taken);
    drawThinned(run, t, layers.thinned, { weights, shown, selected });
    drawRandom(run, layers.random, shown, taken);
    panels.drawDecision(run, t);
    panels.drawErrors(run, t, ofSeeds);
    panels.drawTree(run, t);
    legends(run, t, shown);
    find("thinned-mmd").textContent = `${state.left} points, MMD ${format(state.thinned)}`;
    find("random-mmd").textContent = `${state.left} points, MMD ${format(state.random)}`;
  }

  return { draw };
})();
