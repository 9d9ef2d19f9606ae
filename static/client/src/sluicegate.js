// One server, one key, one policy: its calls with their tries, and the signed rules that this page runs.
//
//   const gate = new Sluicegate({ url, key, root, fail: "closed" });
//   const answer = gate.answer();
//   answer.addEventListener("paint", () => (element.textContent = answer.visible));
//   for await (const chunk of model) answer.feed(chunk);
//   await answer.finish();
//
// Nothing of a bundle is used before all of it was verified, its parity vectors included; and what is used is verified
// again, with the keys as they are then, whenever the rules are asked for.

import { Answer, sleep } from "./answer.js";
import { Runner } from "./rules.js";
import { Refused, digestOf, ensure, jsonOf, opened, trusted } from "./verify.js";

export { Answer, Refused };

const LOAD_MS = 20_000;
const AGAIN_S = 30; // after which rules that could not be had are asked for again

/** Emits `rules` whenever the rules have been asked for. */
export class Sluicegate extends EventTarget {
  calls = 0; // calls of streams that were answered
  refused = null; // why there are no (newer) rules: a Refused
  options; // what was asked for, with all that was left out
  #rules = null;
  #bundle = "";
  #etag = "";
  #triedAt = 0;
  #asking = null;

  /**
   * @param {object} options
   * @param {string} options.url the server
   * @param {string} options.key an API key with the scopes stream and rules
   * @param {string} [options.root] the root key's `x`, pinned; without it no rules are run here
   * @param {string} [options.policy] empty: the key's own
   * @param {string} [options.issuer] whose statements count
   * @param {"closed"|"open"} [options.fail] what happens when nobody can say what may be painted
   * @param {number} [options.patienceMs] for one call with all its tries
   * @param {number} [options.limitMs] for the local rules and one piece of text
   * @param {number} [options.rulesMs] text waits so long for rules; then the server guards its answer
   * @param {number} [options.refreshMs] age at which the rules are asked for again
   * @param {Storage|object} [options.store] keeps, each as a property, the highest serials that were seen and our own
   *   messages in place of blocked answers
   * @param {Storage} [options.session] keeps answers that may be resumed after a reload
   */
  constructor(options) {
    super();
    this.options = {
      root: "", policy: "", issuer: "sluicegate", fail: "closed", patienceMs: 10_000, limitMs: 1_000, rulesMs: 200,
      refreshMs: 300_000, store: globalThis.localStorage, session: globalThis.sessionStorage, ...options,
    };
    this.options.store ??= {};
    ensure(["open", "closed"].includes(this.fail), "fail", "It is open or closed.");
    this.ready = this.refresh();
  }

  get fail() {
    return this.options.fail;
  }

  /** The verified rules that are run here: {policy, version, digest, serial, cohort, expires, covers}, or null. */
  get rules() {
    const rules = this.#rules;
    return rules && !rules.runner.lost && Date.now() / 1000 < rules.exp ? rules : null;
  }

  /** Ask for the active rules now. Never rejects: `refused` says what was not believed. */
  refresh() {
    return (this.#asking ??= this.#refresh());
  }

  async #refresh() {
    const { root, policy } = this.options;
    if (root) {
      this.#triedAt = Date.now();
      try {
        const bundle = this.call("GET", `/v1/rules${policy && `?policy=${encodeURIComponent(policy)}`}`, undefined, {
          ...(this.rules && { "If-None-Match": this.#etag }),
        });
        const jwks = this.call("GET", "/.well-known/jwks.json");
        let [{ body, etag, error }, keys] = await Promise.all([bundle.catch((error) => ({ error })), jwks]);
        const against = { ...this.options, now: Date.now() / 1000 };
        against.keys = await trusted(keys.body, against);
        // Also where the server has nothing new to say, or nothing at all.
        if (this.rules) {
          await opened(this.#bundle, against).catch((why) => {
            this.#rules.runner.retire(); // answers that began under it keep it, none begins under it
            this.#rules = null;
            error ??= why;
          });
        }
        if (body) {
          await this.#take(await opened(body.bundle, against));
          [this.#bundle, this.#etag] = [body.bundle, etag];
        } else if (error) throw error;
        this.refused = null;
      } catch (error) {
        this.refused = error instanceof Refused ? error : new Refused("error", `${error}`);
      }
    }
    this.#asking = null;
    this.dispatchEvent(new Event("rules"));
  }

  async #take({ rules, statement }) {
    const before = this.rules;
    const same = before?.client_digest === statement.client_digest;
    const runner = same ? before.runner : await this.#run(rules);
    this.#rules = { ...statement, covers: rules.covers, runner };
    if (before && !same) before.runner.retire();
  }

  async #run(rules) {
    const { version, digest } = rules.folding;
    const bytes = await (await fetch(new URL(`./folding_v${version}.json`, import.meta.url))).arrayBuffer();
    ensure((await digestOf(bytes)) === digest, "folding", "The folding table is another one.");
    const runner = new Runner();
    try {
      const wrong = await runner.ask("load", { rules, table: jsonOf(bytes) }, LOAD_MS);
      ensure(!wrong, "parity", `Rule ${wrong} finds other spans here than signed.`);
    } catch (error) {
      runner.end(error.code, error.message);
      throw error;
    }
    return runner;
  }

  /** Rules that are fresh enough to begin an answer with. */
  async fresh() {
    await this.ready;
    const age = Date.now() - this.#triedAt;
    const most = Math.min(this.options.refreshMs, this.rules ? Infinity : 1000 * AGAIN_S);
    if (age > most || (!this.rules && !this.refused)) await this.refresh();
    return this.rules;
  }

  /**
   * Guard one answer.
   * @param {{kind?: "response"|"prompt", conversation?: string, resume?: string, notice?: string}} [about]
   *   `resume` names the answer: after a reload an answer of that name goes on where it was (`taken` says where)
   */
  answer(about) {
    return new Answer(this, about);
  }

  /** A call with its tries: min(1 s × 2ⁿ, 10 s) with jitter, or what Retry-After says. Rejects with a `Refused`. */
  async call(method, path, body, headers, tell = () => {}) {
    const { url, key, patienceMs } = this.options;
    const end = Date.now() + patienceMs;
    for (let n = 0; ; n++) {
      let why;
      let pause = Math.min(1000 * 2 ** n, 10_000) * (0.5 + Math.random() / 2);
      try {
        const response = await fetch(url.replace(/\/$/, "") + path, {
          method,
          headers: { Authorization: `Bearer ${key}`, ...(body && { "Content-Type": "application/json" }), ...headers },
          body: JSON.stringify(body),
          cache: "no-store",
          signal: AbortSignal.timeout(Math.max(1, end - Date.now())),
        });
        const { ok, status } = response;
        const said = status === 304 ? null : await response.json();
        if (ok || !said) return { body: said, etag: response.headers.get("ETag") };
        const { code, message, expected_seq: expected } = said.error;
        why = new Refused(code, message, { expected });
        // 409 with a key: an earlier try of this very start is still under way
        const starting = status === 409 && headers?.["Idempotency-Key"];
        if (status < 500 && status !== 429 && !starting) throw why;
        pause = 1000 * response.headers.get("Retry-After") || pause;
      } catch (error) {
        if (error === why) throw why;
        why = error;
      }
      if (Date.now() + pause > end) throw new Refused("unreachable", `The server cannot be asked: ${why.message}`);
      tell({ n: n + 1, ms: pause });
      await sleep(pause);
    }
  }
}
