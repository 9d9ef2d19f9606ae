// Another provider's models, another policy's lanes: where they cannot be had, the choice is taken back and that is
// said. Else the page would show one policy's guardrails and ask under another's.
import { notice } from "./notice.js";

const WHAT = { provider: "The models of", policy: "The guardrails of" };

export function startChoices() {
  const settings = document.getElementById("settings");
  const shown = new Map([...settings.querySelectorAll("[hx-get]")].map((choice) => [choice, choice.value]));

  const takeBack = (event, why) => {
    const choice = event.detail.elt;
    if (!shown.has(choice)) return;
    const words = `${WHAT[choice.name]} “${choice.selectedOptions[0].text}” could not be loaded: ${why}`;
    choice.value = shown.get(choice);
    notice(`no_${choice.name}`, `${words} “${choice.selectedOptions[0].text}” is still chosen.`);
  };
  settings.addEventListener("htmx:sendError", (event) => takeBack(event, "the server cannot be reached."));
  settings.addEventListener("htmx:timeout", (event) => takeBack(event, "the server does not answer."));
  settings.addEventListener("htmx:responseError", (event) => {
    takeBack(event, `the server refused it (${event.detail.xhr.status}).`);
  });
  settings.addEventListener("htmx:afterRequest", (event) => {
    const { elt, successful, requestConfig } = event.detail;
    if (!successful || !shown.has(elt)) return;
    shown.set(elt, requestConfig.parameters[elt.name]);
    document.querySelector(`#notices [data-error="no_${elt.name}"]`)?.remove();
  });
}
