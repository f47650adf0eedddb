"use strict";
(() => {
  // Okabe and Ito's palette, which the colour-blind tell apart; the second of each pair is for a dark page.
  const COLOURS = [
    ["#0072b2", "#56b4e9"], ["#d55e00", "#ff8a4c"], ["#009e73", "#2fd3a3"], ["#b0589a", "#e29bce"],
    ["#8a6d00", "#f0e442"], ["#4b4b4b", "#c4c4c4"], ["#7a3b00", "#d9a066"], ["#3f51b5", "#9fa8ff"],
  ];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const drawn = [];
  let printing = false;
  let library = null;

  async function unpacked(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  async function load() {
    const script = document.createElement("script");
    script.textContent = await unpacked(document.getElementById("library").textContent);
    document.head.append(script);
    return window.Plotly;
  }

  function element(name, words = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(words)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function number(value) {
    if (value === null || value === undefined) return "none";
    return Number.isInteger(value) ? value.toLocaleString("en") : value.toPrecision(3).replace(/\.?0+$/, "");
  }

  // A line's name without what its dash says already: the same thing has the same colour on each kernel.
  function thing(name) {
    return name.replace(/ (read|write|p50|p99|file|shmem|anon|io|memory)\b/g, (word) => (/p50|p99/.test(word) ? word : ""));
  }

  function theme() {
    const night = dark.matches && !printing;
    return { night, ink: night ? "#e4e8ec" : "#1b1f24", rule: night ? "#363e47" : "#d5dae0", soft: night ? "#a3adb8" : "#57606a",
      paper: night ? "#1c2127" : "#ffffff" };
  }

  function layout(plot, side) {
    const look = theme();
    const axis = { gridcolor: look.rule, linecolor: look.rule, zeroline: false, tickfont: { color: look.soft }, automargin: true, fixedrange: true };
    // Two columns of A4, or one.
    const paper = printing ? { width: plot.sides.length > 1 ? 325 : 650 } : { autosize: true };
    return {
      ...paper,
      height: 265 + 19 * Math.ceil(side.lines.length / 2),
      margin: { l: 52, r: 12, t: 12, b: 40 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: look.ink },
      xaxis: { ...axis, title: { text: "seconds since sampling began", font: { size: 11, color: look.soft } },
        range: [0, plot.end * 1.02 || 1], hoverformat: ".2f" },
      yaxis: { ...axis, title: { text: plot.unit, font: { size: 11, color: look.soft } }, range: [0, plot.most * 1.08 || 1], rangemode: "tozero" },
      hovermode: "x unified", hoverdistance: -1,
      hoverlabel: { bgcolor: look.paper, bordercolor: look.rule, font: { color: look.ink }, namelength: -1 },
      legend: { orientation: "h", x: 0, y: -0.36, yanchor: "top", font: { size: 11 } },
      shapes: side.marks.map(([x]) => (
        { type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { color: look.soft, width: 1, dash: "dot" } })),
    };
  }

  function traces(plot, side, order) {
    const night = theme().night ? 1 : 0;
    const found = side.lines.map((line) => ({
      type: "scatter", mode: side.x.length > 60 ? "lines" : "lines+markers", name: line.name, x: side.x, y: line.y,
      line: { color: COLOURS[order.indexOf(thing(line.name)) % COLOURS.length][night], width: 1.8, dash: line.dash || "solid" },
      marker: { size: 4, symbol: line.dash ? "diamond-open" : "circle" },
      hovertemplate: `%{y:.4~g} ${plot.unit}`,
    }));
    if (side.marks.length) {
      found.push({ type: "scatter", mode: "markers", name: "action of the timeline", x: side.marks.map(([x]) => x),
        y: side.marks.map(() => plot.most * 1.03 || 0.95), text: side.marks.map(([, text]) => text.slice(0, 120)),
        marker: { symbol: "triangle-down", size: 10, color: theme().soft }, hovertemplate: "%{text}" });
    }
    if (side.kills.length) {
      found.push({ type: "scatter", mode: "markers", name: "oom_kill", x: side.kills.map(([x]) => x), y: side.kills.map(() => 0),
        text: side.kills.map(([, group, count]) => `${count} killed in ${group}`), cliponaxis: false,
        marker: { symbol: "x", size: 10, color: night ? "#ff9e8c" : "#a3210f" }, hovertemplate: "%{text}" });
    }
    // Names come from a guest: what plotly reads in them as markup is shown as it is.
    for (const one of found) {
      one.name = plain(one.name);
      if (one.text) one.text = one.text.map(plain);
    }
    return found;
  }

  function plain(text) {
    return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/\$/g, "&#36;").replace(/%\{/g, "&#37;{");
  }

  function peaks(plot, side) {
    const best = side.lines.map((line) => [Math.max(...line.y.filter((value) => value !== null)), line.name]);
    best.sort((one, other) => other[0] - one[0]);
    const kills = side.kills.reduce((sum, kill) => sum + kill[2], 0);
    const words = best.slice(0, 3).map(([most, name]) => `${name} up to ${number(most)} ${plot.unit}`);
    if (best.length > 3 || side.left_out) words.push(`and ${Math.max(0, best.length - 3) + side.left_out} more lines`);
    if (kills) words.push(`${kills} oom_kill`);
    if (side.marks.length) words.push(side.marks.length === 1 ? "1 action of the timeline" : `${side.marks.length} actions of the timeline`);
    return `${side.side}: ${words.join(", ") || "nothing"}.`;
  }

  function table(plot) {
    const whole = element("div", { class: "table-of-plot", tabindex: "0", role: "region", "aria-label": `${plot.title} as a table` });
    for (const side of plot.sides.filter((one) => one.lines.length)) {
      const head = element("tr", {}, element("th", { scope: "col", class: "number" }, "seconds"));
      for (const line of side.lines) head.append(element("th", { scope: "col", class: "number" }, line.name));
      const body = element("tbody");
      side.x.forEach((x, row) => {
        const cells = element("tr", {}, element("th", { scope: "row", class: "number" }, x.toFixed(1)));
        for (const line of side.lines) cells.append(element("td", { class: "number" }, number(line.y[row])));
        body.append(cells);
      });
      const caption = element("caption", {}, `${plot.title} in ${plot.unit} on ${side.side}`);
      whole.append(element("table", {}, caption, element("thead", {}, head), body));
    }
    return whole;
  }

  // Left and right go through the moments of a plot, as a mouse does.
  function steer(box, plot, side) {
    let at = -1;
    box.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || !side.x.length) return;
      event.preventDefault();
      at = Math.min(side.x.length - 1, Math.max(0, at + step));
      window.Plotly.Fx.hover(box, side.lines.map((line, curve) => ({ curveNumber: curve, pointNumber: at })));
      const values = side.lines.map((line) => `${line.name} ${number(line.y[at])}`).join(", ");
      document.getElementById("spoken").textContent = `${side.x[at].toFixed(1)} seconds: ${values} ${plot.unit}`;
    });
    box.addEventListener("blur", () => window.Plotly.Fx.unhover(box));
  }

  async function draw(container) {
    if (container.dataset.state) return container.done;
    container.dataset.state = "drawing";
    container.done = (async () => {
      const source = container.querySelector(".data");
      const plots = JSON.parse(await unpacked(source.textContent));
      library ??= load();
      await library;
      container.querySelector(".waiting").remove();
      for (const plot of plots) container.append(await figure(plot));
      container.dataset.state = "drawn";
    })();
    return container.done;
  }

  async function figure(plot) {
    const said = plot.sides.map((side) => element("span", { class: "peaks" }, peaks(plot, side)));
    const caption = element("figcaption", {}, element("strong", {}, `${plot.title}, ${plot.unit}`), ...said);
    const pair = element("div", { class: "pair" });
    const order = [...new Set(plot.sides.flatMap((side) => side.lines.map((line) => thing(line.name))))];
    const boxes = [];
    for (const side of plot.sides) {
      const box = element("div", { class: "plot", tabindex: "0", role: "img",
        "aria-label": `${plot.title} on ${side.side}. ${peaks(plot, side)} Left and right arrow keys read its values.` });
      const whole = element("div", {}, element("h4", {}, side.side));
      if (side.lines.length) {
        whole.append(box);
        boxes.push([box, side]);
      } else {
        whole.append(element("p", { class: "empty" }, "Nothing was counted."));
      }
      pair.append(whole);
    }
    const more = element("details", { class: "as-table" }, element("summary", {}, "The same as a table"));
    more.addEventListener("toggle", () => more.children.length > 1 || more.append(table(plot)), { once: true });
    const made = element("figure", {}, caption, pair, more);
    requestAnimationFrame(() => boxes.forEach(([box, side]) => {
      const again = () => window.Plotly.react(box, traces(plot, side, order), layout(plot, side), { displayModeBar: false, responsive: true });
      again();
      drawn.push(again);
      steer(box, plot, side);
    }));
    return made;
  }

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
  }, { rootMargin: "300px" });
  document.querySelectorAll(".plots").forEach((container) => watcher.observe(container));

  // What is open will be read, and what is short may be printed: it is drawn while there is nothing else to do, what is open first.
  const MOST_PRINTED = 60;
  const short = document.querySelectorAll("details.case:not([open])").length <= MOST_PRINTED;
  const later = [...document.querySelectorAll("details.case[open] .plots"), ...(short ? document.querySelectorAll(".plots") : [])];
  const idle = window.requestIdleCallback || ((work) => setTimeout(work, 200));
  const next = () => later.length && draw(later.shift()).then(() => idle(next));
  idle(next);

  // What was drawn while its case was closed had no width.
  document.addEventListener("toggle", (event) => {
    if (event.target.open && !printing) event.target.querySelectorAll(".plot.js-plotly-plot").forEach((box) => window.Plotly.Plots.resize(box));
  }, true);

  function show(hash) {
    const target = hash.length > 1 && document.getElementById(decodeURIComponent(hash.slice(1)));
    if (target && target.matches("details")) target.open = true;
  }
  addEventListener("hashchange", () => show(location.hash));
  show(location.hash);

  dark.addEventListener("change", () => drawn.forEach((again) => again()));

  // On paper everything that is short is open, and plots are dark on white.
  const opened = [];
  addEventListener("beforeprint", () => {
    printing = true;
    if (short) for (const one of document.querySelectorAll("details.case:not([open])")) { one.open = true; opened.push(one); }
    drawn.forEach((again) => again());
  });
  addEventListener("afterprint", () => {
    printing = false;
    opened.splice(0).forEach((one) => { one.open = false; });
    drawn.forEach((again) => again());
  });

  const filter = document.getElementById("filter");
  if (filter) {
    const [name, verdict, count] = ["filter-name", "filter-verdict", "filter-count"].map((id) => document.getElementById(id));
    const cases = [...document.querySelectorAll("details.case")];
    const rows = new Map([...document.querySelectorAll("tr[data-case]")].map((row) => [row.dataset.case, row]));
    const apply = () => {
      let shown = 0;
      for (const one of cases) {
        const fits = one.dataset.name.includes(name.value.trim()) && (!verdict.value || one.dataset.verdict === verdict.value);
        one.hidden = rows.get(one.id).hidden = !fits;
        shown += fits;
      }
      count.textContent = `${shown} of ${cases.length}`;
    };
    filter.hidden = false;
    filter.addEventListener("input", apply);
    filter.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }
})();
