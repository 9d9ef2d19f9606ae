// Where answers are guarded: one client for the settings as they are, one guarded answer for each port.

import { Sluicegate } from "./lib/sluicegate.js";

let written = "";
let gate = null;

chrome.runtime.onMessage.addListener(({ to, settings }, sender, answer) => {
  if (to !== "offscreen" || sender.tab) return; // settings come from background.js, never out of a page's process
  if (JSON.stringify(settings) !== written) {
    written = JSON.stringify(settings);
    gate = new Sluicegate({ ...settings, rulesMs: 4_000, patienceMs: 8_000 });
  }
  answer(true);
});

chrome.runtime.onConnect.addListener((port) => {
  if (port.name !== "answer") return;
  let answer = null;
  const tell = () => {
    const { visible, state, mode, reason, notice } = answer;
    port.postMessage({ visible, state, mode, reason, notice });
  };
  port.onMessage.addListener(({ all, ended }) => {
    if (!answer) {
      answer = gate.answer();
      for (const event of ["paint", "state"]) answer.addEventListener(event, tell);
      tell();
    }
    if (!answer.update(all)) {
      const reason = { code: "rewritten", message: "The page rewrote what was already checked." };
      port.postMessage({ visible: answer.visible, state: "closed", mode: answer.mode, reason, notice: answer.notice });
      port.disconnect();
      answer.finish();
    } else if (ended) answer.finish();
  });
  port.onDisconnect.addListener(() => answer?.finish());
});
