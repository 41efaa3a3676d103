// A GGUF file that lies in memory: its fields, and where each tensor is.
// Source: the GGUF specification (ggml-org/ggml, docs/gguf.md). smol_scratch/gguf_file.py reads the same.

// GGUF's number for each type of value: how many bytes, and how a DataView reads them.
const NUMBERS = {
  0: [1, "getUint8"], 1: [1, "getInt8"], 2: [2, "getUint16"], 3: [2, "getInt16"],
  4: [4, "getUint32"], 5: [4, "getInt32"], 6: [4, "getFloat32"], 7: [1, "getUint8"],
  10: [8, "getBigUint64"], 11: [8, "getBigInt64"], 12: [8, "getFloat64"],
};
const STRING = 8, ARRAY = 9;
// The ways in which this file's tensors are stored: weights and bytes of a block.
const KINDS = { 0: ["F32", 1, 4], 3: ["Q4_1", 32, 20], 8: ["Q8_0", 32, 34] };

/**
 * Return {fields, tensors} of a GGUF file; a tensor is {name, rows, columns, kind, at, rowBytes},
 * `at` counted in bytes from the start of the buffer. Throws an Error for what is no whole file.
 */
function readGGUF(buffer, size = buffer.byteLength) {
  const view = new DataView(buffer, 0, size), text = new TextDecoder();
  let at = 0;
  const number = (type) => {
    const [bytes, read] = NUMBERS[type];
    const value = view[read](at, true);
    at += bytes;
    return typeof value === "bigint" ? Number(value) : value;
  };
  const string = () => {
    const length = number(10);
    if (length > size - at) throw new RangeError(`a string at byte ${at} is not whole`);
    at += length;
    return text.decode(new Uint8Array(buffer, at - length, length));
  };
  const value = (type) => {
    if (type in NUMBERS) return number(type);
    if (type === STRING) return string();
    if (type !== ARRAY) throw new RangeError(`a value of type ${type} at byte ${at}`);
    const inner = number(4), count = number(10);
    if (count > size - at) throw new RangeError(`a list at byte ${at} is not whole`);
    return Array.from({ length: count }, () => value(inner));
  };
  try {
    if (view.getUint32(0, true) !== 0x46554747) throw new RangeError("it does not begin with GGUF");
    at = 4;
    const version = number(4);
    if (version !== 2 && version !== 3) throw new RangeError(`GGUF version ${version}`);
    const tensorCount = number(10), fieldCount = number(10), fields = {}, tensors = {};
    for (let i = 0; i < fieldCount; i++) {
      const name = string();
      fields[name] = value(number(4));
    }
    for (let i = 0; i < tensorCount; i++) {
      const name = string(), dimensions = Array.from({ length: number(4) }, () => number(10));
      const kind = number(4), offset = number(10);
      if (!(kind in KINDS)) throw new RangeError(`${name} is stored as type ${kind}`);
      const [columns, rows = 1] = dimensions, [label, perBlock, blockBytes] = KINDS[kind];
      tensors[name] = { name, rows, columns, kind: label, at: offset,
                        rowBytes: (columns / perBlock) * blockBytes };
    }
    const alignment = fields["general.alignment"] ?? 32, begin = Math.ceil(at / alignment) * alignment;
    for (const tensor of Object.values(tensors)) {
      tensor.at += begin;
      const end = tensor.at + tensor.rows * tensor.rowBytes;
      if (end > size) throw new RangeError(`${tensor.name} ends at byte ${end}, the file at ${size}`);
    }
    return { fields, tensors };
  } catch (error) {
    throw new Error(`This is no whole GGUF file of the kind read here: ${error.message}`);
  }
}
