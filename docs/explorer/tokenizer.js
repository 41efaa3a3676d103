// SmolLM2's tokenizer: special tokens, then every digit by itself, then byte-level BPE.
// smol_scratch/tokenizer.py says why each step is there.

// Words within which BPE merges; GPT-2's pattern. JavaScript's own \s is not Unicode's white space.
const WORD = /'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
const DIGIT = /(\p{N})/u;

/** The character by which byte-level BPE writes each of the 256 bytes. */
function byteCharacters() {
  const printable = (b) => (b >= 0x21 && b < 0x7f) || (b >= 0xa1 && b !== 0xad);
  let moved = 0x100;
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(printable(b) ? b : moved++));
}

class Tokenizer {
  /** Take the fields of a GGUF file. */
  constructor(fields) {
    this.entries = fields["tokenizer.ggml.tokens"];
    this.numbers = new Map(this.entries.map((entry, number) => [entry, number]));
    this.ranks = new Map(fields["tokenizer.ggml.merges"].map((merge, rank) => [merge, rank]));
    const CONTROL = 3;
    this.special = new Set(this.entries.filter((_, i) => fields["tokenizer.ggml.token_type"][i] === CONTROL));
    const escaped = [...this.special].map((token) => token.replace(/[|\\{}()[\]^$+*?.]/g, "\\$&"));
    this.specialPattern = new RegExp(`(${escaped.join("|")})`);
    this.characters = byteCharacters();
    this.bytes = new Map(this.characters.map((character, byte) => [character, byte]));
    this.known = new Map(); // words met before
  }

  /** Return the token numbers of a text. Throws an Error for a character that has none. */
  encode(text) {
    const ids = [];
    for (const part of text.split(this.specialPattern)) {
      if (this.special.has(part)) ids.push(this.numbers.get(part));
      else for (const piece of part.split(DIGIT))
        for (const [word] of piece.matchAll(WORD)) ids.push(...this.encodeWord(word));
    }
    return ids;
  }

  encodeWord(word) {
    if (this.known.has(word)) return this.known.get(word);
    let pieces = Array.from(new TextEncoder().encode(word), (byte) => this.characters[byte]);
    while (pieces.length > 1) {
      let best = Infinity, pair = null;
      for (let i = 0; i + 1 < pieces.length; i++) {
        const rank = this.ranks.get(`${pieces[i]} ${pieces[i + 1]}`) ?? Infinity;
        if (rank < best) [best, pair] = [rank, [pieces[i], pieces[i + 1]]];
      }
      if (pair === null) break;
      const merged = [];
      for (let i = 0; i < pieces.length; i++) {
        const joins = pieces[i] === pair[0] && pieces[i + 1] === pair[1];
        merged.push(joins ? pair[0] + pair[1] : pieces[i]);
        if (joins) i++;
      }
      pieces = merged;
    }
    const ids = pieces.map((piece) => {
      if (!this.numbers.has(piece)) throw new Error(`${JSON.stringify(word)}: SmolLM2's vocabulary has no token for one of its bytes; remove it from the text`);
      return this.numbers.get(piece);
    });
    this.known.set(word, ids);
    return ids;
  }

  /** Return the text of token numbers; bytes that are no whole character show as U+FFFD. */
  decode(ids) {
    let text = "", bytes = [];
    const flush = () => { text += new TextDecoder().decode(new Uint8Array(bytes)); bytes = []; };
    for (const id of ids) {
      const entry = this.entries[id];
      if (this.special.has(entry)) { flush(); text += entry; }
      else for (const character of entry) bytes.push(this.bytes.get(character));
    }
    flush();
    return text;
  }
}

/** Write a question as SmolLM2-Instruct was trained to read it; the answer is what comes next. */
function chatPrompt(question) {
  return "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n" +
    `<|im_start|>user\n${question}<|im_end|>\n<|im_start|>assistant\n`;
}
