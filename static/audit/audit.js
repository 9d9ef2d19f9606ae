// The audit pages: htmx loads parts, this module does what it cannot: keys, errors that carry a page, a lost connection.
import { startThemeButton } from "../js/theme-button.js";

const notice = document.getElementById("notice");
const main = document.getElementById("main");

function say(words) {
  notice.textContent = words;
  notice.hidden = !words;
}

// A refused verdict (409: somebody was faster, 422: no form) comes with the card that says so; it is shown like any other.
document.addEventListener("htmx:beforeSwap", (event) => {
  const { xhr } = event.detail;
  if ((xhr.status === 409 || xhr.status === 422) && xhr.getResponseHeader("Content-Type")?.startsWith("text/html")) {
    event.detail.shouldSwap = true;
    event.detail.isError = false;
  }
});
document.addEventListener("htmx:sendError", () => say("The server cannot be reached. Nothing was changed; try again."));
document.addEventListener("htmx:timeout", () => say("The server does not answer. Try again."));
document.addEventListener("htmx:responseError", (event) => {
  const { status } = event.detail.xhr;
  say(status === 403 ? "You may not do that, or this page is too old: reload it." : `The server refused this (${status}).`);
});
document.addEventListener("htmx:afterRequest", (event) => {
  if (event.detail.successful) say("");
});
window.addEventListener("offline", () => say("You are offline. What is shown may be old."));
window.addEventListener("online", () => {
  say("");
  for (const row of document.querySelectorAll(".more")) window.htmx?.trigger(row, "again");
});

// The keys press what is on the page, so that they do exactly what the buttons do, and only where those are.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const writing = event.target.closest?.("input, textarea, select, [contenteditable]");
  if (writing) {
    if (event.key === "Escape") writing.blur();
    return;
  }
  if (event.key === "n") {
    const note = document.getElementById("note");
    if (note) {
      note.focus();
      event.preventDefault();
    }
    return;
  }
  if (!/^[a-z]$/.test(event.key) || event.repeat) return;
  const control = main.querySelector(`[data-key="${event.key}"]:not(:disabled)`);
  if (control && !document.querySelector(".htmx-request[data-key], .htmx-request [data-key]")) {
    event.preventDefault();
    control.click();
  }
});

startThemeButton();
main.dataset.keys = "on";
