// The socket's memory: which event of which session was applied last.
//
// Every piece of HTML begins with a cursor (session, seq). It is read before htmx applies the piece, so that an event
// is applied exactly once however often it is sent, and after a lost connection each session that has not ended is
// resumed from where this page is.

const CURSOR = /<i id="cursor"[^>]*>/;
const PAGE_WIDE = new Set(["guardrail_status", "timing", "done"]);

export function startStream(page, { keepsAddress = false } = {}) {
  const seen = new Map(); // session -> last applied seq
  const open = new Set(); // sessions that have not ended: to be resumed
  const ackBytes = Number(page.dataset.ackBytes) || 65536;
  const encoder = new TextEncoder();
  const banner = document.getElementById("connection");
  let socket = null;
  let unacked = 0;
  let lost = false;
  let slow = 0;

  // Words come only when something takes its time: a page that is there at once need not say that it was loading.
  const connecting = setTimeout(() => {
    if (!socket) banner.textContent = "Connecting… What you send meanwhile goes out as soon as the server answers.";
  }, 1500);
  const offline = "You are offline. What is here stays; the answer carries on when the network is back.";
  window.addEventListener("offline", () => {
    page.dataset.connection = "lost";
    banner.textContent = offline;
  });
  window.addEventListener("online", () => {
    if (lost || !socket) return;
    banner.textContent = "";
    page.dataset.connection = "open";
  });

  for (const session of page.dataset.live.split(" ").filter(Boolean)) open.add(session);

  const send = (frame) => socket?.sendImmediately(JSON.stringify(frame));

  // A page that stays hidden for long should still come back within seconds, so the pause is capped low.
  window.htmx.config.wsReconnectDelay = (tries) => Math.min(4000, 250 * 2 ** tries) * (0.75 + Math.random() / 2);

  page.addEventListener("htmx:wsOpen", (event) => {
    socket = event.detail.socketWrapper;
    unacked = 0;
    lost = false;
    clearTimeout(slow);
    clearTimeout(connecting);
    banner.textContent = "";
    page.dataset.connection = "open";
    for (const session of open) send({ type: "resume", session_id: session, last_seq: seen.get(session) ?? 0 });
  });

  page.addEventListener("htmx:wsClose", (event) => {
    lost = true;
    page.dataset.connection = "lost";
    banner.textContent = navigator.onLine ? "Connection lost. Reconnecting…" : offline;
    // The extension comes back by itself after an abnormal closure only; a server that restarts closes politely.
    const code = event.detail.event.code;
    if (code === 4401 || code === 4403) {
      banner.textContent = "The server refused the connection. Reload the page to sign in again.";
    } else if (![1006, 1011, 1012, 1013].includes(code)) {
      slow = setTimeout(() => lost && event.detail.socketWrapper.reconnect(), 1000);
    }
  });

  page.addEventListener("htmx:wsBeforeMessage", (event) => {
    const message = event.detail.message;
    unacked += encoder.encode(message).length;
    const tag = CURSOR.exec(message);
    if (!tag) return;
    const cursor = document.createRange().createContextualFragment(tag[0]).firstChild.dataset;
    const { session, type, target } = cursor;
    const seq = Number(cursor.seq);
    const last = seen.get(session) ?? 0;
    // The notice that events were lost carries the seq of the last one that was not.
    if (seq && (seq < last || (seq === last && type !== "error"))) {
      event.preventDefault(); // applied before the connection was lost
      return;
    }
    if (target && !document.getElementById(target)) {
      event.preventDefault(); // its message or its row is not on this page (another policy's lanes are shown)
    } else if (PAGE_WIDE.has(type) && session !== document.getElementById("run").dataset.session) {
      event.preventDefault(); // lanes and timeline belong to the latest answer
    }
    if (seq) {
      if (!seen.has(session)) open.add(session);
      seen.set(session, seq);
    }
    if (type === "state" && message.includes('data-state="COMPLETE"')) open.delete(session);
    if (type === "message_new" && !event.defaultPrevented) replaceServed(message);
    if (unacked >= ackBytes && seq) {
      send({ type: "ack", seq, session_id: session });
      unacked = 0;
    }
  });

  page.addEventListener("htmx:oobBeforeSwap", (event) => {
    keepSameText(event);
    countOneMore(event);
  });

  page.addEventListener("htmx:wsAfterMessage", () => {
    const id = document.getElementById("conversation-id").value;
    if (keepsAddress) return;
    const here = new URL(location.href);
    if (id && here.searchParams.get("conversation") !== id) {
      here.search = new URLSearchParams({ conversation: id }).toString();
      history.replaceState(null, "", here); // so that a reload finds the way back
    }
  });
}

// The event that ends a message carries its whole text. Where the page has it already, as it should, it stays untouched
// (and with it the reader's selection); where it has not, because a log was lost in between, it is put right.
function keepSameText(event) {
  const { target, fragment } = event.detail;
  if (!target.matches(".text[data-visible]") || !fragment.querySelector?.(".text[data-visible]")) return;
  if (target.textContent === fragment.textContent) event.detail.shouldSwap = false;
  else if (target.textContent) target.closest(".message").dataset.repaired = "";
}

// Behind the findings that are listed each guardrail has one line for its others, however many come one by one.
function countOneMore(event) {
  const { target, fragment } = event.detail;
  const more = target.matches(".findings") && fragment.querySelector?.("[data-more-of]");
  const line = more && target.querySelector(`[data-more-of="${CSS.escape(more.dataset.moreOf)}"]`);
  if (!line) return;
  line.dataset.more = Number(line.dataset.more) + Number(more.dataset.more);
  line.querySelector("[data-number]").textContent = line.dataset.more;
  event.detail.shouldSwap = false;
}

// A message that was served with the page and is now replayed from the log would stand there twice.
function replaceServed(message) {
  const article = /<article class="message [a-z]+" id="([A-Za-z0-9_-]+)"/.exec(message);
  if (article) document.getElementById(article[1])?.remove();
}
