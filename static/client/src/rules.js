// The worker in which signed rules run, seen from the page: every question has a time limit, and a worker that does not
// keep it is ended. Answers that began under older rules keep their worker until they leave it.

import { Refused } from "./verify.js";

export class Runner {
  #worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  #asked = new Map();
  #answers = new Set();
  #n = 0;
  #old = false;
  lost = null; // why it runs no more: a Refused

  constructor() {
    this.#worker.onmessage = ({ data: { n, out, error } }) => {
      this.#asked.get(n)?.[error ? 1 : 0](error ? new Refused("pattern", error) : out);
      this.#asked.delete(n);
    };
    this.#worker.onerror = ({ message }) => this.end("worker_error", `The worker broke: ${message}.`);
  }

  /** Ask the worker; rejects with a `Refused`, at the latest after `limitMs`. */
  ask(does, more, limitMs) {
    return new Promise((resolve, reject) => {
      if (this.lost) return reject(this.lost);
      const late = () => this.end("worker_timeout", `The rules took longer than ${limitMs} ms.`);
      const timer = setTimeout(late, limitMs);
      const settled = (done) => (value) => done(value, clearTimeout(timer));
      this.#asked.set(++this.#n, [settled(resolve), settled(reject)]);
      this.#worker.postMessage({ n: this.#n, does, ...more });
    });
  }

  enter(answer) {
    this.#answers.add(answer);
  }

  leave(answer) {
    this.#answers.delete(answer);
    if (this.#old && !this.#answers.size) this.end("retired", "It is retired.");
  }

  /** Newer rules are there: end when the last answer has left. */
  retire() {
    this.#old = true;
    this.leave();
  }

  end(code, message) {
    this.#worker.terminate();
    this.lost ??= new Refused(code, message);
    for (const [, reject] of this.#asked.values()) reject(this.lost);
    this.#asked.clear();
  }
}
