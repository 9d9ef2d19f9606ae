// The page of three lanes: the same socket rules as the live page, and Esc to stop.
import { oncePerFrame } from "./frame.js";
import { notice } from "./notice.js";
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
// The two lanes without a gate end with their socket, and the clock of all three stops with it: what came after a pause
// of the network could not be compared. The gated lane's text is resumed like every other session's.
page.addEventListener("htmx:wsOpen", () => {
  const cut = page.querySelectorAll(".lane-figures[data-under-way]");
  for (const figures of cut) {
    delete figures.dataset.underWay;
    for (const figure of figures.querySelectorAll("dd")) {
      if (figure.textContent.trim() === "–") figure.textContent = "cut off";
    }
  }
  if (!cut.length) return;
  document.getElementById("buffered-wait").hidden = true;
  notice("cut_off", "This comparison was cut off with the connection, so its figures are not complete. Run it again.");
});
page.addEventListener("htmx:wsAfterSend", () => {
  for (const old of document.querySelectorAll("#notices .banner")) old.remove();
});
page.addEventListener("click", (event) => {
  const button = event.target.closest("[data-dismiss]");
  if (!button) return;
  button.closest(".banner").remove();
  document.getElementById("scenarios").focus(); // a message that goes away must not take the focus along
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running()) {
    event.preventDefault();
    stop.click();
  }
});
