// Guards the answers of a chat page: watches what the page writes, shows what was let through.
//
// The page's own text stays where it is, hidden by content.css from before the first paint, and by a style of its own,
// which no style sheet of the page can undo. Beside it stands an element of ours. An answer is known by the id of its
// message, never by its node: frameworks replace nodes as they please, and however often they do, an answer has one
// session. Pages that give a message another id when it is stored are known as well: an id that is new, with all the text
// of one that is gone, is that answer. A look at the page changes nothing where nothing is new, so that our own changes,
// which the observer sees as well, lead to nothing.
//
// To use it on another page, change the three selectors below and in content.css, and `matches` in manifest.json.

const MESSAGE = '[data-author="assistant"][data-message-id]';
const TEXT = ":scope > .text";
const ended = (message) => message.dataset.state === "done";

const GONE_MS = 2_000; // so long may a message be gone and come back under another id

const WORDS = {
  waiting: "Checking …",
  guarding: "Guarded.",
  done: "Guarded.",
  blocked: "Stopped by a guardrail.",
  closed: "Not shown any further: it cannot be checked.",
  open: "NOT GUARDED: the server cannot be asked, and the settings say to go on.",
};

const SETTING = {
  closed: "If it cannot be checked, nothing more is shown.",
  open: "If it cannot be checked, it is shown unguarded.",
};

// Rules are asked for before there is an answer, which does not wait long for them. What fails here, fails again there.
chrome.runtime.sendMessage({ to: "background" }).catch(() => {});

const answers = new Map(); // message id -> what we know of it
let fail = "closed"; // the setting, as we heard it last

/** One answer: its session, and what is to be seen of it. */
class Guarded {
  said = { visible: "", state: "waiting", reason: null, notice: "", refused: null };
  all = "";
  ended = false;
  told = null;
  port = null;
  dropped = false;
  gone = 0; // since when its message is not there, ms since 1970

  constructor() {
    this.begin();
  }

  async begin() {
    try {
      const said = await chrome.runtime.sendMessage({ to: "background" });
      if (!said.ready) throw new Error(said.message);
      fail = said.fail;
      if (this.dropped) return;
      this.port = chrome.runtime.connect({ name: "answer" });
      this.port.onMessage.addListener((said) => this.show(said));
      this.port.onDisconnect.addListener(() => this.lost("The extension was stopped."));
      this.tell();
    } catch (error) {
      this.lost(`${error.message}`);
    }
  }

  /** The session is gone, and with it whoever could check: closed, what was let through stays; open, the text goes on. */
  lost(message) {
    this.port = null;
    if (["done", "blocked", "closed"].includes(this.said.state)) return;
    this.show({ ...this.said, state: fail, reason: { code: "extension", message } });
  }

  /** It was begun for a message that turned out to be another answer's; it has told nothing so far. */
  drop() {
    this.dropped = true;
    this.port?.disconnect();
    this.port = null;
  }

  /** Take over what the page has written; tells the session only what is new. */
  take(all, isOver) {
    if (all === this.all && isOver === this.ended) return;
    [this.all, this.ended] = [all, isOver || this.ended];
    this.tell();
  }

  tell() {
    const news = `${this.ended} ${this.all}`;
    if (!this.port || !this.all || news === this.told) return;
    this.told = news;
    this.port.postMessage({ all: this.all, ended: this.ended });
  }

  show(said) {
    this.said = said;
    if (said.state === "done" || said.state === "closed") {
      this.port?.disconnect();
      this.port = null;
    }
    look();
  }

  /** Put our element beside the page's text, or bring it up to date. */
  paint(message) {
    let box = message.querySelector(":scope > .sluicegate");
    if (!box) {
      box = document.createElement("div");
      box.className = "sluicegate";
      for (const part of ["answer", "note", "setting"]) {
        box.append(Object.assign(document.createElement("div"), { className: `sluicegate-${part}` }));
      }
      box.children[1].setAttribute("role", "status");
      message.append(box);
    }
    const { visible, state, mode, reason, notice, refused } = this.said;
    let shown = state === "blocked" ? `${visible}${visible && "\n\n"}${notice}` : visible;
    if (state === "open" && !this.port) shown = this.all;
    const words = `${WORDS[state]}${reason && state !== "done" && state !== "guarding" ? ` ${reason.message}` : ""}`;
    const why = refused ? ` No rules run here (${refused.code}): ${refused.message}` : "";
    const rules = `${SETTING[fail]}${why}`;
    const [text, note, setting] = box.children;
    if (text.textContent !== shown) text.textContent = shown;
    if (note.textContent !== words) note.textContent = words;
    if (note.dataset.state !== state) note.dataset.state = state;
    if (setting.textContent !== rules) setting.textContent = rules;
    if (setting.dataset.fail !== fail) setting.dataset.fail = fail;
    if (box.dataset.mode !== mode) box.dataset.mode = mode;
  }
}

/** Says it in the element itself, for a style sheet of the page's may say `display: block !important`. */
function hide({ style }) {
  const hidden = style.getPropertyValue("display") === "none" && style.getPropertyPriority("display");
  if (!hidden) style.setProperty("display", "none", "important");
}

/**
 * The id of the answer that goes on with this text, the first that is seen under an id: one whose message is gone, and
 * which the text has all of. One that had ended only if it is the same text and its message went just now, for a new
 * answer may say the same. One that had not ended only soon after: a page that builds a message anew does so at once and
 * with all that was there, while an answer that was stopped is not taken up by one that comes later, nor one that is
 * generated anew by what begins like it.
 */
function earlier(text, isOver, here) {
  for (const [id, known] of answers) {
    if (here.has(id) || !known.all || !text.startsWith(known.all)) continue;
    const soon = !known.gone || Date.now() - known.gone < GONE_MS;
    if (known.ended ? isOver && text === known.all && before.has(id) : soon) return id;
  }
}

let before = new Set(); // the ids that were there at the last look

function look() {
  const messages = [...document.querySelectorAll(MESSAGE)].filter((message) => message.querySelector(TEXT));
  const here = new Set(messages.map((message) => message.dataset.messageId));
  for (const message of messages) {
    const text = message.querySelector(TEXT);
    hide(text);
    const id = message.dataset.messageId;
    if (!answers.get(id)?.all) {
      const known = earlier(text.textContent, ended(message), here);
      if (known) {
        answers.get(id)?.drop();
        answers.set(id, answers.get(known));
        answers.delete(known);
      } else if (!answers.has(id)) answers.set(id, new Guarded());
    }
    const guarded = answers.get(id);
    guarded.take(text.textContent, ended(message));
    guarded.paint(message);
  }
  for (const [id, known] of answers) known.gone = here.has(id) ? 0 : known.gone || Date.now();
  before = here;
}

new MutationObserver(look).observe(document, {
  subtree: true,
  childList: true,
  characterData: true,
  attributeFilter: ["data-author", "data-state", "data-message-id", "class", "style"],
});
