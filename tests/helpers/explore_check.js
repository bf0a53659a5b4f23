/* Uses the page as a reader does, and writes what it finds into it, for test_explore.py.

   It runs at the end of index.html, behind explore_choices.js and a script with the inputs `cases`.
   The browser's time is virtual, so playing waits for nothing. */
"use strict";

(async () => {
  const find = (id) => document.getElementById(id);
  const found = { errors: [], programs: {}, at: {} };
  window.addEventListener("error", (event) => found.errors.push(event.message));
  const picture = find("thinned");
  picture.setPointerCapture = () => {}; // there is no finger that it could capture

  const at = () => Number(find("at").value);
  const note = (name) => { found.at[name] = at(); };
  const program = (name) => { found.programs[name] = find("program").textContent; };
  const press = (key, where = document.body) =>
    where.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const choose = (id, value, kind = "change") => {
    find(id).value = value;
    find(id).dispatchEvent(new Event(kind, { bubbles: true }));
  };
  const wait = (time) => new Promise((resolve) => setTimeout(resolve, time));

  function steps() {
    note("start");
    for (const id of ["step", "step", "step"]) find(id).click();
    note("three steps");
    found.decision = find("decision").textContent;
    find("back").click();
    note("back");
    press("ArrowRight");
    note("right arrow");
    press("ArrowLeft");
    note("left arrow");
    press("B");
    note("end of the bucket");
    press("Home");
    note("home");
    press("End");
    note("end");
    found.last = [find("thinned-mmd").textContent, find("random-mmd").textContent];
    choose("at", 5, "input");
    note("slider");
    press("ArrowRight", find("at")); // a slider has its own arrows
    note("arrow in a slider");
  }

  async function playing() {
    find("speed").value = 400;
    press("Home");
    press(" ");
    await wait(1000); // steps at 0, 400 and 800
    note("playing");
    found.live = find("decision").getAttribute("aria-live");
    press(" ");
    await wait(1000);
    note("paused");
    find("end").click();
    find("play").click(); // from the start again
    await wait(100);
    note("played again");
    find("reset").click();
    await wait(1000);
    note("reset");
  }

  /* The first point goes to the middle of the right half; x and y are shares of the picture. */
  function dragging() {
    choose("set", "ring");
    choose("n", "32");
    program("ring");
    const box = picture.getBoundingClientRect();
    const send = (kind, target, x, y) => target.dispatchEvent(new PointerEvent(kind, {
      pointerId: 7, bubbles: true,
      clientX: box.left + x * box.width, clientY: box.top + y * box.height,
    }));
    const [x, y] = experiment.pointSet("ring", 32, 2, true)[0];
    const last = [...picture.querySelectorAll(".grab")].at(-1); // nodes lie over each other
    send("pointerdown", last, (x + 3) / 6, (3 - y) / 6);
    send("pointermove", picture, 0.75, 0.5);
    send("pointerup", picture, 0.75, 0.5);
    send("pointermove", picture, 0.1, 0.1); // nothing is held any more
    program("dragged");
    press("n", picture);
    press("ArrowUp", picture);
    program("moved by a key");
    found.point = find("point").textContent;
    found.touches = [last, picture].map((target) => { // a finger scrolls the page beside points only
      const event = new Event("touchstart", { bubbles: true, cancelable: true });
      target.dispatchEvent(event);
      return event.defaultPrevented;
    });
    found.linked = !find("link").hidden;
  }

  async function settings() {
    program("start");
    choose("bandwidth", -6, "input");
    program("bandwidth");
    choose("delta", "0.01");
    program("delta");
    choose("seed", "77");
    program("seed");
    choose("set", "line-mixture");
    program("set");
    choose("order", "sorted");
    program("order");
    choose("n", "256");
    choose("keep", "16");
    program("tree");
    found.buckets = find("tree").querySelectorAll(".bucket").length;
    find("new").click();
    program("new points");
    await wait(300);
    found.seeds = find("errors").querySelectorAll(".one").length;
    found.link = find("link").getAttribute("href");
  }

  /* The page in a frame as wide as a phone, which tells its height and takes a theme. */
  async function framed() {
    const frame = document.createElement("iframe");
    frame.src = "index.html?set=ring&n=128&keep=16&step=30";
    frame.style = "width: 390px; height: 800px; border: 0";
    window.addEventListener("message", ({ data }) => {
      found.height = data.exploreHeight;
    });
    document.body.append(frame);
    await new Promise((resolve) => frame.addEventListener("load", resolve));
    const page = frame.contentDocument.documentElement;
    const body = page.querySelector("body");
    const background = () => frame.contentWindow.getComputedStyle(body).backgroundColor;
    found.backgrounds = [];
    for (const theme of ["light", "dark"]) {
      frame.contentWindow.postMessage({ exploreTheme: theme }, "*");
      await wait(50);
      found.backgrounds.push(background());
    }
    found.widths = [page.scrollWidth, frame.contentWindow.innerWidth];
    found.scrolls = page.querySelector("main").offsetHeight;
    found.step = page.querySelector("#at").value;
    frame.remove();
  }

  steps();
  await playing();
  await settings();
  dragging();
  await framed();
  found.choices = choices(thinformer, cases);
  const output = document.createElement("pre");
  output.id = "found";
  output.textContent = JSON.stringify(found);
  document.body.append(output);
})();
