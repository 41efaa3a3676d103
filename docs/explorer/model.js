// SmolLM2, whole: the pieces of smol_scratch/model.py in the same order, one sequence at a time.
//
// Letters as there: T tokens in this call, S tokens attended to, C width, H query heads, G key-value
// heads, D head dimension, V vocabulary. A matrix (T, C) is a Float32Array, row after row.

/** The shape of the model, from a GGUF file's fields. */
function configOf(fields, tensors) {
  const heads = fields["llama.attention.head_count"], width = fields["llama.embedding_length"];
  return {
    nLayer: fields["llama.block_count"], C: width, H: heads, G: fields["llama.attention.head_count_kv"],
    D: width / heads, hidden: fields["llama.feed_forward_length"], V: tensors["token_embd.weight"].rows,
    theta: fields["llama.rope.freq_base"], eps: fields["llama.attention.layer_norm_rms_epsilon"],
  };
}

/**
 * The file's bytes and room to compute, in one WebAssembly memory. `linear` is the only thing that
 * is computed there.
 */
class Weights {
  constructor(memory, kernels, size) {
    this.memory = memory;
    this.kernels = kernels;
    this.scratch = Math.ceil(size / 64) * 64; // one unpacked row
    this.room = this.scratch + 4 * 4096;      // inputs, then outputs
    const { fields, tensors } = readGGUF(memory.buffer, size);
    Object.assign(this, { fields, tensors, config: configOf(fields, tensors) });
    for (const name of Object.keys(tensors))
      if (/attn_[qk]\.weight$/.test(name)) this.halvesFromNeighbours(tensors[name]);
  }

  floats(at, n) { return new Float32Array(this.memory.buffer, at, n); }

  /** Reorder the rows of a query or key matrix: GGUF stores them for RoPE on neighbours. */
  halvesFromNeighbours({ at, rows, rowBytes }) {
    const bytes = new Uint8Array(this.memory.buffer, at, rows * rowBytes), old = bytes.slice();
    const { D } = this.config;
    for (let row = 0; row < rows; row++) {
      const d = row % D, from = row - d + (d < D / 2 ? 2 * d : 2 * (d - D / 2) + 1);
      bytes.set(old.subarray(from * rowBytes, (from + 1) * rowBytes), row * rowBytes);
    }
  }

  /** Unpack one row of a matrix, or a norm's weight, to float32. */
  row(name, row = 0) {
    const { at, columns, kind, rowBytes } = this.tensors[name], from = at + row * rowBytes;
    if (kind === "F32") return this.floats(from, columns).slice();
    this.kernels[kind === "Q4_1" ? "unpack_q4_1" : "unpack_q8_0"](from, this.scratch, columns);
    return this.floats(this.scratch, columns).slice();
  }

  /** x (T, columns) -> x W^T (T, rows). */
  linear(x, name) {
    const { at, rows, columns, kind, rowBytes } = this.tensors[name], T = x.length / columns;
    const out = this.room + 4 * x.length, missing = out + 4 * T * rows - this.memory.buffer.byteLength;
    if (missing > 0) this.memory.grow(Math.ceil(missing / 65536));
    this.floats(this.room, x.length).set(x);
    this.kernels.matmul(kind === "Q4_1" ? 1 : 0, at, rowBytes, rows, columns, this.room, T, out, this.scratch);
    return this.floats(out, T * rows).slice();
  }
}

/** Scale each vector to a root mean square of one, then each channel by a weight. (T, C) -> (T, C) */
function rmsNorm(x, weight, eps) {
  const C = weight.length, out = new Float32Array(x.length);
  for (let t = 0; t < x.length; t += C) {
    let meanSquare = 0;
    for (let c = 0; c < C; c++) meanSquare += x[t + c] * x[t + c] / C;
    const scale = 1 / Math.sqrt(meanSquare + eps);
    for (let c = 0; c < C; c++) out[t + c] = weight[c] * (x[t + c] * scale);
  }
  return out;
}

/** The angle of pair i at position t, rounded where Python rounds it to float32. */
function angle(t, i, D, theta) {
  const frequency = Math.fround(1 / Math.fround(theta ** Math.fround(2 * i / D)));
  return Math.fround(t * frequency);
}

/** Turn each pair (channel i, channel i + D/2) of each head by its angle. (T, heads * D) -> the same */
function rotate(x, T, D, theta, start) {
  const out = new Float32Array(x.length), width = x.length / T;
  for (let t = 0; t < T; t++)
    for (let i = 0; i < D / 2; i++) {
      const turn = angle(start + t, i, D, theta), cos = Math.cos(turn), sin = Math.sin(turn);
      for (let at = t * width + i; at < (t + 1) * width; at += D) {
        const first = x[at], second = x[at + D / 2];
        out[at] = first * cos - second * sin;
        out[at + D / 2] = second * cos + first * sin;
      }
    }
  return out;
}

/**
 * softmax(q k^T / sqrt(D)) v, causally, each group of H/G query heads with one key-value head.
 * q (T, H D), k and v (S, G D) -> what is gathered (T, H D), and the weights (H, T, S).
 */
function attention(q, k, v, T, S, { H, G, D }) {
  const gathered = new Float32Array(T * H * D), weights = new Float32Array(H * T * S);
  for (let h = 0; h < H; h++) {
    const g = Math.floor(h / (H / G));
    for (let t = 0; t < T; t++) {
      const row = weights.subarray((h * T + t) * S, (h * T + t + 1) * S);
      const seen = S - T + t + 1, at = (t * H + h) * D; // itself and what stands before it
      let highest = -Infinity, total = 0;
      for (let s = 0; s < seen; s++) {
        let score = 0;
        for (let d = 0; d < D; d++) score += q[at + d] * k[(s * G + g) * D + d];
        row[s] = score / Math.sqrt(D);
        highest = Math.max(highest, row[s]);
      }
      for (let s = 0; s < seen; s++) total += row[s] = Math.exp(row[s] - highest);
      for (let s = 0; s < seen; s++) {
        row[s] /= total;
        for (let d = 0; d < D; d++) gathered[at + d] += row[s] * v[(s * G + g) * D + d];
      }
    }
  }
  return { gathered, weights };
}

const silu = (x) => x / (1 + Math.exp(-x));
const sum = (a, b) => a.map((value, i) => value + b[i]);

/** The keys and values of every layer for the tokens before. */
class Cache {
  constructor({ nLayer, G, D }, longest) {
    this.length = 0;
    this.longest = longest;
    this.width = G * D;
    this.k = Array.from({ length: nLayer }, () => new Float32Array(longest * G * D));
    this.v = Array.from({ length: nLayer }, () => new Float32Array(longest * G * D));
  }

  /** Store a layer's newest keys and values; return all that it has. */
  append(layer, k, v) {
    const start = this.length * this.width, end = start + k.length;
    if (end > this.k[layer].length) throw new Error(`The text is longer than ${this.longest} tokens: shorten it`);
    this.k[layer].set(k, start);
    this.v[layer].set(v, start);
    return [this.k[layer].subarray(0, end), this.v[layer].subarray(0, end)];
  }
}

class SmolLM2 {
  constructor(weights) {
    this.weights = weights;
    this.config = weights.config;
  }

  /** Add to the stream twice: what attention gathered, then what the MLP made of it. */
  block(x, layer, T, cache, off) {
    const { C, H, G, D, theta, eps } = this.config, { weights } = this;
    const linear = (input, part) => weights.linear(input, `blk.${layer}.${part}.weight`);
    const norm = (input, part) => rmsNorm(input, weights.row(`blk.${layer}.${part}.weight`), eps);
    const start = cache ? cache.length : 0;

    const normed1 = norm(x, "attn_norm");
    const q0 = linear(normed1, "attn_q"), k0 = linear(normed1, "attn_k"), v = linear(normed1, "attn_v");
    const q = rotate(q0, T, D, theta, start), k = rotate(k0, T, D, theta, start);
    const [keys, values] = cache ? cache.append(layer, k, v) : [k, v];
    const { gathered, weights: maps } = attention(q, keys, values, T, keys.length / (G * D), this.config);
    for (let h = 0; h < H; h++)
      if (off.has(`${layer}.${h}`)) // a head that is switched off has gathered nothing
        for (let at = h * D; at < gathered.length; at += H * D) gathered.fill(0, at, at + D);
    const attended = linear(gathered, "attn_output");
    const middle = sum(x, attended);

    const normed2 = norm(middle, "ffn_norm");
    const gate = linear(normed2, "ffn_gate"), up = linear(normed2, "ffn_up");
    const hidden = gate.map((value, i) => silu(value) * up[i]);
    const mlp = off.has(`${layer}.mlp`) ? new Float32Array(T * C) : linear(hidden, "ffn_down");
    return { x, normed1, q0, k0, v, q, k, maps, gathered, attended, middle, normed2, gate, up, hidden, mlp,
             out: sum(middle, mlp) };
  }

  /**
   * Run the blocks over token numbers.
   *
   * cache: what earlier calls have computed; `ids` then holds only the new tokens.
   * off: parts that are switched off: "layer.head", or "layer.mlp".
   * before: an earlier trace of the same tokens; blocks before `from` are taken from it.
   * keep: whether to return every block's numbers.
   */
  forward(ids, { cache = null, off = new Set(), before = null, from = 0, keep = true } = {}) {
    const { C, nLayer } = this.config, T = ids.length, layers = before ? before.layers.slice(0, from) : [], first = layers.length;
    let x = new Float32Array(T * C);
    if (first) x = layers.at(-1).out;
    else ids.forEach((id, t) => x.set(this.weights.row("token_embd.weight", id), t * C));
    for (let layer = first; layer < nLayer; layer++) {
      const block = this.block(x, layer, T, cache, off);
      x = block.out;
      if (keep) layers.push(block);
    }
    if (cache) cache.length += T;
    return { ids, T, off, layers, out: x };
  }

  /** The final norm: (T, C) -> (T, C). */
  finalNorm(x) { return rmsNorm(x, this.weights.row("output_norm.weight"), this.config.eps); }

  /** Score every token of the vocabulary, from the stream after any block: (T, C) -> (T, V). */
  logits(x) { return this.weights.linear(this.finalNorm(x), "token_embd.weight"); }
}

/** From scores to probabilities. */
function softmax(scores) {
  const highest = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  const out = scores.map((score) => Math.exp(score - highest));
  const total = out.reduce((a, b) => a + b, 0);
  return out.map((value) => value / total);
}

/** The `count` largest of an array: [[index, value], …]. */
function largest(values, count) {
  const found = [];
  for (let i = 0; i < values.length; i++) {
    if (found.length === count && values[i] <= found.at(-1)[1]) continue;
    let at = found.length;
    while (at > 0 && found[at - 1][1] < values[i]) at--;
    found.splice(at, 0, [i, values[i]]);
    if (found.length > count) found.pop();
  }
  return found;
}
