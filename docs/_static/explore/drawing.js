/* What the pictures are made of: nodes of SVG, numbers as text, functions as curves and colours. */
"use strict";

const drawing = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const SIDE = 400; // of the square pictures
  const LIMIT = experiment.LIMIT;
  const CELLS = 56; // of the coloured field, in each direction
  const FLOOR = 350; // the height of the line of points, in a picture of the line
  const MIDDLE = 168; // the height of 0 of the curves above it

  const find = (id) => document.getElementById(id);
  const across = (x) => ((x + LIMIT) / (2 * LIMIT)) * SIDE;
  const back = (pixel) => (pixel / SIDE) * 2 * LIMIT - LIMIT;
  const height = (point) => (point.length === 1 ? FLOOR : SIDE - across(point[1]));
  const format = (x) => {
    const text = Math.abs(x) < 5e-4 ? "0" : x.toFixed(Math.abs(x) < 10 ? 3 : 1);
    return text.replace("-", "\u2212");
  };

  function add(parent, name, attributes = {}, text = null) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    parent.append(node);
    return node;
  }

  // ---- Functions in the kernel's space, on the line and in the plane --------------------------

  const bump = (distance, h) => Math.exp(-(distance ** 2) / (2 * h * h));

  /* sum_p c_p exp(-|x - x_p|^2 / 2 h^2) at equally spaced places of the line. */
  function onLine(points, coefficients, h, places) {
    return places.map((x) => {
      let sum = 0;
      for (const [p, c] of coefficients) sum += c * bump(x - points[p][0], h);
      return sum;
    });
  }

  const centres = Array.from({ length: CELLS }, (_, i) => ((i + 0.5) / CELLS) * 2 * LIMIT - LIMIT);

  /* The same in the plane, as the product of two functions of one number each. */
  function inPlane(points, coefficients, h) {
    const values = new Float64Array(CELLS * CELLS);
    for (const [p, c] of coefficients) {
      const [columns, rows] = points[p].map((centre) => centres.map((x) => bump(x - centre, h)));
      for (let row = 0; row < CELLS; row++) {
        const factor = c * rows[row];
        if (Math.abs(factor) < 1e-4) continue;
        for (let column = 0; column < CELLS; column++) {
          values[row * CELLS + column] += factor * columns[column];
        }
      }
    }
    return values;
  }

  const colourOf = (node, name) => {
    node.style.color = `var(--${name})`;
    return getComputedStyle(node).color.match(/[\d.]+/g).slice(0, 3).map(Number);
  };

  /* Purple where the function is positive, green where it is negative; full colour at `scale`. */
  function paint(canvas, values, scale) {
    [canvas.width, canvas.height] = [CELLS, CELLS];
    const context = canvas.getContext("2d");
    if (!values) return;
    const image = context.createImageData(CELLS, CELLS);
    const [more, less] = [colourOf(canvas, "more"), colourOf(canvas, "less")];
    for (let row = 0; row < CELLS; row++) {
      for (let column = 0; column < CELLS; column++) {
        const value = values[(CELLS - 1 - row) * CELLS + column];
        const at = 4 * (row * CELLS + column);
        image.data.set(value > 0 ? more : less, at);
        image.data[at + 3] = 190 * Math.min(1, Math.abs(value) / scale);
      }
    }
    context.putImageData(image, 0, 0);
  }

  const PLACES = Array.from({ length: 161 }, (_, i) => ((2 * i) / 160 - 1) * LIMIT);
  const NICE = [1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500];

  /* A path of SVG through places of a picture. */
  const through = (places) =>
    places.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`).join("");

  const path = (values, scale) =>
    through(values.map((v, i) => [across(PLACES[i]), MIDDLE - (v / scale) * 140]));

  /* Curves above the line of points, with the value at which the scale ends. */
  function curves(group, list) {
    const largest = Math.max(...list.flatMap(({ values }) => values.map(Math.abs)), 0.5);
    const scale = NICE.find((nice) => nice >= largest) ?? largest;
    for (const mark of [scale, -scale]) {
      const y = MIDDLE - (mark / scale) * 140;
      add(group, "line", { class: "tick", x1: 0, x2: SIDE, y1: y, y2: y });
      add(group, "text", { x: 4, y: y + (mark > 0 ? -4 : 14) }, format(mark).replace(/\.?0+$/, ""));
    }
    add(group, "line", { class: "axis", x1: 0, x2: SIDE, y1: MIDDLE, y2: MIDDLE });
    add(group, "line", { class: "axis", x1: 0, x2: SIDE, y1: FLOOR, y2: FLOOR });
    for (const { name, values, area } of list) {
      if (area) {
        for (const [sign, part] of [["more", Math.max], ["less", Math.min]]) {
          const cut = values.map((v) => part(v, 0));
          add(group, "path", { class: `area ${sign}`, d: `${path(cut, scale)}V${MIDDLE}H0Z` });
        }
      }
      add(group, "path", { class: `curve ${name}`, d: path(values, scale) });
    }
  }

  return { SIDE, PLACES, find, add, format, across, height, back, through, onLine,
    inPlane, paint, curves };
})();
