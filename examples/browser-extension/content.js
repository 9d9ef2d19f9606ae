// Guards the answers of a chat page: watches what the page writes, shows what was let through.
//
// The page's own text stays where it is, hidden by content.css from before the first paint, and by a style of its own,
// which no style sheet of the page can undo. Beside it stands an element of ours. An answer is known by the id of its message, never by its node: frameworks replace nodes as they please, and
// however often they do, an answer has one session. A look at the page changes nothing where nothing is new, so that our
// own changes, which the observer sees as well, lead to nothing.
//
// To use it on another page, change the three selectors below and in content.css, and `matches` in manifest.json.

const MESSAGE = '[data-author="assistant"][data-message-id]';
const TEXT = ":scope > .text";
const ended = (message) => message.dataset.state === "done";

const WORDS = {
  waiting: "Checking …",
  guarding: "Guarded.",
  done: "Guarded.",
  blocked: "Stopped by a guardrail.",
  closed: "Not shown any further: it cannot be checked.",
  open: "NOT GUARDED: the server cannot be asked, and the settings say to go on.",
};

const answers = new Map(); // message id -> what we know of it
let fail = "closed"; // the setting, as we heard it last

/** One answer: its session, and what is to be seen of it. */
class Guarded {
  said = { visible: "", state: "waiting", reason: null, notice: "" };
  all = "";
  ended = false;
  told = null;
  port = null;

  constructor() {
    this.begin();
  }

  async begin() {
    try {
      const said = await chrome.runtime.sendMessage({ to: "background" });
      if (!said.ready) throw new Error(said.message);
      fail = said.fail;
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
      box.append(document.createElement("div"), document.createElement("div"));
      box.children[0].className = "sluicegate-answer";
      box.children[1].className = "sluicegate-note";
      box.children[1].setAttribute("role", "status");
      message.append(box);
    }
    const { visible, state, mode, reason, notice } = this.said;
    let shown = state === "blocked" ? `${visible}${visible && "\n\n"}${notice}` : visible;
    if (state === "open" && !this.port) shown = this.all;
    const words = `${WORDS[state]}${reason && state !== "done" && state !== "guarding" ? ` ${reason.message}` : ""}`;
    const [text, note] = box.children;
    if (text.textContent !== shown) text.textContent = shown;
    if (note.textContent !== words) note.textContent = words;
    if (note.dataset.state !== state) note.dataset.state = state;
    if (box.dataset.mode !== mode) box.dataset.mode = mode;
  }
}

/** Says it in the element itself, for a style sheet of the page's may say `display: block !important`. */
function hide({ style }) {
  const hidden = style.getPropertyValue("display") === "none" && style.getPropertyPriority("display");
  if (!hidden) style.setProperty("display", "none", "important");
}

function look() {
  for (const message of document.querySelectorAll(MESSAGE)) {
    const text = message.querySelector(TEXT);
    if (!text) continue;
    hide(text);
    const id = message.dataset.messageId;
    if (!answers.has(id)) answers.set(id, new Guarded());
    const guarded = answers.get(id);
    guarded.take(text.textContent, ended(message));
    guarded.paint(message);
  }
}

new MutationObserver(look).observe(document, {
  subtree: true,
  childList: true,
  characterData: true,
  attributeFilter: ["data-author", "data-state", "data-message-id", "class", "style"],
});
