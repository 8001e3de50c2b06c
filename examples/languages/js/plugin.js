// Keeps the events whose body holds a text, and marks them with a header.
import { ConfigError, interceptor } from "flumen";

const options = {
  type: "object",
  additionalProperties: false,
  required: ["contains"],
  properties: {
    contains: { type: "string", minLength: 1, description: "What the body has to hold." },
    header: { type: "string", minLength: 1, default: "matched", description: "The header that is set." },
  },
};

let contains, header;

export const { guest, about } = interceptor({
  about: {
    version: "0.1.0",
    summary: "Keeps the events whose body holds a text, and marks them with a header.",
    options,
  },

  open(config) {
    const unknown = Object.keys(config).find((key) => !(key in options.properties));
    if (unknown) throw new ConfigError(`config: unknown key \`${unknown}\`; the keys are \`contains\`, \`header\``);
    ({ contains, header = "matched" } = config);
    if (!contains) throw new ConfigError("config: the key `contains` is missing; add it");
    return { body: true, headers: [header] };
  },

  intercept(event, edit) {
    if (event.contains(contains)) edit.setHeader(header, contains);
    else edit.drop();
  },
});
