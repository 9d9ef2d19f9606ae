// The guardrail panel: hits are counted from the latest answer's own list, so that they can never disagree with it.
import { oncePerFrame } from "./frame.js";

export function startPanel(page) {
  let counted = document.getElementById("run").dataset.session;
  const recount = oncePerFrame(() => {
    const session = document.getElementById("run").dataset.session;
    if (session !== counted) {
      counted = session;
      for (const word of page.querySelectorAll("#lanes .status-word")) resetState(word);
    }
    const found = document.getElementById(`s-${session}-findings`);
    for (const cell of page.querySelectorAll("[data-hits-of]")) {
      const name = CSS.escape(cell.dataset.hitsOf);
      const hits = found ? found.querySelectorAll(`[data-guardrail="${name}"]`).length : 0;
      if (cell.textContent !== String(hits)) cell.textContent = String(hits);
    }
  });
  page.addEventListener("htmx:wsAfterMessage", recount);
  page.addEventListener("htmx:afterSettle", recount);
}

function resetState(word) {
  word.dataset.state = "idle";
  word.innerHTML = '<span aria-hidden="true" class="sign">○</span> idle';
}
