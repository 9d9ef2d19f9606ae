// What is held, told to those who do not see the shimmer: politely, at most once in a while, and never what is over.
//
// The visible note changes with every chunk; a live region that did so would talk over the reader without end.
import { oncePerFrame } from "./frame.js";

const AT_MOST_EVERY_MS = 5000;

export function startAnnouncing(page) {
  const region = document.getElementById("announce-held");
  let last = -Infinity;

  page.addEventListener("htmx:wsAfterMessage", oncePerFrame(() => {
    const notes = page.querySelectorAll(".answer .note");
    const note = notes[notes.length - 1];
    if (!note || note.dataset.chars === "0") {
      if (region.textContent) region.textContent = "";
      return;
    }
    const now = performance.now();
    if (now - last < AT_MOST_EVERY_MS) return;
    last = now;
    region.textContent = note.textContent;
  }));
}
