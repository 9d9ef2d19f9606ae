// The guardrail panel: hits are counted from the latest answer's own list, so that they can never disagree with it.
import { oncePerFrame } from "./frame.js";

export function startPanel(page) {
  let counted = document.getElementById("run").dataset.session;
  const recount = oncePerFrame(() => {
    const session = document.getElementById("run").dataset.session;
    const found = document.getElementById(`s-${session}-findings`);
    for (const cell of page.querySelectorAll("[data-hits-of]")) {
      const name = CSS.escape(cell.dataset.hitsOf);
      const more = Number(found?.querySelector(`[data-more-of="${name}"]`)?.dataset.more ?? 0);
      const hits = found ? found.querySelectorAll(`[data-guardrail="${name}"]`).length + more : 0;
      if (cell.textContent !== String(hits)) cell.textContent = String(hits);
    }
  });
  page.addEventListener("htmx:wsAfterMessage", () => {
    const session = document.getElementById("run").dataset.session;
    if (session !== counted) { // at once: in the next frame the new answer's own states stand there already
      counted = session;
      for (const word of page.querySelectorAll("#lanes .status-word")) resetState(word);
    }
    recount();
  });
  page.addEventListener("htmx:wsBeforeMessage", (event) => {
    const idle = event.detail.message.includes('data-type="guardrail_status"') && IDLE.exec(event.detail.message);
    if (idle && STANDING.has(document.getElementById(idle[1])?.dataset.state)) event.preventDefault();
  });
  page.addEventListener("htmx:afterSettle", recount);
}

// What is known of a guardrail and not of an answer stands until the guardrail has been asked again.
const STANDING = new Set(["circuit_open", "slower_than_declared"]);
const IDLE = /<span id="([A-Za-z0-9_-]+-state)"[^>]*data-state="idle"/;

function resetState(word) {
  if (STANDING.has(word.dataset.state)) return;
  word.dataset.state = "idle";
  word.innerHTML = '<span aria-hidden="true" class="sign">○</span> idle';
}
