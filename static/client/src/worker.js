// The worker in which signed rules run, so that one that hangs can be ended and the page goes on.

import { Gate, compile, disparity, foldingOf } from "./gate.js";

const gates = new Map();
let entries;
let folding;

const DOES = {
  load({ rules, table }) {
    folding = foldingOf(table);
    entries = compile(rules);
    return disparity(entries, folding);
  },
  feed({ id, kind, text, last }) {
    if (!gates.has(id)) gates.set(id, new Gate(entries.filter(({ guardrail }) => guardrail.applies_to.includes(kind)), folding));
    const out = gates.get(id).feed(text, last);
    if (last) gates.delete(id);
    return out;
  },
};

onmessage = ({ data }) => {
  const said = { n: data.n };
  try {
    said.out = DOES[data.does](data);
  } catch (error) {
    said.error = `${error}`;
  }
  postMessage(said);
};
