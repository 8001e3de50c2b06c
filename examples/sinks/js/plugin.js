// Appends events as lines to a resource over HTTP, each exactly once.
//
// `GET url` answers 200 with the header `flumen-cursor`, or 404 if nothing was stored. `POST url` has lines and two headers: the
// server stores the lines and `flumen-cursor` in one step, if `flumen-after` is the cursor that it has.
import { ConfigError, delivered, retry, sink } from "flumen";
import { get, post } from "flumen/http";

// Instead of a cursor, where there is none.
const NONE = "none";
const LINE_END = 10;

const options = {
  type: "object",
  additionalProperties: false,
  required: ["url"],
  properties: {
    url: {
      type: "string",
      pattern: "^https?://",
      description: "The resource; `egress.allow` has to name its host and port.",
    },
  },
};

let url;
// What the server has, in hexadecimal.
let stored = NONE;

export const { delivery, about } = sink({
  about: { version: "0.1.0", summary: "Appends events as lines to a resource over HTTP, each exactly once.", options },

  open(config) {
    const unknown = Object.keys(config).find((key) => !(key in options.properties));
    if (unknown) throw new ConfigError(`config: unknown key \`${unknown}\`; the keys are \`url\``);
    ({ url } = config);
    if (!url) throw new ConfigError("config: the key `url` is missing; add it");
    return { body: true, recovers: true };
  },

  recover() {
    const answer = get(url);
    const cursor = answer.headers.get("flumen-cursor");
    if (answer.status === 200 && cursor !== undefined) stored = cursor;
    else if (answer.status === 404) stored = NONE;
    else throw unexpected(answer);
    return stored === NONE ? undefined : fromHex(stored);
  },

  deliver(batch, cursor) {
    const lines = [];
    const rejected = new Map();
    for (const { row, body } of batch) {
      if (body.includes(LINE_END)) rejected.set(row, "it has a line end in it, and a line cannot");
      lines.push(body, "\n");
    }
    // Before anything is stored: the others come again without them.
    if (rejected.size > 0) return delivered(rejected);
    const headers = { "flumen-cursor": toHex(cursor), "flumen-after": stored };
    const answer = post(url, lines, { headers });
    if (answer.status >= 200 && answer.status < 300) {
      stored = toHex(cursor);
      return delivered();
    }
    if (answer.status === 429 || answer.status === 503) return retry(unexpected(answer).message, answer.retryAfterMs());
    throw unexpected(answer);
  },
});

const unexpected = (answer) => new Error(`the server says ${answer.status}: ${answer.excerpt()}`);

const toHex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

const fromHex = (text) => {
  if (!/^([0-9a-f]{2})*$/i.test(text)) throw new Error(`the server's cursor "${text}" is not hexadecimal`);
  return Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16));
};
