"use strict";
/* The page's behaviour. Strings of the data become text nodes and nothing else; a pair is drawn when it comes near. */
(() => {
  const byId = id => document.getElementById(id);
  const index = JSON.parse(byId("index").textContent);
  const main = byId("pairs"), panel = byId("panel"), help = byId("help");
  const articles = index.pairs.map((_, i) => byId(`pair-${i}`));
  const SVG = "http://www.w3.org/2000/svg";
  const NAMES = { 0x00: "NUL", 0x0d: "CR", 0x1b: "ESC", 0x7f: "DEL", 0xad: "SHY", 0x61c: "ALM", 0x200b: "ZWSP", 0x200c: "ZWNJ",
    0x200d: "ZWJ", 0x200e: "LRM", 0x200f: "RLM", 0x202a: "LRE", 0x202b: "RLE", 0x202c: "PDF", 0x202d: "LRO", 0x202e: "RLO",
    0x2066: "LRI", 0x2067: "RLI", 0x2068: "FSI", 0x2069: "PDI", 0xfeff: "BOM" };
  const HIDDEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\p{Co}]/u;
  let shown = index.quantities[0];
  let active = null;  // { pair, side, token, span }

  const make = (name, className, ...content) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...content);
    return made;
  };
  const draw = (parent, name, attributes, text) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.append(text);
    parent.append(made);
    return made;
  };
  const number = x => {
    if (x === null || x === undefined) return "–";
    const small = x !== 0 && (Math.abs(x) < 1e-3 || Math.abs(x) >= 1e5);
    return (small ? x.toExponential(2) : x.toFixed(4)).replaceAll("-", "−");
  };

  /* Text with marks for what has no shape; the marks are no part of the text, the characters stay in it. */
  const markOf = character => {
    const code = character.codePointAt(0);
    if (character === "\n") return "↵";
    if (character === "\t") return "→   ";
    return `⟨${NAMES[code] ?? `U+${code.toString(16).toUpperCase().padStart(4, "0")}`}⟩`;
  };
  const spell = (parent, text) => {
    let plain = "";
    for (const character of text) {
      if (!HIDDEN.test(character)) { plain += character; continue; }
      const mark = make("i", "c", character);
      mark.dataset.mark = markOf(character);
      parent.append(plain, mark);
      plain = "";
    }
    parent.append(plain);
    return parent;
  };

  /* Numbers by token. */
  const pairs = [];  // read when they are needed
  const pairAt = i => pairs[i] ??= JSON.parse(byId(`data-${i}`).textContent);
  const minus = (a, b) => a === null || b === null ? null : a - b;
  const difference = side => side.logp.map((x, t) => minus(x, side.ref[t]));
  const series = (side, key) => ({
    psi: () => side.psi,
    value: () => side.value.slice(1).map(x => minus(x, side.value[0])),
    logp: () => side.logp,
    diff: () => difference(side),
    reward: () => side.reward.slice(1),
    implicit: () => difference(side).map(x => x === null ? null : index.beta * x),
  })[key]();
  const sums = numbers => {
    let total = 0;
    return [0, ...numbers.map(x => total += x ?? 0)];
  };

  const shade = x => {
    if (!x) return "p0";
    const step = Math.min(index.steps, Math.ceil(Math.abs(x) / shown.limit * index.steps));
    return (x > 0 ? "p" : "n") + step;
  };
  const paint = (side, spans) => {
    const numbers = series(side, shown.key);
    const best = numbers.map((x, t) => [x, t]).filter(([x]) => x !== null).sort(([a, s], [b, t]) => b - a || s - t).slice(0, 3);
    const special = new Set(side.special);
    spans.forEach((span, t) => {
      span.className = `t ${shade(numbers[t])}${special.has(t) ? " s" : ""}`;
      delete span.dataset.rank;
    });
    best.forEach(([, t], rank) => { spans[t].dataset.rank = rank + 1; });
  };

  /* Drawings. */
  const ticks = (low, high, count) => {
    const rough = (high - low) / count, unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(k => k * unit).find(k => k >= rough);
    const first = Math.ceil(low / step), found = [];
    for (let k = first; k * step <= high + step * 1e-9; k++) found.push(k * step);
    return found.map(x => [x, Math.abs(step) >= 1 ? x.toFixed(0) : x.toFixed(Math.min(6, Math.ceil(-Math.log10(step))))]);
  };
  const range = numbers => {
    const finite = numbers.filter(x => x !== null && Number.isFinite(x));
    const low = finite.reduce((a, b) => Math.min(a, b), Infinity), high = finite.reduce((a, b) => Math.max(a, b), -Infinity);
    if (!finite.length) return [-1, 1];
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    return [low - room, high + room];
  };
  const axes = (label, xs, ys, xName) => {
    const width = 460, height = 190, left = 52, right = 8, top = 8, bottom = 34;
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", label);
    const x = v => left + (v - xs[0]) / (xs[1] - xs[0]) * (width - left - right);
    const y = v => height - bottom - (v - ys[0]) / (ys[1] - ys[0]) * (height - top - bottom);
    draw(svg, "path", { class: "axis", d: `M${left} ${top}V${height - bottom}H${width - right}` });
    for (const [v, text] of ticks(...ys, 5)) {
      draw(svg, "path", { class: v === 0 ? "zero" : "axis", d: `M${left - 4} ${y(v)}H${v === 0 ? width - right : left}` });
      draw(svg, "text", { x: left - 7, y: y(v) + 4, "text-anchor": "end" }, text.replace("-", "−"));
    }
    for (const [v, text] of ticks(...xs, 6)) {
      draw(svg, "path", { class: "axis", d: `M${x(v)} ${height - bottom}v4` });
      draw(svg, "text", { x: x(v), y: height - bottom + 16, "text-anchor": "middle" }, text.replace("-", "−"));
    }
    draw(svg, "text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, xName);
    return { svg, x, y, top, bottom: height - bottom };
  };
  const curves = (title, both) => {
    const longest = Math.max(...both.map(numbers => numbers.length - 1), 1);
    const plot = axes(`${title}, chosen and rejected response`, [0, longest], range(both.flat()), "tokens of the response read");
    both.forEach((numbers, side) => {
      const points = numbers.map((v, t) => v === null ? "" : `${plot.x(t).toFixed(1)} ${plot.y(v).toFixed(1)}`).filter(Boolean);
      draw(plot.svg, "path", { class: side ? "rejected" : "chosen", d: `M${points.join("L")}` });
    });
    const line = draw(plot.svg, "path", { class: "marker", d: "", visibility: "hidden" });
    const dots = both.map((_, side) => draw(plot.svg, "circle", { class: `marker ${side ? "rejected" : "chosen"}`, r: 4, visibility: "hidden" }));
    const move = token => {
      line.setAttribute("visibility", token === null ? "hidden" : "visible");
      if (token !== null) line.setAttribute("d", `M${plot.x(token + 1)} ${plot.top}V${plot.bottom}`);
      dots.forEach((dot, side) => {
        const v = token === null ? null : both[side][token + 1] ?? null;
        dot.setAttribute("visibility", v === null ? "hidden" : "visible");
        if (v !== null) { dot.setAttribute("cx", plot.x(token + 1)); dot.setAttribute("cy", plot.y(v)); }
      });
    };
    const figure = make("figure", "", make("figcaption", "", make("b", "", title), " — chosen solid, rejected dashed"), plot.svg);
    return { figure, move };
  };
  const running = side => ({ value: () => sums(side.psi), reward: () => side.reward })[shown.key]?.() ?? sums(series(side, shown.key));
  const drawPlots = i => {
    const { sides } = pairAt(i), made = [];
    if (sides[0].value) made.push(curves(`value V(sₜ), ${index.unit}`, sides.map(side => side.value)));
    const of = shown.key === "value" ? index.quantities[0] : shown;
    const name = of.key === "reward" ? of.name : `Σ ${of.name}, so far`;
    made.push(curves(`${name}, ${of.unit}`, sides.map(running)));
    articles[i].plots = made;
    articles[i].querySelector(".plots").replaceChildren(...made.map(plot => plot.figure));
    made.forEach(plot => plot.move(active && active.pair === i ? active.token : null));
  };
  const drawScatter = () => {
    const points = index.pairs.map((pair, i) => ({ ...pair, i }));
    const every = [...points.map(p => [p.margin, p.longer]), ...index.others];
    const plot = axes("Shaping margins by length difference", range([0, ...every.map(p => p[1])]), range([0, ...every.map(p => p[0])]),
      "chosen response is longer by … tokens");
    for (const [margin, longer] of index.others)
      if (margin !== null) draw(plot.svg, "circle", { class: "other", cx: plot.x(longer), cy: plot.y(margin), r: 2 });
    for (const { margin, longer, agrees, i } of points) {
      if (margin === null) continue;
      const link = draw(plot.svg, "a", { href: `#pair-${i}`, tabindex: "-1" });
      draw(link, "title", {}, `${articles[i].querySelector("h2").textContent.trim()}: ${number(margin)}`);
      const [x, y] = [plot.x(longer), plot.y(margin)];
      if (agrees === "disagrees") draw(link, "path", { class: `dot ${agrees}`, d: `M${x - 4} ${y - 4}l8 8m0-8l-8 8` });
      else draw(link, "circle", { class: `dot ${agrees}`, cx: x, cy: y, r: 4 });
    }
    byId("scatter").append(plot.svg, make("p", "source key", "● teacher agrees with the label   × disagrees" +
      (index.others.length ? "   small dots: measured, not shown" : "")));
  };

  /* A pair. */
  const drawPrompt = (place, turns) => {
    const size = turns.reduce((sum, [, text]) => sum + text.length, 0);
    const details = make("details", "", make("summary", "", `Prompt, ${turns.length} ${turns.length === 1 ? "turn" : "turns"}`));
    details.open = size < 1500;
    for (const [role, text] of turns) {
      const said = spell(make("p", "text"), text);
      said.dir = "auto";
      details.append(make("div", "turn", make("b", "", role), said));
    }
    place.replaceChildren(details);
  };
  const drawSide = (side, name, i, s) => {
    const text = make("p", "text");
    text.dir = "auto";
    text.setAttribute("role", "listbox");
    text.setAttribute("aria-label", `${name} response, tokens`);
    const spans = side.text.map((piece, t) => {
      const span = spell(make("span", "t"), piece);
      if (side.bytes[t] !== undefined) span.append(make("i", "c"));
      if (side.bytes[t] !== undefined) span.lastChild.dataset.mark = `⟨${side.bytes[t]}⟩`;
      span.tabIndex = t ? -1 : 0;
      span.setAttribute("role", "option");
      span.setAttribute("aria-selected", "false");
      Object.assign(span, { pair: i, side: s, token: t });
      return span;
    });
    text.append(...spans);
    paint(side, spans);
    const caption = make("h3", "", `${name}, ${side.ids.length} tokens`);
    return { spans, box: make("section", `side ${name}`, caption, text) };
  };
  const render = i => {
    const article = articles[i];
    if (article.sides) return;
    const pair = pairAt(i);
    drawPrompt(article.querySelector(".prompt"), pair.turns);
    article.sides = pair.sides.map((side, s) => drawSide(side, s ? "rejected" : "chosen", i, s));
    article.querySelector(".body").replaceChildren(
      make("div", "responses", ...article.sides.map(side => side.box)), make("div", "plots"));
    drawPlots(i);
  };

  /* The numbers of one token. */
  const rows = (side, t) => {
    const found = [["token", side.text[t] ? `“${side.text[t]}”` : `⟨${side.bytes[t]}⟩`, "wide-item"], ["id", side.ids[t]], ["position", `${t + 1} of ${side.ids.length}`],
      ["ψₜ", number(side.psi[t])], ["Σψ so far", number(sums(side.psi)[t + 1])]];
    if (side.value) found.push(["V(sₜ)", number(side.value[t])], ["V(sₜ₊₁)", number(side.value[t + 1])]);
    found.push(["log π", number(side.logp[t])]);
    if (side.ref) {
      const d = minus(side.logp[t], side.ref[t]);
      found.push(["log ref", number(side.ref[t])], ["log π − log ref", number(d)], ["β (log π − log ref)", number(d === null ? null : index.beta * d)]);
    }
    if (side.reward) found.push(["running reward", number(side.reward[t + 1])]);
    if (side.top) found.push(["likeliest at sₜ", side.top[t].map((id, k) => `“${index.words[id]}” ${side.p[t][k].toPrecision(3)}`).join("   "), "widest"]);
    return found;
  };
  const activate = span => {
    if (active?.span === span) return;
    if (active) {
      active.span.classList.remove("on");
      active.span.setAttribute("aria-selected", "false");
      if (!span || active.pair !== span.pair) articles[active.pair].plots.forEach(plot => plot.move(null));
    }
    active = span && { pair: span.pair, side: span.side, token: span.token, span };
    panel.hidden = !span;
    if (!span) return;
    span.classList.add("on");
    span.setAttribute("aria-selected", "true");
    articles[span.pair].sides[span.side].spans.forEach(other => { other.tabIndex = other === span ? 0 : -1; });
    const items = rows(pairAt(span.pair).sides[span.side], span.token).map(([name, value, width]) => {
      const said = make("dd");
      said.append(spell(make("bdi"), String(value)));
      return make("div", width, make("dt", "", name), said);
    });
    panel.querySelector("dl").replaceChildren(...items);
    articles[span.pair].plots.forEach(plot => plot.move(span.token));
  };
  const tokenOf = event => event.target.closest?.("[role=option]");
  for (const kind of ["pointerover", "focusin", "click"])
    main.addEventListener(kind, event => { const span = tokenOf(event); if (span) activate(span); });
  panel.querySelector("button").addEventListener("click", () => activate(null));

  /* What is shown. */
  const choose = key => {
    shown = index.quantities.find(quantity => quantity.key === key);
    const end = `${Number(shown.limit.toPrecision(3))}`;
    byId("low").textContent = `−${end}`;
    byId("high").textContent = end;
    byId("scale").setAttribute("aria-label", `Colours from minus ${end} (orange) over 0 to ${end} (blue), ${shown.unit}`);
    byId("legend").textContent = `${shown.long}, ${shown.unit} · colours end at the ${index.percentile}th percentile of its ` +
      "size · bar above: positive, below: negative · 1 2 3: the three largest of a response";
    articles.forEach((article, i) => {
      if (!article.sides) return;
      article.sides.forEach(({ spans }, s) => paint(pairAt(i).sides[s], spans));
      drawPlots(i);
    });
    active?.span.classList.add("on");
  };
  byId("switch").addEventListener("change", event => choose(event.target.value));

  const texts = [];
  const textOf = i => texts[i] ??= [...pairAt(i).turns.map(([, text]) => text), ...pairAt(i).sides.map(side => side.text.join("")),
    articles[i].querySelector("h2").textContent].join("\n").toLowerCase();
  const controls = Object.fromEntries(["search", "verdict", "least", "most", "sort"].map(id => [id, byId(id)]));
  const filter = () => {
    const [wanted, verdict] = [controls.search.value.toLowerCase(), controls.verdict.value];
    const [least, most] = ["least", "most"].map(id => controls[id].value === "" ? null : Number(controls[id].value));
    let left = 0;
    index.pairs.forEach((pair, i) => {
      const fits = (!verdict || pair.agrees === verdict) && (least === null || pair.margin >= least) &&
        (most === null || pair.margin <= most) && (!wanted || textOf(i).includes(wanted));
      articles[i].hidden = !fits;
      left += fits;
    });
    byId("count").textContent = `${left} of ${index.pairs.length} pairs`;
    byId("none").hidden = left > 0;
    if (active && articles[active.pair].hidden) activate(null);
  };
  const SORTS = { given: (_, i) => i, margin: p => -p.margin, against: p => p.margin, size: p => -Math.abs(p.margin), longer: p => -p.longer };
  const sort = () => {
    const key = index.pairs.map(SORTS[controls.sort.value]);
    main.prepend(...articles.map((article, i) => [key[i], i, article]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).map(each => each[2]));
  };
  for (const [id, control] of Object.entries(controls)) control.addEventListener("input", id === "sort" ? sort : filter);
  byId("clear").addEventListener("click", () => {
    for (const [id, control] of Object.entries(controls)) control.value = id === "sort" ? "given" : "";
    sort();
    filter();
  });

  /* Keys. */
  const goTo = step => {
    const left = [...main.querySelectorAll(".pair:not([hidden])")];
    const from = document.activeElement.closest?.(".pair") ?? left.find(article => article.getBoundingClientRect().bottom > 160);
    const here = left.indexOf(from), inside = from?.contains(document.activeElement);
    const next = left[Math.max(0, Math.min(left.length - 1, inside ? here + step : step > 0 ? here : here - 1))];
    if (!next) return;
    render(articles.indexOf(next));
    const title = next.querySelector("h2");
    title.focus({ preventScroll: true });
    title.scrollIntoView({ block: "start" });
  };
  const goToToken = (span, key) => {
    const { spans } = articles[span.pair].sides[span.side];
    const to = { ArrowRight: span.token + 1, ArrowLeft: span.token - 1, Home: 0, End: spans.length - 1 }[key];
    spans[Math.max(0, Math.min(spans.length - 1, to))].focus();
  };
  document.addEventListener("keydown", event => {
    const { key, target } = event, token = target.closest?.("[role=option]");
    if (key === "Escape") { activate(null); return; }
    if (event.ctrlKey || event.metaKey || event.altKey || help.open || target.matches("input:not([type=radio]), select, textarea")) return;
    const arrows = token || !target.matches("input");
    if (token && ["ArrowRight", "ArrowLeft", "Home", "End"].includes(key)) goToToken(token, key);
    else if (key === "j" || (arrows && key === "ArrowDown" && target.closest("main"))) goTo(1);
    else if (key === "k" || (arrows && key === "ArrowUp" && target.closest("main"))) goTo(-1);
    else if (key === "/") { byId("filters").open = true; controls.search.focus(); }
    else if (key === "?") help.showModal();
    else if (index.quantities[Number(key) - 1]) { const box = document.querySelectorAll("#switch input")[Number(key) - 1]; box.checked = true; choose(box.value); }
    else return;
    event.preventDefault();
  });
  byId("help-button").addEventListener("click", () => help.showModal());
  byId("help-close").addEventListener("click", () => help.close());

  const near = new IntersectionObserver(entries => entries.filter(e => e.isIntersecting).forEach(e => render(articles.indexOf(e.target))),
    { rootMargin: "800px 0px" });
  articles.forEach(article => near.observe(article));
  addEventListener("beforeprint", () => articles.forEach((_, i) => render(i)));
  new ResizeObserver(([{ target }]) => document.documentElement.style.setProperty("--bar", `${target.offsetHeight}px`)).observe(byId("bar"));
  if (matchMedia("(max-width: 48rem)").matches) byId("filters").open = false;
  drawScatter();
  choose(shown.key);
  filter();
})();
