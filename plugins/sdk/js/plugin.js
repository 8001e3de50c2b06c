/** What all kinds of plugins share: how they open, what they tell, how they fail. */

/** What is wrong with the configuration, for the user: name the key and the fix. */
export class ConfigError extends Error {}

/** A plugin that does what it cannot. */
export class MistakeError extends Error {}

/** The columns to pass, of what `open` answered. */
export const readsOf = ({ body = false, time = false, identity = false, headers = [] }) => ({
  body,
  time,
  identity,
  headers: headers === "*" ? ["*"] : headers,
});

/** What a plugin tells about itself. */
export const aboutOf = ({ about = {} }) => ({
  describe() {
    const { version = "0.1.0", summary = "", options } = about;
    return { version, summary, options: options === undefined ? "" : JSON.stringify(options) };
  },
});

// Without WASI an exception that leaves the plugin is a trap without words: so it becomes an error that has them.
const told = (error) => {
  if (error instanceof ConfigError) return error.message;
  if (error instanceof MistakeError) return `a mistake in the plugin: ${error.message}`;
  return error instanceof Error ? `${error.name}: ${error.message}` : String(error);
};

/** The same functions, with exceptions that have words. */
export const guarded = (functions) => {
  const guard = (call) => (...given) => {
    try {
      return call(...given);
    } catch (error) {
      throw told(error);
    }
  };
  return Object.fromEntries(Object.entries(functions).map(([name, call]) => [name, guard(call)]));
};
