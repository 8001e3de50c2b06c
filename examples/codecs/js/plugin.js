// Frames: four bytes with the length of a body, the highest first, then the body.
import { ConfigError, codec } from "flumen";

const MEBIBYTE = 1 << 20;

const options = {
  type: "object",
  additionalProperties: false,
  properties: {
    max_bytes: {
      type: "integer",
      minimum: 1,
      maximum: 67108864,
      default: MEBIBYTE,
      description: "Bytes of the longest body.",
    },
  },
};

let maxBytes;

export const { decoding, encoding, about } = codec({
  about: {
    version: "0.1.0",
    summary: "Frames: four bytes with the length of a body, the highest first, then the body.",
    options,
  },

  open(config) {
    const unknown = Object.keys(config).find((key) => !(key in options.properties));
    if (unknown) throw new ConfigError(`config: unknown key \`${unknown}\`; the keys are \`max_bytes\``);
    ({ max_bytes: maxBytes = MEBIBYTE } = config);
    if (!Number.isInteger(maxBytes)) throw new ConfigError("config.max_bytes: write a number");
    return { body: true };
  },

  decode(input, isLast, out) {
    const view = new DataView(input.buffer, input.byteOffset, input.byteLength);
    let start = 0;
    while (start < input.length) {
      const body = start + 4;
      const length = body <= input.length ? view.getUint32(start) : 0;
      if (length > maxBytes) {
        // Nothing tells where the next one begins.
        out.bad(start, input.length, `a frame of ${length} bytes is longer than max_bytes`);
        return;
      }
      if (body + length > input.length) {
        if (isLast) out.bad(start, input.length, "the last frame is not whole");
        return;
      }
      start = body + length;
      out.event(start, input.subarray(body, start));
    }
  },

  encode(batch, file, out) {
    for (const { row, body } of batch) {
      if (body.length > maxBytes) {
        out.reject(row, `a body of ${body.length} bytes is longer than max_bytes`);
        continue;
      }
      const frame = new Uint8Array(4 + body.length);
      new DataView(frame.buffer).setUint32(0, body.length);
      frame.set(body, 4);
      out.push(frame);
    }
  },
});
