/**
 * HTTP and HTTPS, through the host: `grant = ["http"]` and `egress = { allow = ["host:port"] }`.
 *
 * The host owns the connections, speaks TLS, keeps to its list and to its limits. Redirects are not followed. An answer with any
 * status is no failure. A secret is a name: the host puts the value where the name stands.
 *
 *     const answer = post(url, body, { headers: { authorization: ["Bearer ", secret("token")] } });
 */

import * as host from "flumen:plugin/http@0.2.0";

import { asked, parts } from "./egress.js";

export { Failure, secret } from "./egress.js";

/** An answer: `status`, `headers` (a Map by name in lower case; of several the first), `body`. */
export class Response {
  constructor({ status, headers, body }) {
    this.status = status;
    this.headers = new Map(headers.slice().reverse());
    this.body = body;
  }

  /** The body as text. */
  text() {
    return new TextDecoder().decode(this.body);
  }

  /** Milliseconds until the server wants to be asked again, if it says so in seconds. */
  retryAfterMs() {
    const seconds = this.headers.get("retry-after")?.trim();
    return /^\d{1,6}$/.test(seconds) ? Number(seconds) * 1000 : undefined;
  }

  /** The beginning of the body, for an error. */
  excerpt() {
    return new TextDecoder().decode(this.body.subarray(0, 200));
  }
}

/**
 * Sends a request and waits for the whole answer; throws a Failure. `body`, and each value in `headers`: text, bytes, a secret,
 * or an array of these, which are joined. `timeoutMs`: less than the pipeline allows.
 */
export const request = (method, url, { body, headers = {}, timeoutMs } = {}) => {
  const wireHeaders = Object.entries(headers).map(([name, value]) => ({ name, value: parts(value) }));
  return new Response(asked(() => host.send({ method, url, headers: wireHeaders, body: parts(body), timeoutMs })));
};

/** A GET; the rest as for `request`. */
export const get = (url, more) => request("GET", url, more);

/** A POST; the rest as for `request`. */
export const post = (url, body, more) => request("POST", url, { ...more, body });

/** A PUT; the rest as for `request`. */
export const put = (url, body, more) => request("PUT", url, { ...more, body });
