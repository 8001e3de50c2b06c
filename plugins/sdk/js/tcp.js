/**
 * TCP, with or without TLS, through the host: `grant = ["tcp"]` and `egress = { allow = ["host:port"] }`.
 *
 * The host owns the connection and keeps to its list and to its limits. A secret is a name: the host puts the value where the
 * name stands.
 *
 *     const connection = connect("127.0.0.1", 6379);
 *     connection.write(["AUTH ", secret("password"), "\r\n"]);
 *     const answer = connection.read();
 *     connection.close();
 */

import * as host from "flumen:plugin/tcp@0.2.0";

import { asked, parts } from "./egress.js";

export { Failure, secret } from "./egress.js";

// As the bindings that componentize-js makes name it, whether the engine knows it or not.
const DISPOSE = Symbol.dispose ?? Symbol.for("dispose");

/** Connects to a host; throws a Failure. With `tls`, its name has to be the certificate's. */
export const connect = (name, port, { tls = false } = {}) =>
  new Connection(asked(() => host.Connection.connect(name, port, tls)));

/** A connection. */
export class Connection {
  constructor(wire) {
    this._wire = wire;
  }

  /** Writes everything: text, bytes, a secret, or an array of these, which are joined; throws a Failure. */
  write(data) {
    asked(() => this._wire.write(parts(data)));
  }

  /**
   * At least one byte and at most `max`; none: the other side is done. Throws a Failure. `timeoutMs`: less than the pipeline
   * allows.
   */
  read(max = 65536, timeoutMs) {
    return asked(() => this._wire.read(max, timeoutMs));
  }

  /** Closes it. What comes after it fails. */
  close() {
    const wire = this._wire;
    this._wire = undefined;
    wire?.[DISPOSE]();
  }
}
