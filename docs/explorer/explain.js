// Any number of the model, followed one step back: which products made it.
//
// A number is named by {kind, layer, t, i}: `kind` as in SmolLM2.block, `t` the token's position, `i`
// the channel. Scores and weights of attention have {kind, layer, h, t, s}. `stream` with layer n is
// the stream after n blocks.

const CHANNEL = "channel";

/**
 * Return {title, how, value, terms}: each term is {label, value, factors}, each factor {name, value}
 * and, where it was itself computed, `ref`. `value` is what the model computed; where `how` is
 * "sum", adding up the terms gives it again, up to rounding. `scale` divides a sum of products.
 */
function explain(model, tokenizer, trace, ref) {
  const { C, H, G, D, hidden, theta, eps } = model.config, { weights } = model;
  const { kind, layer, t, i, h, s } = ref, block = trace.layers[layer];
  const word = (position) => JSON.stringify(tokenizer.decode([trace.ids[position]]));
  const here = (other, index, position = t) => ({ kind: other, layer, t: position, i: index });
  const factor = (name, value, to) => ({ name, value, ref: to });
  const product = (label, ...factors) =>
    ({ label, factors, value: factors.reduce((all, f) => all * f.value, 1) });

  // x W^T: one row of the matrix, multiplied with the vector of this token.
  const dot = (title, matrix, vector, width, from) => {
    const row = weights.row(matrix, i), x = vector.subarray(t * width, (t + 1) * width);
    const terms = Array.from(x, (value, c) =>
      product(`${CHANNEL} ${c}`, factor(from, value, here(from, c)), factor("weight", row[c])));
    return { title, how: "sum", terms, formula: `the sum over ${width} channels of ${from} × weight`,
             matrix: `${matrix}, row ${i}` };
  };
  const normed = (title, x, matrix, from) => {
    const row = x.subarray(t * C, (t + 1) * C), weight = weights.row(matrix)[i];
    const scale = 1 / Math.sqrt(row.reduce((all, value) => all + value * value / C, 0) + eps);
    return { title, how: "product", formula: `${from} ÷ root mean square × weight`, terms: [
      product("", factor(from, row[i], from === "stream" ? { kind: from, layer: matrix === "output_norm.weight" ? model.config.nLayer : layer, t, i } : here(from, i)),
        factor("1 ÷ root mean square", scale), factor("weight", weight))] };
  };
  const turned = (title, from) => {
    const x = block[from], width = x.length / trace.T, d = i % D, half = D / 2, first = d < half;
    const other = first ? i + half : i - half, turn = angle(t, d % half, D, theta);
    return { title, how: "sum", formula: `pair ${d % half} turned by ${turn.toFixed(3)} radians (position ${t})`, terms: [
      product("itself", factor(from, x[t * width + i], here(from, i)), factor("cosine", Math.cos(turn))),
      product("its partner", factor(from, x[t * width + other], here(from, other)),
        factor(first ? "−sine" : "sine", first ? -Math.sin(turn) : Math.sin(turn)))] };
  };
  const added = (title, ...parts) => ({ title, how: "sum", formula: parts.map(([name]) => name).join(" + "),
    terms: parts.map(([name, value, to]) => product(name, factor(name, value, to))) });
  const at = (name, width) => block[name][t * width + i];
  const where = `block ${layer}, ${word(t)}, channel ${i}`;
  const W = (part) => `blk.${layer}.${part}.weight`;

  const kinds = {
    logit: () => ({ value: model.logits(trace.out.subarray(t * C, (t + 1) * C))[i],
      ...(() => {
        const x = model.finalNorm(trace.out.subarray(t * C, (t + 1) * C)), row = weights.row("token_embd.weight", i);
        return { title: `logit of ${JSON.stringify(tokenizer.decode([i]))} after ${word(t)}`, how: "sum",
          formula: `the sum over ${C} channels of final × embedding`, matrix: `token_embd.weight, row ${i}`,
          terms: Array.from(x, (value, c) => product(`${CHANNEL} ${c}`,
            factor("final", value, { kind: "final", t, i: c }), factor("embedding", row[c]))) };
      })() }),
    final: () => ({ value: model.finalNorm(trace.out.subarray(t * C, (t + 1) * C))[i],
      ...normed(`final norm, ${word(t)}, channel ${i}`, trace.out, "output_norm.weight", "stream") }),
    stream: () => {
      if (layer === 0) {
        const value = trace.layers[0].x[t * C + i];
        return { title: `embedding of ${word(t)}, channel ${i}`, value, how: "leaf", terms: [],
          formula: `read from the file: token_embd.weight, row ${trace.ids[t]}, column ${i}` };
      }
      const before = trace.layers[layer - 1], down = { layer: layer - 1, t, i };
      return { value: before.out[t * C + i], ...added(`stream after block ${layer - 1}, ${word(t)}, channel ${i}`,
        ["middle", before.middle[t * C + i], { kind: "middle", ...down }],
        ["mlp", before.mlp[t * C + i], { kind: "mlp", ...down }]) };
    },
    middle: () => ({ value: at("middle", C), ...added(`stream between attention and MLP, ${where}`,
      ["stream", block.x[t * C + i], here("stream", i)], ["attended", at("attended", C), here("attended", i)]) }),
    mlp: () => trace.off.has(`${layer}.mlp`)
      ? { value: 0, how: "leaf", title: `what the MLP writes, ${where}`, formula: "this MLP is switched off", terms: [] }
      : { value: at("mlp", C), ...dot(`what the MLP writes, ${where}`, W("ffn_down"), block.hidden, hidden, "hidden") },
    hidden: () => ({ value: at("hidden", hidden), title: `hidden, ${where}`, how: "product", formula: "silu(gate) × up",
      terms: [product("", factor("silu(gate)", silu(at("gate", hidden)), here("gate", i)), factor("up", at("up", hidden), here("up", i)))] }),
    gate: () => ({ value: at("gate", hidden), ...dot(`gate, ${where}`, W("ffn_gate"), block.normed2, C, "normed2") }),
    up: () => ({ value: at("up", hidden), ...dot(`up, ${where}`, W("ffn_up"), block.normed2, C, "normed2") }),
    normed2: () => ({ value: at("normed2", C), ...normed(`norm before the MLP, ${where}`, block.middle, W("ffn_norm"), "middle") }),
    attended: () => ({ value: at("attended", C), ...dot(`what attention writes, ${where}`, W("attn_output"), block.gathered, H * D, "gathered") }),
    gathered: () => {
      const head = Math.floor(i / D), g = Math.floor(head / (H / G)), v = g * D + (i % D);
      const title = `gathered by head ${head}, block ${layer}, ${word(t)}, dimension ${i % D}`;
      if (trace.off.has(`${layer}.${head}`)) return { value: 0, title, how: "leaf", formula: "this head is switched off", terms: [] };
      return { value: at("gathered", H * D), title, how: "sum", formula: "the sum over tokens of attention weight × value",
        terms: Array.from({ length: t + 1 }, (_, from) => product(`from ${word(from)}`,
          factor("weight", block.maps[(head * trace.T + t) * trace.T + from], { kind: "weight", layer, h: head, t, s: from }),
          factor("v", block.v[from * G * D + v], here("v", v, from)))) };
    },
    weight: () => {
      const scores = Array.from({ length: t + 1 }, (_, from) => score(from)), highest = Math.max(...scores);
      const total = scores.reduce((all, value) => all + Math.exp(value - highest), 0);
      return { value: block.maps[(h * trace.T + t) * trace.T + s], how: "share",
        title: `attention of ${word(t)} to ${word(s)}, block ${layer}, head ${h}`,
        formula: "exp(score) ÷ the sum of exp(score) over the tokens so far",
        terms: scores.map((value, from) => ({ label: `${from === s ? "this: " : ""}${word(from)}`, value: Math.exp(value - highest) / total,
          factors: [factor("score", value, { kind: "score", layer, h, t, s: from })] })) };
    },
    score: () => {
      const g = Math.floor(h / (H / G)), terms = Array.from({ length: D }, (_, d) => {
        const a = h * D + d, b = g * D + d;
        return product(`dimension ${d}`, factor("q", block.q[t * H * D + a], here("q", a)),
          factor("k", block.k[s * G * D + b], here("k", b, s)), factor("1/√D", 1 / Math.sqrt(D)));
      });
      return { value: score(s), how: "sum", terms, title: `score of ${word(t)} with ${word(s)}, block ${layer}, head ${h}`,
        formula: `the sum over ${D} dimensions of q × k, divided by √${D}` };
    },
    q: () => ({ value: at("q", H * D), ...turned(`query after RoPE, ${where}`, "q0") }),
    k: () => ({ value: at("k", G * D), ...turned(`key after RoPE, ${where}`, "k0") }),
    q0: () => ({ value: at("q0", H * D), ...dot(`query, ${where}`, W("attn_q"), block.normed1, C, "normed1") }),
    k0: () => ({ value: at("k0", G * D), ...dot(`key, ${where}`, W("attn_k"), block.normed1, C, "normed1") }),
    v: () => ({ value: at("v", G * D), ...dot(`value, ${where}`, W("attn_v"), block.normed1, C, "normed1") }),
    normed1: () => ({ value: at("normed1", C), ...normed(`norm before attention, ${where}`, block.x, W("attn_norm"), "stream") }),
  };
  function score(from) {
    const g = Math.floor(h / (H / G));
    let total = 0;
    for (let d = 0; d < D; d++) total += block.q[(t * H + h) * D + d] * block.k[(from * G + g) * D + d];
    return total / Math.sqrt(D);
  }
  if (!(kind in kinds)) throw new Error(`${kind}: no such number`);
  return { ref, ...kinds[kind]() };
}
