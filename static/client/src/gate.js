// The local gate: lets through what can no longer become a violation, holds only what still might.
//
// The same state machine as the server's (streaming/core/gate.py) for the rules that decide: every rule says up to where
// it is settled, the release pointer moves to the smallest of these, and on its way applies in text order what was found:
// a redacted region is one placeholder, a block ends the answer. However a text is cut, the same comes out; no character
// of a hidden span ever does. Offsets are code points of the original text.

import { accepting } from "./checks.js";
import { EDGE, Rule } from "./match.js";

const MOST_IGNORABLES = 16;
const SENTINEL = 0x10ffff;

const points = (text) => Array.from(text, (char) => char.codePointAt(0));

/** The folding table as the server ships it: what a character is read as, as code points. */
export function foldingOf({ fold, ignorable }) {
  const table = new Map();
  for (const target in fold) for (const code of points(fold[target])) table.set(code, points(target));
  for (const [low, high] of ignorable) for (let code = low; code <= high; code++) table.set(code, []);
  return table;
}

/** The rules of a bundle that decide. Throws what is wrong with a rule that cannot be run here. */
export function compile({ guardrails, classes }) {
  const entries = [];
  for (const guardrail of guardrails) {
    for (const data of guardrail.action === "warn" ? [] : guardrail.rules) {
      const rule = new Rule(data, classes, accepting(data.validators));
      entries.push({ rule, data, guardrail, order: entries.length });
    }
  }
  return entries;
}

/** A text as one sort of rules reads it: folded, or as it is; `from[i]` is where character i stands in the original. */
class Reading {
  text = [];
  from = [];
  #ignorables = 0;
  #folding;

  constructor(folding) {
    this.#folding = folding;
  }

  add(code, at) {
    let read = this.#folding?.get(code) ?? [code === SENTINEL ? 0xfffd : code];
    this.#ignorables = read.length ? 0 : this.#ignorables + 1;
    if (this.#ignorables === MOST_IGNORABLES + 1) read = [SENTINEL];
    for (const one of read) this.from[this.text.push(one) - 1] = at;
  }
}

/** Where one rule stands: its live threads by start, the next start to try, what it is swallowing. */
class Run {
  #live = []; // [state, start], oldest first; of threads in one state only the oldest
  #read = 0;
  #next = 0;
  #until = 0; // starts before this may have matched
  #swallowing;
  span; // the span that grows with what is swallowed

  constructor(entry, reading) {
    this.entry = entry;
    this.reading = reading;
  }

  /** Up to which character of its reading everything is decided, as far as this rule goes. */
  #settled(ended) {
    return ended || !this.#live[0] ? this.reading.text.length : Math.max(this.#live[0][1], this.#next);
  }

  /** The same in the original, of `length` characters. */
  horizon(ended, length) {
    return this.reading.from[this.#settled(ended)] ?? length;
  }

  /** Read what is new in the text. */
  advance(ended) {
    const { rule } = this.entry;
    const { text } = this.reading;
    for (; this.#read < text.length; this.#read++) {
      const threads = [...this.#live, [rule.start(text[this.#read - 1] ?? EDGE), this.#read]];
      const seen = new Set();
      this.#live = [];
      for (const [state, start] of threads) {
        const following = rule.step(state, text[this.#read]);
        if (following.hit) this.#until = this.#read + 1;
        if (following.settled || seen.has(following)) continue; // none is left that waits
        seen.add(following);
        this.#live.push([following, start]);
      }
    }
    if (ended && this.#live.some(([state]) => rule.acceptsAtEnd(state))) this.#until = text.length;
  }

  /** Follow the match that still swallows; returns whether it goes on. */
  grow(ended) {
    [this.#next, this.#swallowing] = this.entry.rule.goOn(this.#swallowing, this.reading.text, this.#next);
    if (ended) this.#swallowing = undefined;
    if (this.span) this.span.end = this.#endOf(this.#next);
    if (this.#swallowing) return true;
    if (this.span) this.span.grows = false;
    this.span = undefined;
    this.#skip();
  }

  /** Spans that have become final; grows the one that still swallows. */
  spans(ended) {
    const found = [];
    if (this.#swallowing && this.grow(ended)) return found;
    const settled = this.#settled(ended);
    while (this.#next < Math.min(settled, this.#until)) {
      const match = this.entry.rule.match(this.reading.text, this.#next, ended);
      if (!match) {
        this.#next++;
        continue;
      }
      const { end, first, last, open } = match;
      const span = { entry: this.entry, start: this.reading.from[first], end: this.#endOf(last), grows: false };
      found.push(span);
      this.#next = end;
      this.#swallowing = open;
      if (open) {
        span.grows = last === end;
        if (span.grows) this.span = span;
        return found;
      }
      this.#skip();
    }
    this.#next = Math.max(this.#next, settled);
    return found;
  }

  #endOf(at) {
    return this.reading.from[at - 1] + 1;
  }

  /** Behind a match the rest of what its last character is read as is passed over. */
  #skip() {
    const { from } = this.reading;
    while (from[this.#next] === from[this.#next - 1] && this.#next < from.length) this.#next++;
  }
}

/** Text order; at one position a block comes first, then policy order. */
const blocks = ({ entry }) => entry.guardrail.action === "block";
const inOrder = (one, two) => one.start - two.start || blocks(two) - blocks(one) || one.entry.order - two.entry.order;

/** The release state machine of one answer. */
export class Gate {
  #runs;
  #readings;
  #chars = [];
  #released = 0;
  #hiddenTo = 0;
  #pending = [];
  #growing = [];
  blocked = ""; // the guardrail that stopped the answer

  /**
   * @param {ReturnType<typeof compile>} entries
   * @param {Map<number, number[]>} folding
   */
  constructor(entries, folding) {
    this.#readings = [new Reading(), new Reading(folding)];
    this.#runs = entries.map((entry) => new Run(entry, this.#readings[entry.data.fold ? 1 : 0]));
  }

  /**
   * More text, in whole code points; `ended`: the last of it.
   * @returns {{text: string, findings: object[], blocked: string, settled: number}} what may be painted now, what was
   *   found, the guardrail that stopped the answer, and how many characters are let through or hidden so far
   */
  feed(text, ended) {
    const out = { text: "", findings: [] };
    for (const char of text) {
      for (const reading of this.#readings) reading.add(char.codePointAt(0), this.#chars.length);
      this.#chars.push(char);
    }
    let to = this.#chars.length;
    for (const run of this.#runs) {
      if (this.blocked) {
        // Nothing more is shown; what was still growing is told with its end.
        if (run.span) run.grow(ended);
        continue;
      }
      run.advance(ended);
      this.#pending.push(...run.spans(ended));
      to = Math.min(to, run.horizon(ended, to), run.span?.end ?? to);
    }
    this.#advance(to, out);
    const settled = Math.min(this.#chars.length, Math.max(this.#released, this.#hiddenTo));
    return { ...out, blocked: this.blocked, settled };
  }

  #advance(to, out) {
    const tell = (span) => {
      const { guardrail, data } = span.entry;
      const { id: rule, category } = data;
      if (span.grows) this.#growing.push(span);
      else out.findings.push({ guardrail: guardrail.name, rule, category, start: span.start, end: span.end });
      if (!blocks(span)) this.#hiddenTo = Math.max(this.#hiddenTo, span.end);
    };
    this.#growing.splice(0).forEach(tell);
    this.#pending.sort(inOrder);
    while (!this.blocked && this.#pending[0]?.start < to) {
      const span = this.#pending.shift();
      out.text += this.#show(span.start);
      if (blocks(span)) {
        this.blocked = span.entry.guardrail.name;
        for (const run of this.#runs) if (run.span !== span && !this.#growing.includes(run.span)) run.span = undefined;
      } else if (span.start >= this.#hiddenTo) out.text += span.entry.data.placeholder;
      tell(span);
    }
    if (!this.blocked) out.text += this.#show(to);
  }

  #show(to) {
    const shown = this.#chars.slice(Math.max(this.#released, this.#hiddenTo), to);
    this.#released = Math.max(this.#released, to);
    return shown.join("");
  }
}

/** The name of the first rule with a parity vector that does not come out as signed. */
export function disparity(entries, folding) {
  for (const entry of entries) {
    for (const { text, spans } of entry.data.vectors) {
      const run = new Run(entry, new Reading(entry.data.fold ? folding : undefined));
      points(text).forEach((code, at) => run.reading.add(code, at));
      run.advance(true);
      const found = run.spans(true).map(({ start, end }) => [start, end]);
      if (`${found}` !== `${spans}`) return `${entry.guardrail.name}/${entry.data.id}`;
    }
  }
}
