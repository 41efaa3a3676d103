// The worker: it owns the model, computes while the page stays free, and answers one question at a
// time. A message is {id, ask, about}; the answer {id, answer} or {id, error}.

let model = null, tokenizer = null, trace = null, cache = null;

/** Read a file into WebAssembly memory as it arrives, and make the model of it. */
async function load({ url, file }, progress) {
  const response = url ? await fetch(url) : new Response(file.stream());
  if (response.status === 404) throw new Error(`${url.split("/").at(-1)} is not beside this page: choose the file, or drop it here. ("python -m smol_scratch.course.explorer --out FOLDER" puts it beside the page in that folder.)`);
  if (!response.ok) throw new Error(`${url}: the server says ${response.status} ${response.statusText}`);
  const size = file ? file.size : Number(response.headers.get("content-length"));
  if (!size) throw new Error(`${url}: the server does not say how long the file is; drop the file here instead`);
  const room = 16 << 20; // for what is computed; it grows when a long text needs more
  const memory = new WebAssembly.Memory({ initial: Math.ceil((size + room) / 65536) });
  const bytes = new Uint8Array(memory.buffer), reader = response.body.getReader();
  let at = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (at + part.value.length > size) throw new Error("The file is longer than was said");
    bytes.set(part.value, at);
    at += part.value.length;
    progress(at / size);
  }
  if (at < size) throw new Error(`The file ends after ${at} of ${size} bytes: fetch it again`);
  const binary = Uint8Array.from(atob(KERNELS), (c) => c.charCodeAt(0));
  const { instance } = await WebAssembly.instantiate(binary, { page: { memory } });
  const weights = new Weights(memory, instance.exports, size);
  tokenizer = new Tokenizer(weights.fields);
  model = new SmolLM2(weights);
  trace = whole = cache = null;
  return model.config;
}

const lastRow = (x) => x.subarray(x.length - model.config.C);
const asWords = (pairs) => pairs.map(([id, p]) => ({ id, word: tokenizer.decode([id]), p }));
const firstBlock = (off) => Math.min(...[...off].map((part) => parseInt(part)));

/** The size (root mean square) of each vector of (T, C). */
function sizes(x, C) {
  return Array.from({ length: x.length / C }, (_, t) =>
    Math.hypot(...x.subarray(t * C, (t + 1) * C)) / Math.sqrt(C));
}

let whole = null; // the last stream of the same text with nothing switched off

/** Compute every number for these tokens; blocks before the first change are kept as they are. */
function remember(ids, off) {
  const parts = new Set(off);
  if (!trace || trace.ids.join() !== ids.join()) {
    trace = model.forward(ids);
    whole = trace.out;
  }
  const changed = [...parts, ...trace.off].filter((part) => parts.has(part) !== trace.off.has(part));
  if (changed.length) trace = model.forward(ids, { off: parts, before: trace, from: firstBlock(changed) });
}

const methods = {
  load,

  tokens({ text, chat }) {
    const ids = tokenizer.encode(chat ? chatPrompt(text) : text);
    return { ids, words: ids.map((id) => tokenizer.decode([id])) };
  },

  /** What the overview shows: attention of every head, and the stream's size after every half block. */
  read({ ids, off = [] }) {
    remember(ids, off);
    const { C } = model.config;
    const stream = [sizes(trace.layers[0].x, C), ...trace.layers.map(({ out }) => sizes(out, C))];
    const wrote = trace.layers.map(({ attended, mlp }) => [sizes(attended, C), sizes(mlp, C)]);
    return { maps: trace.layers.map(({ maps }) => maps), stream, wrote };
  },

  /** The most probable next tokens after one position; with parts switched off, also before that. */
  next({ position, count = 10 }) {
    const { C } = model.config, at = (x) => softmax(model.logits(x.subarray(position * C, (position + 1) * C)));
    const p = at(trace.out), best = largest(p, count);
    if (!trace.off.size) return { best: asWords(best), before: null };
    const was = at(whole), ids = new Set([...largest(was, 5), ...best.slice(0, 7)].map(([id]) => id));
    const pairs = [...ids].map((id) => [id, p[id]]).sort((a, b) => was[b[0]] - was[a[0]]);
    return { best: asWords(pairs), before: pairs.map(([id]) => was[id]) };
  },

  /** The probability of one token when a further part is switched off. */
  without({ part, position, id }) {
    const { C } = model.config, from = firstBlock([part]);
    const { out } = model.forward(trace.ids, { off: new Set([...trace.off, part]), before: trace, from, keep: false });
    return softmax(model.logits(out.subarray(position * C, (position + 1) * C)))[id];
  },

  /** The logit lens: what the head would say after 0, 1, … blocks. */
  lens({ position, count = 5 }) {
    const { C, V } = model.config, stream = [trace.layers[0].x, ...trace.layers.map(({ out }) => out)];
    const rows = new Float32Array(stream.length * C);
    stream.forEach((x, depth) => rows.set(x.subarray(position * C, (position + 1) * C), depth * C));
    const scores = model.logits(rows);
    return stream.map((_, depth) =>
      asWords(largest(softmax(scores.subarray(depth * V, (depth + 1) * V)), count)));
  },

  /** The MLP of a block at one position: gates, what they let pass, and what was written. */
  gates({ layer, position }) {
    const { hidden: width } = model.config, block = trace.layers[layer];
    const cut = (x) => x.slice(position * width, (position + 1) * width);
    return { gate: cut(block.gate).map(silu), up: cut(block.up), hidden: cut(block.hidden) };
  },

  /** The stream after some blocks at one position. */
  stream({ depth, position }) {
    const { C } = model.config, x = depth ? trace.layers[depth - 1].out : trace.layers[0].x;
    return x.slice(position * C, (position + 1) * C);
  },

  /** Any number of the last text, with the products that made it. */
  number(about) { return explain(model, tokenizer, trace, about); },

  /** Read a text into a fresh cache; then `step` goes on from it. */
  begin({ ids, off = [] }) {
    cache = new Cache(model.config, Math.min(2048, ids.length + 512));
    cache.off = new Set(off);
    cache.last = lastRow(model.forward(ids, { cache, off: cache.off, keep: false }).out);
  },

  /** The most probable next token (greedy), which is then read too. */
  step() {
    const p = softmax(model.logits(cache.last)), [[id, probability]] = largest(p, 1);
    cache.last = lastRow(model.forward([id], { cache, off: cache.off, keep: false }).out);
    return { id, word: tokenizer.decode([id]), p: probability, ends: id === 0 || id === 2 };
  },

  decode({ ids }) { return tokenizer.decode(ids); },

  /** Everything, for the tests: the stream after every block, every map, every logit. */
  everything({ ids, off = [] }) {
    remember(ids, off);
    return {
      stream: [trace.layers[0].x, ...trace.layers.map(({ out }) => out)],
      maps: trace.layers.map(({ maps }) => maps),
      logits: model.logits(trace.out),
    };
  },
};

onmessage = async ({ data: { id, ask, about } }) => {
  try {
    if (!model && ask !== "load") throw new Error("The weights are not here yet");
    postMessage({ id, answer: await methods[ask](about, (part) => postMessage({ id, part })) });
  } catch (error) {
    postMessage({ id, error: error.message });
  }
};
