// One answer while it streams: what may be painted, and when, by the server's word and by signed rules.
//
// What is painted, exactly. `mode` says whose word counts:
//   "local"   verified client rules cover every guardrail of the policy that decides over this kind of text (the signed
//             `covers`). What the local gate lets through is painted at once; the server is told in batches, and where
//             its visible text differs from ours, from that character on its word counts alone (mode "server").
//   "server"  otherwise: only what the server `released` is painted.
// When the server cannot be asked, or the worker hangs, the gate's `fail` decides, and `state` and `reason` say so:
//   "closed"  nothing more is painted. What stands there had been let through.
//   "open"    painting goes on: by the local gate while there is one, else by the server's word while it answers, else
//             the text as it is. This is the only way in which unchecked text is ever painted.
// Our own message in place of a blocked answer is never checked again, also when a watched page shows it to us, in one
// piece or in many, before or after a reload: a text that begins like it waits until it says something else.

const NOTICE = "sluicegate notice ";
const EARLY = 0.8; // of flush_ms: the call itself takes a moment
const FIRST_CHARS = 1000;
const USUAL = { max_delta_chars: 1000, flush_ms: 1000 };
const BY_RULES = { max_delta_chars: 4000, flush_ms: 5000 };

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const points = (text) => Array.from(text);
/** What no server takes, NUL and surrogates that belong to no pair, as the replacement character. */
const clean = (text) => text.toWellFormed().replaceAll("\0", "\ufffd");

/**
 * Emits `paint` ({at, text}: what stands from UTF-16 offset `at` on, never half a pair), `state`, `finding`, `retry`.
 * Read `visible`, `state`, `mode`, `reason`, `taken` at any time.
 *
 * `state`: waiting → guarding → done | blocked | closed; open: guarding failed and painting goes on, as `fail` says.
 */
export class Answer extends EventTarget {
  state = "waiting";
  mode = "server";
  reason = null; // {code, message}
  visible = "";
  findings = [];
  session = ""; // the server's id
  summary = null;

  #gate;
  #about;
  #raw = ""; // all text that was taken
  #half = ""; // a high surrogate whose low one is still to come, or a text that so far is our own message's beginning
  #ended = false;
  #told = 0; // of the text, put into deltas (UTF-16)
  #sent = []; // deltas by seq
  #answered = 0; // the last seq whose answer has come
  #opening = null; // the body of the start and its key, the same however often it is sent
  #decided = 0; // characters of the text that the server has let through or hidden
  #server = ""; // what the server let through
  #rules = null;
  #local = ""; // what the local gate let through
  #settled = 0; // characters of the text that it has let through or hidden
  #hints = USUAL;
  #calledAt = 0;
  #answering = true; // the server can be asked
  #work;
  #sleepers = new Set();

  constructor(gate, about) {
    super();
    this.#gate = gate;
    this.#about = { kind: "response", notice: "[This answer was stopped by a guardrail.]", ...about };
    this.#work = this.#begin()
      .then(() => Promise.all([this.#readOn(), this.#talk()]))
      .catch((error) => this.#fail(error));
  }

  /** The text that was taken so far, also before a reload. */
  get taken() {
    return this.#raw + this.#half;
  }

  /** What a page shows in place of the rest of a blocked answer. */
  get notice() {
    return this.#about.notice;
  }

  get #own() {
    return NOTICE + this.notice.trim();
  }

  /** More text, cut anywhere. */
  feed(text) {
    if (this.#ended || this.#over) return;
    const all = this.#half + text;
    const said = NOTICE + all.trim();
    const { store } = this.#gate.options;
    const known = this.#raw ? [] : [this.#own, ...Object.keys(store)];
    const ours = known.filter((one) => one.startsWith(said));
    if (said !== NOTICE && ours.includes(said)) {
      this.visible = all;
      return this.#enter("done");
    }
    this.#half = ours[0] ? all : all.match(/[\ud800-\udbff]?$/)[0];
    this.#raw += clean(all.slice(0, all.length - this.#half.length));
    this.#changed();
  }

  /** The whole text so far, for pages that are watched. False if it does not go on from what was taken before. */
  update(all) {
    // What is held is compared as it came: half a pair, cleaned, begins no text that has the other half.
    const goesOn = clean(all).startsWith(this.#raw) && all.startsWith(this.#half, this.#raw.length);
    if (goesOn) this.feed(all.slice(this.taken.length));
    return goesOn;
  }

  /** The text has ended. Resolves when all that may be painted is painted and the server knows the end. */
  async finish() {
    this.#raw += clean(this.#half);
    this.#half = "";
    this.#ended = true;
    this.#changed();
    await this.#work;
    if (!this.#over && this.state !== "open") this.#enter("done");
    this.#rules?.runner.leave(this);
    if (this.#slot) this.#gate.options.session.removeItem(this.#slot);
    return this;
  }

  get #over() {
    return /done|blocked|closed/.test(this.state);
  }

  async #begin() {
    const { session, rulesMs } = this.#gate.options;
    const saved = this.#slot && JSON.parse(session.getItem(this.#slot));
    if (saved) {
      [this.session, this.#opening, this.#sent, this.#server, this.#answered] = saved;
      this.#raw = this.#sent.join("");
      this.#told = this.#raw.length;
      this.#repaint();
    }
    // Rules that are long in coming do not keep a text waiting: the server guards it.
    const rules = await Promise.race([this.#gate.fresh(), this.#begun().then(() => sleep(rulesMs))]);
    if (rules?.covers[this.#about.kind]) {
      rules.runner.enter(this);
      this.#rules = rules;
      this.mode = "local";
      this.#hints = BY_RULES;
    }
  }

  // -- the local gate ----------------------------------------------------------------------------------------------

  async #readOn() {
    const id = crypto.randomUUID();
    for (let read = 0, last; this.mode === "local" && !last && !this.#over; ) {
      const text = this.#raw.slice(read);
      last = this.#ended && !text;
      if (!text && !last) {
        await this.#woken();
        continue;
      }
      read += text.length;
      let out;
      try {
        const { kind } = this.#about;
        out = await this.#rules.runner.ask("feed", { id, kind, text, last }, this.#gate.options.limitMs);
      } catch (error) {
        this.#hand();
        this.#fail(error);
      }
      if (this.mode !== "local" || this.#over) return;
      this.#local += out.text;
      this.#settled = out.settled;
      for (const finding of out.findings) this.#found(finding, "client");
      this.#repaint();
      if (out.blocked) this.#block(out.blocked);
    }
  }

  /** From here on the server's word counts alone. */
  #hand(reason = this.reason) {
    this.mode = "server";
    this.#hints = USUAL;
    this.reason = reason;
    this.#enter(this.state);
  }

  // -- the server --------------------------------------------------------------------------------------------------

  async #talk() {
    try {
      if (this.session) await this.#again();
      else await this.#start();
      while (this.session && !this.#ended && !this.#over) await this.#next();
      if (this.session) await this.#end();
    } catch (error) {
      this.#answering = false;
      this.#fail(error);
    }
  }

  /** There is text, or there will be none. */
  async #begun() {
    while (!this.#raw && !this.#ended && !this.#over) await this.#woken();
  }

  async #start() {
    await this.#begun();
    if (!this.#raw) return;
    const { policy } = this.#gate.options;
    const { kind, conversation } = this.#about;
    const rules_version = this.mode === "local" ? this.#rules.digest : "";
    if (!this.#opening) this.#sent = [this.#take(FIRST_CHARS)];
    this.#opening ??= [
      {
        kind,
        delta: this.#sent[0],
        client: { name: "sluicegate-js", version: "1", rules_version },
        ...(policy && { policy }),
        ...(conversation && { context: { conversation_id: conversation } }),
      },
      { "Idempotency-Key": crypto.randomUUID() },
    ];
    this.#save();
    const said = await this.#post("start", ...this.#opening);
    this.session = said.session_id;
    if (this.mode === "local" && said.policy.digest !== rules_version) {
      this.#hand({ code: "other_version", message: "The server has another version." });
      this.#gate.refresh();
    }
    this.#accept(said, 1);
    if (this.state === "waiting") this.#enter("guarding");
  }

  /** After a reload: the session goes on where the server stands, or the text begins anew. */
  async #again() {
    const { body } = await this.#gate.call("GET", `/v1/stream/status?session_id=${this.session}`);
    if (body.state !== "ACTIVE") {
      // It ended, or expired, behind our back: the text is guarded once more.
      [this.session, this.#sent, this.#told, this.#server, this.#opening] = ["", [], 0, "", null];
      return this.#start();
    }
    this.#enter("guarding");
    // The answer to the delta that was on its way is lost with the old page; the same delta again brings it.
    await this.#sendFrom(Math.min(body.expected_seq, this.#answered + 1));
  }

  /** Wait until text is due, and send it. */
  async #next() {
    const { max_delta_chars: most, flush_ms } = this.#hints;
    const waiting = this.#raw.length - this.#told;
    const left = this.#calledAt + EARLY * flush_ms - Date.now();
    if (waiting <= most && (!waiting || left > 0)) return this.#woken(waiting ? left : undefined);
    this.#sent.push(this.#take(most));
    await this.#sendFrom(this.#sent.length);
  }

  async #end() {
    const most = this.#hints.max_delta_chars;
    while (this.#raw.length - this.#told > most) {
      this.#sent.push(this.#take(most));
      await this.#sendFrom(this.#sent.length);
    }
    const delta = this.#take(most) || undefined;
    const seq = this.#sent.length + 1;
    await this.#sendFrom(seq, async () => {
      const said = await this.#post("finish", { session_id: this.session, seq, delta });
      this.summary = said.summary;
      this.#accept(said, seq, delta);
    });
  }

  /** Send deltas from a seq on, then `last`; the server may ask for an earlier one again. */
  async #sendFrom(seq, last = () => {}) {
    this.#save();
    for (;;) {
      try {
        for (; seq <= this.#sent.length; seq++) {
          this.#accept(await this.#post("update", { session_id: this.session, seq, delta: this.#sent[seq - 1] }), seq);
        }
        return await last();
      } catch (error) {
        if (!(error.expected < seq)) throw error;
        seq = error.expected;
      }
    }
  }

  async #post(name, body, headers) {
    this.#calledAt = Date.now();
    const tell = (detail) => this.dispatchEvent(new CustomEvent("retry", { detail }));
    const { body: said } = await this.#gate.call("POST", `/v1/stream/${name}`, body, headers, tell);
    this.#gate.calls++;
    return said;
  }

  /** The next delta: at most so many characters. */
  #take(most) {
    const delta = points(this.#raw.slice(this.#told)).slice(0, most).join("");
    this.#told += delta.length;
    return delta;
  }

  /** What the server has answered. `released` belongs where `released_chars` says: a seq that was lost is judged anew. */
  #accept(said, seq, last = "") {
    const { released, released_chars, held_chars = 0, hints, findings, action } = said;
    this.#answered = seq;
    const at = released_chars - points(released).length;
    this.#server = points(this.#server).slice(0, at).join("") + released;
    this.#decided = points(this.#sent.slice(0, seq).join("") + last).length - held_chars;
    for (const finding of findings) this.#found(finding, "server");
    const agrees = this.#server.startsWith(this.#local) || this.#local.startsWith(this.#server);
    if (this.mode === "local" && !agrees) {
      this.#hand({ code: "differs", message: "The server's text differs." });
    }
    if (hints && this.mode === "server") this.#hints = hints;
    this.#repaint();
    if (action === "block") this.#block(findings.at(-1)?.guardrail);
    this.#save();
  }

  // -- what is painted ---------------------------------------------------------------------------------------------

  #repaint() {
    if (this.#over) return;
    let text = this.mode === "local" ? this.#local : this.#server;
    if (this.state === "open" && this.mode === "server" && !this.#answering) {
      // Nobody is left to ask: behind what was let through stands the text as it is.
      if (this.#settled > this.#decided) text = this.#local;
      text += points(this.#raw).slice(Math.max(this.#settled, this.#decided)).join("");
    }
    const { visible } = this;
    let at = 0;
    while (at < text.length && visible[at] === text[at]) at++;
    if (at === text.length && at === visible.length) return;
    if (/[\ud800-\udbff]/.test(text[at - 1])) at--;
    this.visible = text;
    this.dispatchEvent(new CustomEvent("paint", { detail: { at, text: text.slice(at) } }));
  }

  #found(finding, by) {
    const detail = { ...finding, by };
    this.findings.push(detail);
    this.dispatchEvent(new CustomEvent("finding", { detail }));
  }

  #block(guardrail) {
    if (this.#over) return;
    this.reason = { code: "blocked", message: `Guardrail ${guardrail} stopped this answer.` };
    this.#enter("blocked");
    this.#gate.options.store[this.#own] = 1;
  }

  #fail({ code, message }) {
    if (this.#over) return;
    this.reason = { code: code?.length ? code : "error", message };
    this.#enter(this.#gate.fail);
  }

  #enter(state) {
    this.state = state;
    this.dispatchEvent(new Event("state"));
    this.#changed();
  }

  // -- waiting and keeping -----------------------------------------------------------------------------------------

  #changed() {
    if (this.state === "open") this.#repaint();
    for (const wake of this.#sleepers) wake();
    this.#sleepers.clear();
  }

  /** Resolves at the next change, or after so many milliseconds. */
  #woken(ms) {
    return new Promise((resolve) => {
      if (ms !== undefined) setTimeout(resolve, ms);
      this.#sleepers.add(resolve);
    });
  }

  get #slot() {
    const { resume } = this.#about;
    return resume && `sluicegate answer ${resume}`;
  }

  #save() {
    if (!this.#slot) return;
    const kept = [this.session, this.#opening, this.#sent, this.#server, this.#answered];
    this.#gate.options.session.setItem(this.#slot, JSON.stringify(kept));
  }
}
