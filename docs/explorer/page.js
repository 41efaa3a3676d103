// What the reader sees. Two sources give the same answers: the stored sentences, and the model itself
// once its weights are there.

const LAYERS = 30, HEADS = 9, MOST = 96; // MOST: tokens that the page shows
const WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf";
const $ = (id) => document.getElementById(id);
const STORED = JSON.parse($("stored").textContent);

/** Make an element: el("p", {class: "quiet"}, "text", child). */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** A token as it can be seen: spaces and newlines as signs. */
const shown = (word) => /^ +$/.test(word) ? word.replaceAll(" ", "␣") : word.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";
const number = (x) => Math.abs(x) >= 1000 ? x.toFixed(0) : Math.abs(x) >= 0.01 || x === 0 ? String(+x.toPrecision(3)) : x.toExponential(1);
const percent = (p) => `${(100 * p).toFixed(1)} %`;
const partName = (part) => part.head === "stream" ? `The stream after block ${part.layer}`
  : part.head === "mlp" ? `Block ${part.layer}, MLP` : `Block ${part.layer}, head ${part.head}`;
const key = ({ layer, head }) => `${layer}.${head}`;

// The sources

/** A sentence that was computed beforehand, as the model would answer. Percent become shares. */
function storedSource(sentence) {
  const T = sentence.words.length, pair = ([word, p]) => ({ word, p: p / 100 });
  return {
    live: false, words: sentence.words,
    weight: (layer, head, t, s) => sentence.maps[layer][head][t * (t + 1) / 2 + s] / 100,
    stream: sentence.stream, wrote: sentence.wrote,
    async next(position, off) {
      const whole = sentence.next[position].map(pair);
      if (!off.size || position < T - 1) return { best: whole, before: null };
      const [five, first] = sentence.off[[...off][0]];
      const best = five.map((p, i) => ({ word: whole[i].word, p: p / 100 }));
      const before = whole.slice(0, 5).map(({ p }) => p);
      if (!best.some(({ word }) => word === first[0])) { best.push(pair(first)); before.push(null); }
      return { best, before };
    },
    lens: async (position) => sentence.lens[position].map((words) => words.map(pair)),
    effects: Object.fromEntries(Object.entries(sentence.off).map(([part, [[p]]]) =>
      [part, (p - sentence.next[T - 1][0][1]) / 100])),
  };
}

let ask = null; // the worker's, once there is one

/** The model's own numbers for a text. */
async function liveSource(text, chat, off) {
  let { ids, words } = await ask("tokens", { text, chat });
  const cut = ids.length > MOST;
  [ids, words] = [ids.slice(0, MOST), words.slice(0, MOST)];
  const { maps, stream, wrote } = await ask("read", { ids, off: [...off] });
  const T = ids.length;
  return {
    live: true, ids, words, cut, stream, wrote,
    weight: (layer, head, t, s) => maps[layer][(head * T + t) * T + s],
    next: (position) => ask("next", { position }),
    lens: (position) => ask("lens", { position }),
    effects: null,
  };
}

// What is shown at the moment

const state = {
  source: storedSource(STORED[0]), sentence: 0, text: "", chat: false, live: false,
  position: STORED[0].words.length - 1, off: new Set(), part: null, path: [], shows: "attention",
  version: 0, measured: null,
};

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

/** Paint numbers as squares, `width` in a row; `paint` gives [r, g, b] and a strength from 0 to 1. */
function squares(canvas, values, width, paint) {
  const height = Math.ceil(values.length / width);
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  values.forEach((value, i) => {
    const [shade, strength] = paint(value, i);
    image.data.set([...shade, Math.round(255 * Math.min(1, strength))], 4 * i);
  });
  context.putImageData(image, 0, 0);
}

/** A sheet of numbers, blue above zero and orange below; a tap or Enter picks one. */
function sheet(values, width, describe, pick) {
  const most = values.reduce((a, b) => Math.max(a, Math.abs(b)), 1e-30);
  const [plus, minus] = [rgb(colour("plus")), rgb(colour("minus"))], say = el("p", { class: "quiet", "aria-live": "polite" }, "Tap a square, or use the arrow keys.");
  const canvas = el("canvas", { class: "sheet", tabindex: 0, role: "img", "aria-label": "All of them as squares; the largest are listed below" });
  squares(canvas, Array.from(values), width, (v) => [v > 0 ? plus : minus, Math.sqrt(Math.abs(v) / most)]);
  let at = 0;
  const tell = () => { say.textContent = describe(at, values[at]); };
  const place = (event) => {
    const box = canvas.getBoundingClientRect(), rows = canvas.height;
    const x = Math.floor((event.clientX - box.left) / box.width * width), y = Math.floor((event.clientY - box.top) / box.height * rows);
    at = Math.max(0, Math.min(values.length - 1, y * width + x));
    tell();
  };
  canvas.addEventListener("pointermove", place);
  canvas.addEventListener("click", (event) => { place(event); pick?.(at); });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -width, ArrowDown: width }[event.key];
    if (step) at = Math.max(0, Math.min(values.length - 1, at + step));
    else if (event.key === "Enter") return pick?.(at);
    else return;
    event.preventDefault();
    tell();
  });
  return el("div", {}, canvas, say);
}

/** A bar from 0 to 1 of its track; with `middle`, from the centre to both sides. */
function track(share, { name = "attention", before = null, middle = false } = {}) {
  const bar = (part, kind, style = "") => el("i", { class: kind, style: middle
    ? `left:${part < 0 ? 50 + 50 * part : 50}%;width:${50 * Math.abs(part)}%;${style}`
    : `left:0;width:${100 * Math.min(1, part)}%;${style}` });
  const node = el("div", { class: "track" }, bar(share, "", `background:var(--${name})`));
  if (before !== null) node.append(bar(before, "before"));
  return node;
}

// Level one: the text, the whole model, and what comes next

function drawSentences() {
  $("sentences").replaceChildren(...STORED.map((sentence, i) => el("button", {
    "aria-pressed": String(state.live ? state.text === sentence.text : state.sentence === i),
    onclick: () => state.live ? setText(sentence.text) : choose(i),
  }, sentence.text)));
}

function drawTokens() {
  const { words, weight } = state.source, { part, position } = state;
  const tinted = part && Number.isInteger(part.head);
  const old = document.activeElement?.parentNode === $("tokens");
  $("tokens").replaceChildren(...words.map((word, s) => {
    const strength = tinted && s <= position ? weight(part.layer, part.head, position, s) : 0;
    const node = el("button", { role: "option", "aria-selected": String(s === position), tabindex: s === position ? 0 : -1,
      title: tinted && s <= position ? `${percent(strength)} of this head's attention` : `token ${s}`, onclick: () => moveTo(s) },
      el("span", {}, shown(word)));
    if (strength) node.prepend(el("i", { style: `opacity:${(0.75 * strength).toFixed(3)}` }));
    return node;
  }));
  if (old) $("tokens").children[position].focus();
  $("tokens-say").textContent = tinted
    ? `Shaded: where ${partName(part).toLowerCase()} looks from ${shown(words[position])}.`
    : `${words.length} tokens${state.source.cut ? `, the first ${MOST} of the text` : ""}. Tap one: everything below is what happens at that place.`;
}

$("tokens").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  moveTo(Math.max(0, Math.min(state.source.words.length - 1, state.position + step)));
});

const cells = new Map(); // "layer.head" -> its button

function buildGrid() {
  const head = (text, title) => el("span", { class: "head", role: "columnheader", title: title ?? text }, text);
  const row = (...children) => el("div", { role: "row" }, ...children);
  const cell = (layer, name, kind = "cell") => {
    const node = el("button", { class: kind, role: "gridcell", tabindex: -1, "aria-expanded": "false", onclick: () => open({ layer, head: name }) });
    cells.set(`${layer}.${name}`, node);
    return node;
  };
  const stream = (depth) => [cell(depth, "stream", "cell wide"),
    el("button", { class: "say", role: "gridcell", tabindex: -1, id: `lens-${depth}`, onclick: () => open({ layer: depth, head: "stream" }) })];
  $("grid").append(row(head(""), ...Array.from({ length: HEADS }, (_, h) => head(String(h), `head ${h}`)), head("MLP"), head("stream"), head("says", "What the head would say here: the logit lens")));
  const first = stream(0);
  first[0].style.gridColumn = "12";
  first[1].style.gridColumn = "13";
  $("grid").append(row(el("span", { class: "name", role: "rowheader", style: "grid-column: 1 / 12; text-align: right" }, "the embedding, before the first block"), ...first));
  for (let layer = 0; layer < LAYERS; layer++) {
    const heads = Array.from({ length: HEADS }, (_, h) => cell(layer, h));
    heads.forEach((node) => node.append(el("canvas")));
    $("grid").append(row(el("span", { class: "name", role: "rowheader" }, String(layer)), ...heads, cell(layer, "mlp", "cell wide"), ...stream(layer + 1)));
  }
  cells.get("0.0").tabIndex = 0;
}

$("grid").addEventListener("keydown", (event) => {
  const node = event.target.closest(".cell"), found = node && [...cells].find(([, cell]) => cell === node);
  if (!found) return;
  const [layer, head] = found[0].split("."), columns = [..."012345678", "mlp", "stream"];
  let y = +layer - (head === "stream" ? 1 : 0), x = columns.indexOf(head);
  if (event.key === "x" || event.key === "X") return head !== "stream" && toggle(found[0]);
  const move = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
  if (!move) return;
  event.preventDefault();
  [x, y] = [Math.max(0, Math.min(10, x + move[0])), Math.max(columns[x] === "stream" && !move[0] ? -1 : 0, Math.min(29, y + move[1]))];
  const next = cells.get(columns[x] === "stream" ? `${y + 1}.stream` : `${y}.${columns[x]}`);
  for (const other of cells.values()) other.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});

/** Sizes differ by a factor of thousands, so bars grow with their logarithm. */
const logShare = (size, most) => Math.log1p(10 * size) / Math.log1p(10 * most);

function drawGrid() {
  const { words, weight, stream, wrote } = state.source, { position, shows } = state, T = words.length;
  const effects = state.measured ?? state.source.effects, strongest = effects ? Math.max(...Object.values(effects).map(Math.abs), 1e-9) : 1;
  const [blue, plus, minus] = ["attention", "plus", "minus"].map((name) => rgb(colour(name)));
  const mostWritten = Math.max(...wrote.flat().map((sizes) => sizes[position])), mostStream = Math.max(...stream.map((sizes) => sizes[position]));
  for (const [name, node] of cells) {
    const [layer, head] = name.split("."), part = { layer: +layer, head: isNaN(head) ? head : +head };
    const opened = state.part && key(state.part) === name, off = state.off.has(name);
    node.setAttribute("aria-expanded", String(Boolean(opened)));
    node.classList.toggle("is-off", off);
    let said = partName(part);
    if (head === "stream") {
      const size = stream[layer][position];
      said += `, size ${number(size)}`;
      node.replaceChildren(el("i", { class: "bar", style: `width:${100 * logShare(size, mostStream)}%;background:var(--residual);opacity:.7` }));
    } else if (shows === "effect") {
      const effect = effects?.[name];
      if (effect !== undefined) said += `, without it ${effect > 0 ? "+" : ""}${(100 * effect).toFixed(1)} points`;
      const strength = effect === undefined ? 0 : Math.sqrt(Math.abs(effect) / strongest), shade = effect > 0 ? plus : minus;
      if (head === "mlp") node.replaceChildren(el("i", { class: "bar", style: `right:0;background:rgb(${shade});opacity:${strength}` }));
      else squares(node.firstChild, [strength], 1, () => [shade, strength]);
    } else if (head === "mlp") {
      const size = wrote[layer][1][position];
      said += `, writes a vector of size ${number(size)}`;
      node.replaceChildren(el("i", { class: "bar", style: `width:${100 * logShare(size, mostWritten)}%;background:var(--mlp)` }));
    } else {
      const values = [];
      for (let t = 0; t < T; t++) for (let s = 0; s < T; s++) values.push(s <= t ? weight(part.layer, part.head, t, s) : 0);
      squares(node.firstChild, values, T, (v) => [blue, Math.sqrt(v)]); // small ones must be seen
    }
    if (off) said += ", switched off";
    node.setAttribute("aria-label", said);
    node.title = said;
  }
  drawShows(effects, strongest);
}

function drawShows(effects, strongest) {
  const options = { attention: "where each head looks", effect: "what changes without it" };
  $("shows").replaceChildren(...Object.entries(options).map(([name, words]) => el("button", {
    role: "radio", "aria-checked": String(state.shows === name), onclick: () => { state.shows = name; drawGrid(); } }, words)));
  const say = $("shows-say"), last = state.source.words.length - 1;
  if (state.shows === "attention")
    say.replaceChildren(`Each small square is one head's attention: a row for each of the ${last + 1} tokens that look, a column for each that is looked at. Bars: the size of what the MLP writes, and of the stream (log scale).`);
  else if (!effects)
    say.replaceChildren("Switches off all 300 parts, one after the other. ", el("button", { onclick: measure }, "Measure"));
  else say.replaceChildren(`Orange: without this part the most probable next word becomes less probable; blue: more. The strongest moves it by ${(100 * strongest).toFixed(0)} points.`);
}

async function drawLens() {
  const mine = state.version, depths = await state.source.lens(state.position);
  if (mine !== state.version) return;
  state.lens = depths;
  depths.forEach((words, depth) => {
    const node = $(`lens-${depth}`);
    node.textContent = shown(words[0].word);
    node.title = words.map(({ word, p }) => `${shown(word)} ${percent(p)}`).join("\n");
    node.style.color = words[0].p >= 0.3 ? "var(--ink)" : "var(--quiet)";
    node.style.fontWeight = words[0].p >= 0.3 ? "600" : "400";
    node.setAttribute("aria-label", `After ${depth} blocks the head would say ${shown(words[0].word)}, ${percent(words[0].p)}`);
  });
}

async function drawNext() {
  const mine = state.version, { source, position, off } = state, { best, before } = await source.next(position, off);
  if (mine !== state.version) return;
  state.next = best;
  const most = Math.max(...best.map(({ p }) => p), ...(before ?? []));
  $("next-say").textContent = `after ${shown(source.words[position])}${source.live ? ". Tap a probability to see what it is made of." : ""}`;
  $("bars").replaceChildren(...best.map(({ word, p, id }, i) => {
    const was = before?.[i] ?? null, change = was === null ? null : 100 * (p - was);
    const amount = source.live ? el("button", { class: "link", onclick: () => follow([{ kind: "logit", t: position, i: id }]) }, percent(p)) : percent(p);
    const moved = change === null ? "" : el("small", { class: change > 0 ? "rise" : "fall" }, `${change > 0 ? "+" : "−"}${Math.abs(change).toFixed(1)}`);
    return el("li", {}, el("code", { title: word }, shown(word)), track(p / most, { before: was === null ? null : was / most }), el("span", { class: "amount" }, amount, moved));
  }));
  const parts = [...off].map((name) => { const [layer, head] = name.split("."); return `block ${layer} ${head === "mlp" ? "MLP" : `head ${head}`}`; });
  const note = source.live || !off.size ? "" : position < source.words.length - 1
    ? " Before the model is loaded, the difference is known at the last token only." : "";
  $("off").replaceChildren(...(off.size ? [`Switched off: ${parts.join(", ")}; the outline is the whole model.${note} `,
    el("button", { onclick: () => { state.off.clear(); refresh(); } }, "Switch all on")] : []));
}

/** Measure what each of the 300 parts is worth here; stops when something else is asked. */
async function measure() {
  const mine = state.version, id = state.next[0].id, p = state.next[0].p, found = {};
  for (let layer = LAYERS - 1; layer >= 0; layer--)
    for (const head of ["mlp", ...Array(HEADS).keys()]) {
      const without = await ask("without", { part: `${layer}.${head}`, position: state.position, id });
      if (mine !== state.version) return;
      found[`${layer}.${head}`] = without - p;
      if (head === HEADS - 1) { state.measured = { ...found }; drawGrid(); }
    }
}

// Level two: one part

function open(part) {
  state.part = state.part && key(state.part) === key(part) ? null : part;
  drawTokens();
  drawGrid();
  drawPart();
  if (state.part) { $("part-title").focus({ preventScroll: true }); $("part").scrollIntoView({ block: "nearest" }); }
}

const NOT_YET = "Load the model to see the numbers inside.";

async function drawPart() {
  const { part, source, position } = state;
  $("part").hidden = !part;
  if (!part) return;
  $("part-title").textContent = partName(part);
  const body = [], name = key(part), T = source.words.length;
  if (part.head !== "stream")
    body.push(el("div", { class: "row" }, el("button", { "aria-pressed": String(state.off.has(name)), onclick: () => toggle(name) },
      state.off.has(name) ? "Switch on again" : "Switch off"),
      el("button", { onclick: () => cells.get(name).scrollIntoView({ block: "center" }) }, "↑ where it stands")));
  if (Number.isInteger(part.head)) body.push(...headBody(part, T));
  else if (part.head === "mlp") body.push(...await mlpBody(part));
  else body.push(...await streamBody(part));
  if (state.part === part) $("part-body").replaceChildren(...body);
}

function headBody({ layer, head }, T) {
  const { words, weight, live } = state.source, t = state.position;
  const weights = Array.from({ length: t + 1 }, (_, s) => [s, weight(layer, head, t, s)]).sort((a, b) => b[1] - a[1]).slice(0, 8);
  const to = (s, from = t) => follow([{ kind: "weight", layer, h: head, t: from, s }]);
  const list = el("ol", { class: "terms" }, ...weights.map(([s, w]) => el("li", {}, el("code", {}, shown(words[s])), track(w),
    el("span", { class: "amount" }, live ? el("button", { class: "link", onclick: () => to(s) }, percent(w)) : `${Math.round(100 * w)} %`))));
  const map = el("canvas", { class: "map", role: "img", "aria-label": "The whole map: a row for each token that looks, a column for each that is looked at" });
  const values = [], blue = rgb(colour("attention")), pick = rgb(colour("pick"));
  for (let row = 0; row < T; row++) for (let s = 0; s < T; s++) values.push(s <= row ? weight(layer, head, row, s) : -1);
  squares(map, values, T, (v, i) => v < 0 ? [pick, Math.floor(i / T) === t ? 0.12 : 0] : [blue, v]);
  const say = el("p", { class: "quiet" }, "Rows look, columns are looked at. Tap one.");
  const place = (event) => {
    const box = map.getBoundingClientRect(), at = (x, size) => Math.max(0, Math.min(T - 1, Math.floor(x / size * T)));
    return [at(event.clientY - box.top, box.height), at(event.clientX - box.left, box.width)];
  };
  map.addEventListener("pointermove", (event) => {
    const [row, s] = place(event);
    say.textContent = s <= row ? `${shown(words[row])} looks at ${shown(words[s])}: ${percent(weight(layer, head, row, s))}` : `${shown(words[row])} cannot see ${shown(words[s])}: it comes later`;
  });
  map.addEventListener("click", (event) => {
    const [row, s] = place(event);
    moveTo(row);
    if (live && s <= row) to(s, row);
  });
  return [el("p", {}, "From ", el("code", {}, shown(words[t])), " it looks at"), list, map, say,
    live ? "" : el("p", { class: "quiet" }, NOT_YET)];
}

async function mlpBody({ layer }) {
  const { source, position } = state, size = source.wrote[layer][1][position];
  const first = el("p", {}, `At ${shown(source.words[position])} it writes a vector of size ${number(size)} into a stream of size ${number(source.stream[layer][position])}.`);
  if (!source.live) return [first, el("p", { class: "quiet" }, NOT_YET)];
  const { gate, up, hidden } = await ask("gates", { layer, position });
  const to = (i) => follow([{ kind: "hidden", layer, t: position, i }]);
  const openGates = gate.filter((g) => g > 0.1).length;
  const rows = Array.from(hidden, (v, i) => [i, v]).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 8);
  const most = Math.abs(rows[0][1]);
  return [first, el("p", { class: "quiet" }, `${openGates} of ${hidden.length} gates let more than a tenth through. Each square is one hidden channel, gate × up:`),
    sheet(hidden, 48, (i, v) => `channel ${i}: gate ${number(gate[i])} × up ${number(up[i])} = ${number(v)}`, to),
    el("ol", { class: "terms" }, ...rows.map(([i, v]) => el("li", {}, el("code", {}, `channel ${i}`), track(v / most, { middle: true, name: v > 0 ? "plus" : "minus" }),
      el("span", { class: "amount" }, el("button", { class: "link", onclick: () => to(i) }, number(v))))))];
}

async function streamBody({ layer: depth }) {
  const { source, position } = state, body = [], block = depth - 1;
  if (depth) body.push(el("p", {}, `Block ${block} found a vector of size ${number(source.stream[block][position])}; its attention added one of ${number(source.wrote[block][0][position])}, its MLP one of ${number(source.wrote[block][1][position])}; now it is ${number(source.stream[depth][position])}.`));
  if (state.lens) body.push(el("p", { class: "quiet" }, "If the model stopped here, it would say:"), el("ol", { class: "terms" }, ...state.lens[depth].map(({ word, p }) =>
    el("li", {}, el("code", {}, shown(word)), track(p), el("span", { class: "amount" }, percent(p))))));
  if (!source.live) return [...body, el("p", { class: "quiet" }, NOT_YET)];
  const values = await ask("stream", { depth, position }), to = (i) => follow([{ kind: "stream", layer: depth, t: position, i }]);
  const rows = Array.from(values, (v, i) => [i, v]).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 5), most = Math.abs(rows[0][1]);
  return [...body, el("p", { class: "quiet" }, "Its 576 channels:"), sheet(values, 48, (i, v) => `channel ${i}: ${number(v)}`, to),
    el("ol", { class: "terms" }, ...rows.map(([i, v]) => el("li", {}, el("code", {}, `channel ${i}`), track(v / most, { middle: true, name: v > 0 ? "plus" : "minus" }),
      el("span", { class: "amount" }, el("button", { class: "link", onclick: () => to(i) }, number(v))))))];
}

// Level three: one number

function follow(path) {
  state.path = path;
  drawNumber().then(() => { $("number-title").focus({ preventScroll: true }); $("number").scrollIntoView({ block: "nearest" }); });
}

async function drawNumber() {
  const { path } = state, mine = state.version;
  $("number").hidden = !path.length || !state.source.live;
  if ($("number").hidden) return;
  const found = await ask("number", path.at(-1));
  if (mine !== state.version || path !== state.path) return;
  const { title, formula, value, how, terms, matrix } = found;
  const total = terms.reduce((all, term) => all + term.value, 0);
  const order = terms.map((term, i) => [i, term.value]).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const listed = order.slice(0, terms.length <= 16 ? 16 : 12), most = Math.abs(order[0]?.[1] ?? 1) || 1;
  const rest = order.slice(listed.length).reduce((all, [, v]) => all + v, 0);
  const deeper = (ref) => follow([...path, ref]);
  const item = ([i, v]) => {
    const { label, factors } = terms[i];
    const made = factors.flatMap((f, j) => [j ? " × " : "", `${f.name} `, f.ref ? el("button", { class: "link", onclick: () => deeper(f.ref) }, number(f.value)) : number(f.value)]);
    return el("li", {}, el("code", {}, label || "product"), track(v / most, { middle: how !== "share", name: v > 0 ? "plus" : "minus" }),
      el("span", { class: "amount" }, how === "share" ? percent(v) : number(v)), el("span", { class: "made" }, ...made));
  };
  const steps = el("nav", { class: "path", "aria-label": "The way here" }, ...path.map((ref, i) => i === path.length - 1 ? el("span", {}, ref.kind)
    : el("button", { class: "link", onclick: () => follow(path.slice(0, i + 1)) }, ref.kind)).flatMap((node, i) => i ? ["←", node] : [node]));
  $("number-title").textContent = title[0].toUpperCase() + title.slice(1);
  $("number-body").replaceChildren(steps, el("p", { class: "value" }, how === "share" ? percent(value) : number(value)),
    el("p", {}, `= ${formula}`), matrix ? el("p", { class: "quiet" }, `weights: ${matrix}`) : "",
    ...(terms.length > 24 && how === "sum" ? [sheet(terms.map((term) => term.value), terms.length > 600 ? 48 : terms.length > 64 ? 32 : 16,
      (i, v) => `${terms[i].label}: ${terms[i].factors.map((f) => number(f.value)).join(" × ")} = ${number(v)}`,
      (i) => { const ref = terms[i].factors.find((f) => f.ref)?.ref; if (ref) deeper(ref); })] : []),
    el("ol", { class: "terms" }, ...listed.map(item)),
    terms.length > listed.length ? el("p", { class: "quiet" }, `The other ${terms.length - listed.length} add up to ${number(rest)}; all ${terms.length} together: ${number(total)}.`) : "");
}

// What the reader does

function moveTo(position) {
  state.position = position;
  state.version++;
  state.measured = null;
  state.path = [];
  drawTokens(); drawGrid(); drawNext(); drawLens().then(drawPart); drawNumber();
}

function toggle(name) {
  if (state.off.has(name)) state.off.delete(name);
  else {
    if (!state.source.live) state.off.clear(); // one at a time is what was computed
    state.off.add(name);
  }
  refresh();
}

function choose(i) {
  state.sentence = i;
  state.source = storedSource(STORED[i]);
  state.position = state.source.words.length - 1;
  drawSentences();
  moveTo(state.position);
}

function setText(text) {
  $("words").value = text;
  refresh();
}

/** Ask for everything again: another text, or other parts switched off. */
async function refresh() {
  const mine = ++state.version;
  if (!state.live) return moveTo(state.position);
  const text = $("words").value, chat = $("chat").checked;
  if (!text) return say("Type something: the model needs at least one token.");
  try {
    const source = await liveSource(text, chat, state.off);
    if (mine !== state.version) return; // something newer has been asked
    const fresh = text !== state.text || chat !== state.chat, path = state.path;
    Object.assign(state, { source, text, chat });
    say(READY);
    drawSentences();
    if (fresh) moveTo(source.words.length - 1);
    else {
      moveTo(state.position);
      state.path = path;
      drawNumber();
    }
  } catch (error) { say(error.message); }
}

const say = (text) => { $("status").textContent = text; };
const READY = "The model runs here, in this page: type what you like.";

async function load(from) {
  try {
    ask ??= startEngine();
    $("load").disabled = true;
    $("progress").hidden = false;
    say("Loading …");
    const config = await ask("load", from, (part) => { $("progress").value = part; });
    if (config.nLayer !== LAYERS || config.H !== HEADS) throw new Error(`This model has ${config.nLayer} blocks of ${config.H} heads; the page draws ${LAYERS} of ${HEADS}`);
    state.live = true;
    $("loading").hidden = true;
    $("own").hidden = false;
    state.off.clear();
    setText(STORED[state.sentence].text);
  } catch (error) {
    const local = location.protocol === "file:" && from.url;
    say(local ? `A page opened from the disk may not read files by itself: choose or drop ${WEIGHTS} here.` : error.message);
    $("load").disabled = false;
    $("progress").hidden = true;
  }
}

let timer = 0, writing = false;
$("words").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(refresh, 250); });
$("chat").addEventListener("change", refresh);
$("write").addEventListener("click", async () => {
  if (writing) { writing = false; return; }
  writing = true;
  $("write").textContent = "Stop";
  const box = $("written"), ids = [];
  box.hidden = false;
  box.textContent = "…";
  try {
    const { ids: prompt } = await ask("tokens", { text: $("words").value, chat: $("chat").checked });
    await ask("begin", { ids: prompt, off: [...state.off] });
    const start = performance.now();
    for (let n = 1; n <= 120 && writing; n++) {
      const { id, ends } = await ask("step");
      if (ends) break;
      ids.push(id);
      box.textContent = await ask("decode", { ids });
      $("speed").textContent = `${(n / (performance.now() - start) * 1000).toFixed(1)} tokens per second`;
    }
  } catch (error) { say(error.message); }
  writing = false;
  $("write").textContent = "Write on";
});

$("load").addEventListener("click", () => load({ url: new URL(WEIGHTS, location.href).href }));
$("file").addEventListener("change", (event) => event.target.files[0] && load({ file: event.target.files[0] }));
for (const kind of ["dragover", "dragleave", "drop"])
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) load({ file: event.dataTransfer.files[0] });
  });
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (state.path.length) { state.path = state.path.slice(0, -1); drawNumber(); }
  else if (state.part) open(state.part);
});
const THEMES = { "": "Colours: as the system says", light: "Colours: light", dark: "Colours: dark" };
$("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES), root = document.documentElement;
  const next = names[(names.indexOf(root.dataset.theme ?? "") + 1) % names.length];
  if (next) root.dataset.theme = next; else delete root.dataset.theme;
  $("theme").setAttribute("aria-label", THEMES[next]);
  $("theme").title = THEMES[next];
  drawGrid();
  drawPart();
  drawNumber();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawGrid(); drawPart(); });

buildGrid();
drawSentences();
say("These five sentences were computed beforehand. For your own words, load the model, or drop its file onto this page.");
moveTo(state.position);
