/* The panels beside the points: the decision of a pair, errors, the tree of buckets. */
"use strict";

const panels = (() => {
  const { find, add, format, through } = drawing;

  // ---- The decision ---------------------------------------------------------------------------

  const GAUGE = { left: 14, width: 372, top: 30, tall: 34 };

  function drawDecision(run, t) {
    const step = t ? run.steps[t - 1] : null;
    const gauge = find("gauge");
    gauge.replaceChildren();
    find("where").textContent = step ? place(run, step) : "No pair yet.";
    find("decision").classList.toggle("failure", Boolean(step && isFailure(step)));
    find("decision").textContent = words(run, t);
    find("numbers").innerHTML = step?.kind === "pair" ? numbers(step) : "";
    if (step?.kind === "bucket") {
      drawRegions(gauge, 0, ["this half", !step.coin], ["the other half", step.coin]);
    } else if (step && step.i > 0 && step.a > 0) drawGauge(gauge, step);
  }

  const across = (v) => GAUGE.left + ((Math.max(-1, Math.min(1, v)) + 1) / 2) * GAUGE.width;

  /* Two parts of the interval [-1, 1], and whether each of them was drawn. */
  function drawRegions(gauge, border, first, second) {
    for (const [from, to, [words, drawn]] of [[-1, border, first], [border, 1, second]]) {
      const [x, width] = [across(from), across(to) - across(from)];
      const box = { x, width, y: GAUGE.top, height: GAUGE.tall };
      add(gauge, "rect", { class: `region ${drawn ? "chosen" : ""}`, ...box });
      const at = { x: x + width / 2, y: GAUGE.top + 22, "text-anchor": "middle" };
      if (width > 110) add(gauge, "text", { class: "ink", ...at }, `keep ${words}`);
    }
  }

  /* The interval of the draw, cut at alpha / a: on the left the pair is swapped. */
  function drawGauge(gauge, { alpha, a, u, swap }) {
    const { left, width, top, tall } = GAUGE;
    const [bottom, below, right] = [top + tall, top + tall + 25, left + width];
    const text = (at, y, words, anchor = "middle") =>
      add(gauge, "text", { class: "ink", x: at, y, "text-anchor": anchor }, words);
    const [border, needle] = [across(alpha / a), across(u)];
    drawRegions(gauge, alpha / a, ["the second", swap], ["the first", !swap]);
    add(gauge, "line", { class: "needle", x1: border, x2: border, y1: top - 6, y2: bottom });
    text(Math.max(50, Math.min(350, border)), top - 12, `α / a = ${format(alpha / a)}`);
    add(gauge, "path", { class: "tip", d: `M${needle},${bottom - 4}l7,13h-14z` });
    text(Math.max(42, Math.min(358, needle)), below, `U = ${format(u)}`);
    if (needle - left > 90) text(left, below, "\u22121", "start");
    if (right - needle > 90) text(right, below, "1", "end");
  }

  const isFailure = (step) => step.kind === "pair" && Math.abs(step.alpha) > step.a;

  function place({ schedule }, step) {
    const { buckets } = schedule.rounds[step.round];
    const start = `Round ${step.round + 1} of ${schedule.rounds.length}, ` +
      `bucket ${step.bucket + 1} of ${buckets}`;
    if (step.kind === "bucket") return `${start}, the coin`;
    return `${start}, pair ${step.i + 1} of ${step.points.length / 2}`;
  }

  function numbers(step) {
    const rows = [["b", step.b, "length of f, kernel at point 1 minus that at 2"],
      ["a", step.a, "threshold"]];
    if (step.i > 0) {
      rows.push(["α", step.alpha, "inner product of the walk ψ with f"],
        ["U", step.u, "draw, uniform in [−1, 1)"]);
    }
    return rows.map(([name, value, text]) =>
      `<dt><b>${name}<sub>i</sub></b> = ${format(value)}</dt><dd>${text}</dd>`).join("");
  }

  function words(run, t) {
    if (t === 0) return "Step or play: the pairs are decided one after the other.";
    const step = run.steps[t - 1];
    if (step.kind === "bucket") {
      const coin = `A fair coin: ${step.coin ? "the other" : "this"} half is kept.`;
      return t === run.steps.length ? `${coin} ${run.kept.length} points are left.` : coin;
    }
    if (step.i === 0) return "The first pair of a bucket: its first point is kept.";
    const [left, right] = [format(step.u * step.a), format(step.alpha)];
    const comparison = step.swap ? `U a = ${left} ≤ α = ${right}: the second point is kept.`
      : `U a = ${left} > α = ${right}: the first point is kept.`;
    return isFailure(step) ? `${comparison} A failure: |α| > a, so every draw makes this choice.`
      : comparison;
  }

  // ---- Errors and tree ------------------------------------------------------------------------

  const PLOT = { left: 44, right: 300, top: 14, bottom: 206, end: 390 };
  const MMD = "MMD: maximum mean discrepancy. Solid: thinned, dashed: random.";
  const STRIP = { thinned: 336, random: 372 }; // where the dots of the seeds are

  function drawErrors(run, t, ofSeeds) {
    const svg = find("errors");
    svg.replaceChildren();
    const { states, points, size } = run;
    const { left, right, top, bottom } = PLOT;
    const errors = [...states, ...ofSeeds].flatMap(({ thinned, random }) => [thinned, random]);
    const largest = 1.06 * Math.max(1e-6, ...errors);
    const halvings = Math.log2(points.length / size);
    const x = (m) => right - (Math.log2(m / size) / halvings) * (right - left);
    const y = (value) => bottom - (value / largest) * (bottom - top);
    drawAxes(svg, run, largest, x, y);
    for (const name of ["random", "thinned"]) {
      const seen = states.slice(0, t + 1).map((s) => [x(s.left), y(s[name])]);
      const [cx, cy] = seen.at(-1);
      add(svg, "path", { class: `${name}-line`, d: through(seen) });
      add(svg, "circle", { class: `${name}-dot`, r: 4.5, cx, cy });
      if (ofSeeds.length) drawSeeds(svg, name, ofSeeds.map((seed) => y(seed[name])));
    }
    const [thinned, random] = ["thinned", "random"].map((name) =>
      format(mean(ofSeeds.map((seed) => seed[name]))));
    find("error-words").textContent = ofSeeds.length
      ? `${MMD} Right: the MMD at the end, with each of ${ofSeeds.length} other seeds. ` +
        `Mean: thinned ${thinned}, random ${random}.`
      : `${MMD} Right: the MMD at the end, with other seeds.`;
  }

  function drawAxes(svg, { points, size }, largest, x, y) {
    const { left, right, bottom, end } = PLOT;
    const unit = 10 ** Math.floor(Math.log10(largest));
    const grain = [0.2, 0.5, 1, 2, 5].map((k) => k * unit).find((g) => largest / g < 5.5);
    for (let k = 0; k * grain <= largest; k++) {
      const at = y(k * grain);
      add(svg, "line", { class: "tick", x1: left, x2: end, y1: at, y2: at });
      const text = String(Number((k * grain).toPrecision(2)));
      add(svg, "text", { x: left - 6, y: at + 4, "text-anchor": "end" }, text);
    }
    for (let m = size; m <= points.length; m *= 2) {
      add(svg, "line", { class: "tick", x1: x(m), x2: x(m), y1: bottom, y2: bottom + 5 });
      add(svg, "text", { x: x(m), y: bottom + 18, "text-anchor": "middle" }, m);
    }
    const under = { y: bottom + 38, "text-anchor": "middle" };
    add(svg, "text", { x: (left + right) / 2, ...under }, "points left");
    add(svg, "text", { x: (STRIP.thinned + STRIP.random) / 2, ...under }, "other seeds");
  }

  function drawSeeds(svg, name, heights) {
    const at = STRIP[name];
    heights.forEach((cy, i) => {
      add(svg, "circle", { class: `${name}-dot one`, r: 2.5, cx: at + ((i * 7) % 11) - 5, cy });
    });
    const y = mean(heights);
    add(svg, "line", { class: `mean ${name}-line`, x1: at - 12, x2: at + 12, y1: y, y2: y });
  }

  const mean = (list) => list.reduce((sum, x) => sum + x, 0) / list.length;

  const WIDE = { left: 226, tall: 20, gap: 12, above: 2 };
  const NARROW = { left: 0, tall: 22, gap: 26, above: 18 };

  function drawTree(run, t) {
    const svg = find("tree");
    svg.replaceChildren();
    const { rounds, size } = run.schedule;
    const side = svg.clientWidth || 800;
    const sizes = side > 560 ? WIDE : NARROW;
    const { left, tall, gap, above } = sizes;
    const end = above + rounds.length * (tall + gap);
    svg.setAttribute("viewBox", `0 0 ${side} ${end + 12}`);
    rounds.forEach(({ pairs, buckets, delta }, round) => {
      const y = above + round * (tall + gap);
      const text = `${2 * pairs} → ${pairs}: ${buckets} ${buckets > 1 ? "buckets" : "bucket"}, ` +
        `δ = ${Number(delta.toPrecision(2))}`;
      const at = sizes === WIDE ? { x: 0, y: y + tall / 2 + 4 } : { x: left, y: y - 5 };
      add(svg, "text", at, text);
      const x = (pair) => left + (pair / pairs) * (side - left - 2);
      drawRound(svg, run, t, round, x, { y, tall });
    });
    add(svg, "text", { x: 0, y: end + 6 }, `At the end ${size} points are left.`);
    find("tree-words").textContent = rounds.length === 1
      ? "One round, one bucket: kernel halving of all points."
      : "Each bucket is halved by itself, with the δ of its row. Four halved buckets make one " +
        "bucket of the next round, which has twice as many points.";
  }

  /* The buckets of a round; in each, its points or, where there are too many, how full it is. */
  function drawRound(svg, run, t, round, x, { y, tall }) {
    const { pairs, buckets } = run.schedule.rounds[round];
    const bounds = thinformer.bucket_bounds(pairs, buckets);
    const [decided, now] = [decisions(run, t, round), t < run.steps.length && run.steps[t - 1]];
    const cell = (x(1) - x(0)) / 2;
    const space = buckets > 1 ? Math.min(2, cell) : 0;
    for (let b = 0; b < buckets; b++) {
      const [first, last] = [bounds[b], bounds[b + 1]];
      const box = { x: x(first), y, rx: 2, width: x(last) - x(first) - space, height: tall };
      const isNow = now && now.round === round && now.bucket === b;
      add(svg, "rect", { class: `bucket ${isNow ? "now" : ""}`, ...box });
      const share = Math.max(0, Math.min(1, (decided.length - first) / (last - first)));
      if (cell < 4 && share > 0) {
        add(svg, "rect", { class: "fill", ...box, width: box.width * share });
      }
    }
    const r = Math.min(4, 0.36 * cell);
    for (const [i, swap] of cell < 4 ? [] : decided.entries()) {
      for (const second of [false, true]) {
        const [name, radius] = swap === second ? ["survivor", r] : ["loser", 0.6 * r];
        const cx = x(i) + (second ? 1.5 : 0.5) * cell - space / 2;
        add(svg, "circle", { class: name, r: radius, cx, cy: y + tall / 2 });
      }
    }
  }

  /* Whether each decided pair of a round keeps its second point. */
  function decisions({ steps }, t, round) {
    const swaps = [];
    for (const step of steps.slice(0, t)) {
      if (step.round !== round) continue;
      if (step.kind === "pair") swaps.push(step.swap);
      else if (step.coin) {
        const start = swaps.length - step.half.length;
        for (let i = start; i < swaps.length; i++) swaps[i] = !swaps[i];
      }
    }
    return swaps;
  }

  return { drawDecision, drawErrors, drawTree };
})();
