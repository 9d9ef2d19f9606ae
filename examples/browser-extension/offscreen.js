// Where answers are guarded: one client for the settings as they are, one guarded answer for each port.

import { Sluicegate } from "./lib/sluicegate.js";

let written = "";
let gate = null;

chrome.runtime.onMessage.addListener(({ to, settings }, sender, answer) => {
  if (to !== "offscreen" || sender.tab) return; // settings come from background.js, never out of a page's process
  if (JSON.stringify(settings) !== written) {
    written = JSON.stringify(settings);
    gate = new Sluicegate({ ...settings, patienceMs: 8_000 });
  }
  answer(true);
});

chrome.runtime.onConnect.addListener((port) => {
  if (port.name !== "answer") return;
  const of = gate; // other settings may make another one meanwhile
  const { fail } = of;
  let answer = null;
  let lost = null; // what the page wrote since it rewrote what had been checked: that fits no session any more
  const tell = () => {
    const { visible, state, mode, reason, notice } = answer;
    const refused = of.refused && { code: of.refused.code, message: of.refused.message };
    port.postMessage({ visible, state, mode, reason, notice, refused, ...(state !== "blocked" && lost) });
  };
  port.onMessage.addListener(({ all, ended }) => {
    if (!answer) {
      answer = of.answer();
      for (const event of ["paint", "state"]) answer.addEventListener(event, tell);
      of.addEventListener("rules", tell);
      tell();
    }
    if (answer.state === "blocked") return; // and stays so, whatever the page writes now
    if (lost || !answer.update(all)) {
      const reason = { code: "rewritten", message: "The page rewrote what was already checked." };
      lost = { state: fail, reason, visible: fail === "open" ? all : answer.visible };
      tell();
      answer.finish();
    } else if (ended) answer.finish();
  });
  port.onDisconnect.addListener(() => {
    of.removeEventListener("rules", tell); // nobody listens any more
    answer?.finish();
  });
});
