// Writing, sending and stopping by keyboard.

export function startComposer(page) {
  const forms = { ask: document.getElementById("ask"), own: document.getElementById("own") };
  const stop = document.getElementById("stop");
  const run = () => document.getElementById("run").dataset.run;
  const focusBox = () => Object.values(forms).find((form) => !form.hidden).querySelector("textarea").focus();
  const showStop = () => {
    const over = run() !== "streaming";
    if (over && document.activeElement === stop) focusBox(); // a button that goes away must not take the focus along
    stop.disabled = over;
  };
  page.addEventListener("htmx:wsAfterMessage", showStop);

  for (const button of page.querySelectorAll("[data-mode]")) {
    button.addEventListener("click", () => {
      for (const other of page.querySelectorAll("[data-mode]")) {
        other.setAttribute("aria-pressed", String(other === button));
      }
      for (const [mode, form] of Object.entries(forms)) form.hidden = mode !== button.dataset.mode;
      forms[button.dataset.mode].querySelector("textarea").focus();
    });
  }

  let sent = null; // a box and its text that is on its way: emptied when that was taken, kept when it was refused

  for (const form of Object.values(forms)) {
    const box = form.querySelector("textarea");
    box.addEventListener("keydown", (event) => {
      // While an input method composes, Enter picks a candidate.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || form === forms.own) return;
      event.preventDefault();
      form.requestSubmit();
    });
  }

  page.addEventListener("htmx:wsAfterMessage", (event) => {
    const message = event.detail.message;
    const taken = message.includes('data-type="message_new"');
    if (!sent || !(taken || message.includes('data-type="error"'))) return;
    // What was typed since is no part of what was sent.
    if (taken && sent.box.value === sent.text) sent.box.value = "";
    sent = null;
  });

  page.addEventListener("htmx:wsAfterSend", (event) => {
    const frame = JSON.parse(event.detail.message);
    if (frame.type === "start") {
      // Whatever begins now, the next answer is its own: a scenario has no box.
      const box = Object.values(forms).includes(event.target) ? event.target.querySelector("textarea") : null;
      sent = box && { box, text: frame[box.name] };
    }
    for (const old of document.querySelectorAll("#notices .banner")) old.remove();
  });

  page.addEventListener("click", (event) => {
    const button = event.target.closest("[data-dismiss]");
    if (!button) return;
    button.closest(".banner").remove();
    focusBox();
  });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && run() === "streaming") {
      event.preventDefault();
      stop.click();
    }
  });
}
