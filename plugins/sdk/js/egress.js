/** What the ways out (`flumen/http`, `flumen/tcp`) share: what is sent, and how it fails. */

import { column } from "./columns.js";

/** The secret of this name, from the pipeline's file. */
export const secret = (name) => ({ tag: "secret", val: name });

/** There is no answer. `kind`: denied, invalid, unreachable, timed-out or too-large. */
export class Failure extends Error {
  name = "Failure";

  constructor(kind, words) {
    super(words);
    this.kind = kind;
  }
}

/** Text, bytes, a secret, or an array of these, as it crosses: what stands between two secrets is one part. */
export const parts = (value = []) => {
  const out = [];
  let run = [];
  const end = () => {
    if (run.length > 0) out.push({ tag: "bytes", val: column(run).data });
    run = [];
  };
  for (const part of Array.isArray(value) ? value : [value]) {
    if (part.tag !== "secret") {
      run.push(part);
      continue;
    }
    end();
    out.push(part);
  }
  end();
  return out;
};

const WORDS = {
  denied: (words) => `not allowed: ${words}`,
  invalid: (words) => `the request is wrong: ${words}`,
  unreachable: (words) => words,
  "timed-out": () => "no answer in time",
  "too-large": (limit) => `the answer has more than ${limit} bytes`,
};

/** What a call of the host's gives; what it fails with becomes a Failure. */
export const asked = (call) => {
  try {
    return call();
  } catch (error) {
    const { payload } = error;
    const words = WORDS[payload?.tag];
    throw words === undefined ? error : new Failure(payload.tag, words(payload.val));
  }
};
