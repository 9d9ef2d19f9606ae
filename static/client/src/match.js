// One rule as an automaton: where exactly does it match, and may it still come to match?
//
// The browser's own regular expressions cannot say either: they know one end for a start where a check digit needs all
// of them, cannot tell what may still become a match, and can be made to run for ever. So a signed pattern is read into
// the same automaton that the server runs (guardrails/patterns/spans.py), lazily determinised. For one start, ends are
// tried from the last to the first, and the first that the rule's checks accept wins. Protects: same rule, same span,
// here and on the server.
//
// Texts are arrays of code points; U+10FFFF (what a long run of ignorable characters folds to) is in no set. In the
// place of a character, EDGE says that the text begins or ends here.

export const EDGE = -1;
const MOST_EDGES = 50_000; // kept transitions of a rule: what an attacker sends must not fill the memory

/** Is the code point in a set, written as [low, high, low, high, …]? */
function within(set, code) {
  let low = 0;
  let high = set.length;
  while (low < high) {
    const middle = ((low + high) >> 2) << 1;
    if (code < set[middle]) high = middle;
    else if (code > set[middle + 1]) low = middle + 2;
    else return true;
  }
  return false;
}

function setOf(body) {
  if (body === "^\\s\\S") return [];
  if (body === "^\\n") return [0, 9, 11, 0x10ffff]; // only within (?<![^\n]) and (?![^\n]): begin and end of a line
  return [...body.matchAll(/(\\u\{(\w+)\}|\w)(-?)/g)].flatMap(([, char, hex, dash], n, all) => {
    const code = hex ? parseInt(hex, 16) : char.charCodeAt(0);
    return dash || (n && all[n - 1][3]) ? code : [code, code];
  });
}

const isWord = (code) => code >= 0 && /\w/.test(String.fromCodePoint(code));

/** Does an assertion, named as it is written, hold between two characters? */
function holds({ kind, set }, before, after) {
  switch (kind) {
    case "^":
      return before < 0;
    case "$":
      return after < 0;
    case "(?<!":
      return !within(set, before);
    case "(?!":
      return !within(set, after);
    default:
      return (isWord(before) === isWord(after)) === (kind === "\\B");
  }
}

const string = (text, from, to) => text.slice(from, to).map((code) => String.fromCodePoint(code)).join("");

/** A rule's positions and its lazily built states. */
export class Rule {
  #at = []; // the instruction of each position; 0 is where the rule has matched
  #entry;
  #arrivals = [];
  #states = new Map();
  #starts = new Map();
  #edges = 0;
  #inner;
  #judge;
  #top; // no set tells characters from here on apart: one stands for all, or each would cost transitions of its own

  /**
   * @param {object} data a rule of the signed client rules
   * @param {Record<string, string>} classes what stands for long classes in patterns
   * @param {((secret: string, match: string) => boolean) | null} judge the rule's checks, all of them
   */
  constructor(data, classes, judge) {
    let { pattern } = data;
    for (const name in classes) pattern = pattern.replaceAll(name, () => classes[name]);
    this.data = data;
    this.#judge = judge;
    // Within a known match the secret is found without the edges around it, as the server's engine finds it.
    const bare = pattern.replace(/\(\?<?!\[(?!\^\\n\])[^\]]*\]\)/g, "");
    this.#inner = data.secret_group.length && ["(?=[^]$)", "$"].map((end) => new RegExp(bare + end, "duy"));
    this.#add({});
    this.#entry = this.#parse(pattern)(0);
    const cuts = [...new Set(this.#at)].flatMap(({ set = [] }) => set.map((code, n) => code + (n & 1)));
    this.#top = Math.max(128, ...cuts.filter((code) => code < 0x10ffff));
  }

  /** A new instruction: a set with its turns (a position for each), an assertion, or a choice of ways on. */
  #add(instr, width = 1) {
    instr.base = this.#at.length;
    for (let n = 0; n < width; n++) this.#at.push(instr);
    if (instr.base > 60_000) throw new RangeError("it is too large");
    return instr.base;
  }

  /** What the server's emitter writes, as a function from the position behind it to its first position. */
  #parse(pattern) {
    let at = 0;
    let found;
    const take = (regex) => {
      regex.lastIndex = at;
      found = regex.exec(pattern);
      if (found) at += found[0].length;
      return found;
    };
    const odd = () => {
      throw new SyntaxError(`at ${at} of ${pattern}`);
    };
    const branches = () => {
      const all = [sequence()];
      while (take(/\|/y)) all.push(sequence());
      return all[1] ? (follow) => this.#add({ ways: all.map((one) => one(follow)) }) : all[0];
    };
    const sequence = () => {
      const items = [];
      let last;
      for (;;) {
        let item;
        let atom;
        if (take(/(\(\?<?!)\[([^\]]*)\]\)|\^|\$|\\[bB]/y)) {
          const assertion = { kind: found[1] ?? found[0], set: setOf(found[2] ?? "") };
          item = (follow) => this.#add({ ...assertion, ways: [follow] });
        } else if (take(/\[([^\]]*)\]/y)) {
          const turns = { body: found[1], set: setOf(found[1]), low: 1, high: 1 };
          atom = turns;
          item = (follow) => this.#add({ ...turns, ways: [follow] }, turns.high + 1);
        } else if (take(/\((?!\?)|\(\?:/y)) {
          item = branches();
          if (!take(/\)/y)) odd();
        } else break;
        if (take(/\{(\d+),(\d+)\}\??/y)) {
          const [low, high] = [+found[1], +found[2]];
          if (atom) Object.assign(atom, { low, high });
          else item = this.#turns(item, low, high);
        }
        if (take(/\*\??/y)) {
          // x{n,m}x*: at m it has matched, and what continues x behind it belongs to it
          if (!atom || last?.body !== atom.body) odd();
          last.swallow = true;
        } else {
          items.push(item);
          last = atom;
        }
      }
      return (follow) => items.reduceRight((next, item) => item(next), follow);
    };
    const tree = branches();
    if (at < pattern.length) odd();
    return tree;
  }

  #turns(item, low, high) {
    return (follow) => {
      let entry = follow;
      for (let turn = high; turn; turn--) {
        const inner = item(entry);
        entry = turn > low ? this.#add({ ways: [inner, follow] }) : inner;
      }
      return entry;
    };
  }

  // -- states --------------------------------------------------------------------------------------------------

  /** The state of threads at these positions. `late`: it has matched just before the last character. */
  #state(positions, before, late, accepts) {
    positions = [...new Set(positions)].sort((a, b) => a - b);
    const asks = positions.some((position) => this.#at[position].kind);
    const key = [asks && before, late, accepts, positions].join();
    let state = this.#states.get(key);
    if (!state) {
      const sure = positions.filter((position) => this.#sure(position)).length;
      state = {
        positions,
        before,
        late,
        accepts,
        sure: sure > 0, // a thread has matched already, whatever comes: it swallows
        settled: sure === positions.length, // so have all of them
        hit: late || accepts || sure > 0,
        next: new Map(),
      };
      this.#states.set(key, state);
    }
    return state;
  }

  /** The state in front of a match; `before` is the character in front of it, or EDGE. */
  start(before) {
    before = this.#same(before);
    let state = this.#starts.get(before);
    if (!state) {
      const rest = [];
      this.#arrive(this.#entry, rest);
      state = this.#state(rest, before, false, false);
      this.#starts.set(before, state);
    }
    return state;
  }

  #same(code) {
    return code > this.#top && code < 0x10ffff ? this.#top : code;
  }

  /** The state after one more character. */
  step(state, code) {
    code = this.#same(code);
    let following = state.next.get(code);
    if (!following) {
      if (++this.#edges > MOST_EDGES) {
        this.#states = new Map();
        this.#starts = new Map();
        this.#edges = 0;
      }
      const rest = [];
      let accepts = false;
      const [waiting, late] = this.#resolve(state, code);
      for (const position of waiting) {
        const { set, base, high } = this.#at[position];
        if (!within(set, code)) continue;
        const target = Math.min(position + 1, base + high);
        if (this.#arrive(target, rest) && !this.#sure(target)) accepts = true;
      }
      following = this.#state(rest, code, late, accepts);
      state.next.set(code, following);
    }
    return following;
  }

  /** Does the state match because the text ends here? */
  acceptsAtEnd(state) {
    return this.#resolve(state, EDGE)[1];
  }

  /** Assertions, now that the next character is known: the positions that wait for it, and whether that is a match. */
  #resolve(state, code) {
    const waiting = [];
    let accepted = false;
    const todo = [...state.positions];
    while (todo.length) {
      const position = todo.pop();
      const instr = this.#at[position];
      if (!instr.kind) waiting.push(position);
      else if (holds(instr, state.before, code) && this.#arrive(instr.ways[0], todo)) accepted = true;
    }
    return [waiting, accepted];
  }

  #sure(position) {
    const { swallow, base, high } = this.#at[position];
    return swallow && position === base + high;
  }

  /** Where a thread that gets to a position rests (added to `rest`); returns whether the rule has matched by that. */
  #arrive(position, rest) {
    let known = this.#arrivals[position];
    if (!known) {
      known = this.#arrivals[position] = { there: [], accepts: false };
      const seen = new Set([position]);
      for (const one of seen) {
        const { kind, set, base, low, high, swallow, ways } = this.#at[one];
        const turn = one - base;
        const sure = swallow && turn === high;
        if (kind || (set && (turn < high || swallow))) known.there.push(one);
        if (!one || sure) known.accepts = true;
        else if (!kind && (!set || turn >= low)) for (const way of ways) seen.add(way);
      }
    }
    rest.push(...known.there);
    return known.accepts;
  }

  // -- matches -------------------------------------------------------------------------------------------------

  /**
   * The match that starts at `from`, or undefined. Every thread from there must have ended within the text, or `final`.
   * `open`: the state to swallow on with when the text ended before the match did.
   * @returns {{start: number, end: number, first: number, last: number, open?: object} | undefined}
   */
  match(text, from, final) {
    let state = this.start(from ? text[from - 1] : EDGE);
    const ends = new Set();
    let [cap, run, at, running] = [0, 0, from];
    while (at < text.length && state.positions.length && !running) {
      state = this.step(state, text[at++]);
      if (state.late) ends.add(at - 1);
      if (state.accepts) ends.add(at);
      if (state.sure) {
        cap ||= at;
        run = at;
        if (state.settled) running = state;
      }
    }
    if (final && !running && this.acceptsAtEnd(state)) ends.add(at);
    const judged = (which) => {
      for (const end of [...ends].filter(which).sort((a, b) => b - a)) {
        const [first, last] = this.#span(text, from, end);
        if (!this.#judge || this.#judge(string(text, first, last), string(text, from, end))) return { end, first, last };
      }
    };
    const longer = judged((end) => end > run);
    if (longer || !cap) return longer;
    ends.add(cap);
    const found = judged((end) => end === cap);
    if (!found) return judged((end) => end <= run && end !== cap);
    if (running) [run, running] = this.goOn(running, text, run);
    if (found.last === found.end) found.last = run;
    found.end = run;
    if (!final) found.open = running;
    return found;
  }

  /** Swallow on from `at`: where the run ends, and the state if it may go on behind the text. */
  goOn(state, text, at) {
    for (; at < text.length; at++) {
      state = this.step(state, text[at]);
      if (!state.sure) return [at];
    }
    return [at, state];
  }

  /** The secret within a known match; the window keeps what the pattern looks at on both sides. */
  #span(text, start, end) {
    if (this.#inner) {
      const left = string(text, Math.max(0, start - 1), start);
      const window = left + string(text, start, end + 1);
      const regex = this.#inner[end < text.length ? 0 : 1];
      regex.lastIndex = left.length;
      const found = regex.exec(window);
      for (const group of found ? this.data.secret_group : []) {
        if (!found[group]) continue;
        const first = start + [...window.slice(left.length, found.indices[group][0])].length;
        return [first, first + [...found[group]].length];
      }
    }
    return [start, end];
  }
}
