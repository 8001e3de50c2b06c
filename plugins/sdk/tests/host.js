// The host of test_flumen.js: what was asked for, and what it answers.
export const host = { asked: [], answer: undefined };

const call = (name) => (...given) => {
  host.asked.push([name, ...given]);
  // As componentize-js throws what a host function fails with.
  if (host.answer instanceof Error) throw Object.assign(new Error("host"), { payload: host.answer.cause });
  return host.answer;
};

export const getMany = call("getMany");
export const putMany = call("putMany");
export const insertIfAbsent = call("insertIfAbsent");
export const removeMany = call("removeMany");
export const scan = call("scan");
export const send = call("send");

const connection = (name) => ({
  write: call(`${name}.write`),
  read: call(`${name}.read`),
  [Symbol.dispose]: call(`${name}.close`),
});

export const Connection = {
  connect(...given) {
    call("connect")(...given);
    return connection(given[0]);
  },
};
