/* The page's state, its controls, keys, and fingers. The picture is drawn by picture.js. */
"use strict";

(() => {
  const find = (id) => document.getElementById(id);
  const SIZES = [8, 16, 32, 64, 128, 256, 512];
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");

  // ---- State ----------------------------------------------------------------------------------

  const settings = { ...experiment.SETTINGS };
  let points = null; // moved by hand, they differ from those of the settings
  let moved = false;
  let run = null;
  let t = 0;
  let ofSeeds = [];
  let selected = null;
  let playing = null;
  let pending = null;

  /* Settings in the address: ?set=ring&n=64&keep=8&step=40 */
  function read(address) {
    const given = new URLSearchParams(address);
    for (const name of Object.keys(settings)) {
      const [text, number] = [given.get(name), Number(given.get(name))];
      if (text === null) continue;
      if (typeof settings[name] === "string") settings[name] = text;
      else if (Number.isFinite(number)) settings[name] = number;
    }
    if (!(settings.set in experiment.SETS)) settings.set = "normal";
    if (!SIZES.includes(settings.n)) settings.n = 64;
    if (!choicesOfKeep().includes(settings.keep)) settings.keep = settings.n / 2;
    settings.bandwidth = Math.min(2, Math.max(0.03, settings.bandwidth)) || 0.7;
    settings.delta = Math.min(1, Math.max(1e-4, settings.delta)) || 0.5;
    settings.seed = wholeNumber(settings.seed);
    settings.points = wholeNumber(settings.points);
    return Number(given.get("step")) || 0;
  }

  const wholeNumber = (x) => Math.max(0, Math.min(999999, Math.floor(Number(x) || 0)));

  /* The sizes from n / 2 down to the root of n: with fewer, some buckets would have one pair. */
  function choicesOfKeep() {
    const choices = [];
    for (let size = settings.n / 2; size ** 2 >= settings.n; size /= 2) choices.push(size);
    return choices;
  }

  function compute() {
    moved = points !== null && (moved || points !== run.points);
    const { n, keep: size, delta, seed, bandwidth } = settings;
    points ??= experiment.pointSet(settings.set, n, settings.points, settings.order === "sorted");
    run = experiment.run({ points, bandwidth, delta, size, seed }, run);
    ofSeeds = [];
    clearTimeout(pending);
    pending = setTimeout(() => {
      ofSeeds = experiment.overSeeds(run, experiment.SEEDS);
      show();
    }, 150);
  }

  /* Another run, from its first step or at the same one. */
  function restart(step = 0) {
    find("point").textContent = "";
    compute();
    t = Math.min(step, run.steps.length);
    find("at").max = run.steps.length;
    selected = Math.min(selected ?? 0, points.length - 1);
    show(true);
  }

  /* The settings as an address, and the program: what readers take away. */
  function takeAway() {
    find("program").textContent = experiment.program(run);
    const step = t ? { step: t } : {};
    find("link").href = `?${new URLSearchParams({ ...settings, ...step })}`;
    find("link").hidden = moved;
  }

  function show(fresh = false) {
    picture.draw(run, t, { ofSeeds, selected, fresh });
    find("at").value = t;
    find("at").setAttribute("aria-valuetext", `step ${t} of ${run.steps.length}`);
    find("back").disabled = find("reset").disabled = t === 0;
    find("step").disabled = find("skip").disabled = find("end").disabled = t === run.steps.length;
    takeAway();
    tellHeight();
  }

  // ---- Steps ----------------------------------------------------------------------------------

  function goTo(step) {
    t = Math.max(0, Math.min(run.steps.length, step));
    if (t === run.steps.length) pause();
    show();
  }

  /* The step behind the coin of the bucket of the next pair. */
  function endOfBucket() {
    const rest = run.steps.slice(t).findIndex((step) => step.kind === "bucket");
    return rest < 0 ? run.steps.length : t + rest + 1;
  }

  function play() {
    if (t === run.steps.length) t = 0;
    find("play").textContent = "Pause";
    const next = () => {
      playing = setTimeout(next, Math.max(Number(find("speed").value), calm.matches ? 400 : 0));
      goTo(t + 1);
    };
    playing = setTimeout(next, 0);
    find("decision").setAttribute("aria-live", "off"); // a reader would lag behind
  }

  function pause() {
    clearTimeout(playing);
    playing = null;
    find("play").textContent = "Play";
    find("decision").setAttribute("aria-live", "polite");
  }

  const moves = {
    reset: () => goTo(0),
    back: () => goTo(t - 1),
    step: () => goTo(t + 1),
    skip: () => goTo(endOfBucket()),
    end: () => goTo(run.steps.length),
  };
  for (const [id, move] of Object.entries(moves)) {
    find(id).addEventListener("click", () => { pause(); move(); });
  }
  find("play").addEventListener("click", () => (playing === null ? play() : pause()));
  find("at").addEventListener("input", () => { pause(); goTo(Number(find("at").value)); });

  // ---- Settings -------------------------------------------------------------------------------

  function fill(select, values, text) {
    select.replaceChildren(...values.map((value) => new Option(text(value), value)));
  }

  const algorithm = (size) => {
    const g = Math.log2(size) - Math.log2(settings.n) / 2;
    if (size === settings.n / 2) return "halving";
    return Number.isInteger(g) && g >= 0 ? `KH-Compress(${g})` : "KH-Compress";
  };

  function showSettings() {
    fill(find("n"), SIZES, String);
    fill(find("keep"), choicesOfKeep(), (size) => `${size}, ${algorithm(size)}`);
    for (const name of ["set", "order", "n", "keep", "delta", "seed"]) {
      find(name).value = String(settings[name]);
    }
    find("bandwidth").value = Math.round(20 * Math.log10(settings.bandwidth));
    find("bandwidth-value").textContent = settings.bandwidth;
  }

  function change(name, value) {
    pause();
    const share = settings.keep / settings.n;
    settings[name] = value;
    if (["set", "order", "n", "points"].includes(name)) points = null;
    if (name === "n") settings.keep = settings.n * share;
    if (!choicesOfKeep().includes(settings.keep)) settings.keep = choicesOfKeep().at(-1);
    showSettings();
    restart(name === "bandwidth" || name === "delta" ? t : 0);
  }

  for (const name of ["set", "order"]) {
    find(name).addEventListener("change", (event) => change(name, event.target.value));
  }
  for (const name of ["n", "keep", "delta"]) {
    find(name).addEventListener("change", (event) => change(name, Number(event.target.value)));
  }
  find("seed").addEventListener("change", (event) => {
    change("seed", wholeNumber(event.target.value));
  });
  find("bandwidth").addEventListener("input", (event) => {
    change("bandwidth", Number((10 ** (event.target.value / 20)).toPrecision(2)));
  });
  find("new").addEventListener("click", () => change("points", settings.points + 1));
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  find("copy").addEventListener("click", () => {
    getSelection().selectAllChildren(find("program"));
    document.execCommand("copy"); // the clipboard interface needs https
  });

  // ---- Moving points --------------------------------------------------------------------------

  function move(p, place) {
    const limited = place.map((x) => Math.round(1000 * Math.max(-2.9, Math.min(2.9, x))) / 1000);
    points = points.map((point, q) => (q === p ? limited.slice(0, point.length) : point));
    compute();
    t = Math.min(t, run.steps.length);
    show();
  }

  function tellPoint() {
    find("point").textContent = `Point ${selected + 1}: ${points[selected].join(", ")}`;
  }

  const svg = find("thinned");
  let held = null;

  /* Where a pointer is, in the coordinates of the points. */
  function placeOf(event) {
    const box = svg.getBoundingClientRect();
    const scale = drawing.SIDE / box.width;
    return [drawing.back((event.clientX - box.left) * scale),
      -drawing.back((event.clientY - box.top) * scale)];
  }

  /* The nearest point: the circles that take hold of points lie over each other. */
  function nearest([x, y]) {
    const line = -drawing.back(drawing.height([0]));
    const distances = points.map((point) => Math.hypot(point[0] - x, (point[1] ?? line) - y));
    return distances.indexOf(Math.min(...distances));
  }

  svg.addEventListener("pointerdown", (event) => {
    if (!event.target.classList.contains("grab")) return;
    held = selected = nearest(placeOf(event));
    svg.setPointerCapture(event.pointerId);
    pause();
    show();
  });
  // a finger on a point moves it; touch-action alone did not keep the page from scrolling
  svg.addEventListener("touchstart", (event) => {
    if (event.target.classList.contains("grab")) event.preventDefault();
  }, { passive: false });
  svg.addEventListener("pointermove", (event) => {
    if (held === null) return;
    move(held, placeOf(event));
    tellPoint();
  });
  for (const name of ["pointerup", "pointercancel"]) {
    svg.addEventListener(name, () => (held = null));
  }

  const keyOf = (event) => (event.key.length === 1 ? event.key.toLowerCase() : event.key);
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] };

  svg.addEventListener("keydown", (event) => {
    const [n, key] = [points.length, keyOf(event)];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (key === "n" || key === "p") {
      selected = (selected + (key === "n" ? 1 : n - 1)) % n;
      show();
    } else if (key in ARROWS) {
      move(selected, points[selected].map((x, j) => x + 0.1 * ARROWS[key][j]));
    } else return;
    event.preventDefault();
    event.stopPropagation();
    tellPoint();
  });

  // ---- Keys of the whole page -----------------------------------------------------------------

  const KEYS = { ArrowRight: "step", ArrowLeft: "back", Home: "reset", End: "end", b: "skip" };

  document.addEventListener("keydown", (event) => {
    const inField = event.target.closest("input, select, pre, summary");
    if (inField || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = keyOf(event);
    if (key === " " && !event.target.closest("button")) find("play").click();
    else if (key in KEYS) find(KEYS[key]).click();
    else return;
    event.preventDefault();
  });

  // ---- Inside a page of the documentation, which tells its theme and wants the height ---------

  const embedded = window.parent !== window;
  document.documentElement.classList.toggle("embedded", embedded);

  function tellHeight() {
    if (embedded) {
      const height = document.querySelector("main").offsetHeight + 8;
      window.parent.postMessage({ exploreHeight: height }, "*");
    }
  }

  const darkness = window.matchMedia("(prefers-color-scheme: dark)");
  let wanted = "auto";

  function setTheme(theme) {
    wanted = theme;
    const dark = theme === "dark" || (theme !== "light" && darkness.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    show();
  }

  window.addEventListener("message", ({ data }) => {
    if (data && typeof data.exploreTheme === "string") setTheme(data.exploreTheme);
  });
  darkness.addEventListener("change", () => setTheme(wanted));
  window.addEventListener("resize", () => show());
  document.querySelector("details").addEventListener("toggle", tellHeight);

  const step = read(window.location.search);
  showSettings();
  restart(step);
  setTheme(new URLSearchParams(window.location.search).get("theme") ?? "auto");
})();
