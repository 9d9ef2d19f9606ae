// The page of three lanes: the same socket rules as the live page, and Esc to stop.
import { oncePerFrame } from "./frame.js";
import { startStream } from "./stream.js";
import { startThemeButton } from "./theme-button.js";

const page = document.getElementById("compare");
const stop = document.getElementById("stop");
const running = () => document.getElementById("run").dataset.run === "streaming";

const showEnds = oncePerFrame(() => {
  for (const paper of page.querySelectorAll(".paper")) paper.scrollTop = paper.scrollHeight;
});

startStream(page, { keepsAddress: true });
startThemeButton();

page.addEventListener("htmx:wsAfterMessage", () => {
  if (!running() && document.activeElement === stop) document.getElementById("scenarios").focus();
  stop.disabled = !running();
  showEnds();
});
page.addEventListener("htmx:wsAfterSend", () => {
  for (const old of document.querySelectorAll("#notices .banner")) old.remove();
});
page.addEventListener("click", (event) => {
  event.target.closest("[data-dismiss]")?.closest(".banner").remove();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running()) {
    event.preventDefault();
    stop.click();
  }
});
