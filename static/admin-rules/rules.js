/* The rule form: adds, moves and removes entries, asks the server what the draft costs while somebody types, and sends
   all fields as one value (a policy with an imported pack has thousands of them). All markup comes from the server,
   which escaped it; nothing that was typed is ever put into the page as markup. */

const rules = document.getElementById("rules");
const PAUSE_MS = 250;
const MOST_ROUNDS = 20;

function pairs(data) {
  return [...data].filter(([name, value]) => name.startsWith("f.") && typeof value === "string");
}

function start(root, form) {
  const file = root.querySelector("textarea[name=draft]");
  const summary = document.getElementById("rules-summary");
  let next = 0;
  let timer = 0;
  let asking = null;
  let fileIsOurs = !root.querySelector(".rules-file[open]");

  // -- lists --------------------------------------------------------------------------------------------------------

  const own = (list) => [...list.children].filter((node) => node.dataset.item !== undefined);

  function fromBlank(id, list) {
    const token = `n${next++}`;
    const holder = document.createElement("template");
    holder.innerHTML = document.getElementById(id).innerHTML.replaceAll("NEW-ITEM", `${list.dataset.list}.${token}`);
    const item = holder.content.firstElementChild;
    const mark = item.querySelector(":scope > input[data-token]");
    mark.name = list.dataset.list;
    mark.value = token;
    list.append(item);
    item.querySelectorAll("[data-switch]").forEach(showOptions);
    const first = item.querySelector("input:not([type=hidden]), textarea, select");
    if (first) first.focus();
    changed();
  }

  function press(event) {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.add) {
      fromBlank(button.dataset.add, button.parentElement.querySelector(":scope > [data-list]"));
    } else if ("addCard" in button.dataset) {
      fromBlank(`blank-card-${root.querySelector("#rules-kind").value}`, root.querySelector("[data-list='f.guardrails']"));
    } else if ("remove" in button.dataset) {
      const item = button.closest("[data-item]");
      const list = item.parentElement;
      const place = own(list).indexOf(item);
      item.remove();
      const left = own(list);
      const near = left[Math.min(place, left.length - 1)];
      const focus = near ? near.querySelector("[data-remove]") : list.parentElement.querySelector("[data-add], [data-add-card]");
      if (focus) focus.focus();
      changed();
    } else if (button.dataset.move) {
      const item = button.closest("[data-item]");
      const all = own(item.parentElement);
      const other = all[all.indexOf(item) + (button.dataset.move === "up" ? -1 : 1)];
      if (!other) return;
      if (button.dataset.move === "up") other.before(item);
      else other.after(item);
      button.focus();
      changed();
    }
  }

  function showOptions(field) {
    field.querySelector("[data-options]").hidden = field.querySelector("select").value !== "options";
  }

  // -- what the draft costs -----------------------------------------------------------------------------------------

  // What is said of the draft is old from the first stroke on; who only listens hears the new words when they are there.
  function changed() {
    summary.ariaBusy = "true";
    if (!summary.querySelector("[data-examining]")) {
      say("Examining…");
      summary.firstChild.dataset.examining = "";
    }
    clearTimeout(timer);
    timer = setTimeout(() => ask(0), PAUSE_MS);
  }

  async function ask(round) {
    if (asking) asking.abort();
    const mine = (asking = new AbortController());
    try {
      const response = await fetch(root.dataset.lint, {
        method: "POST",
        signal: mine.signal,
        headers: {
          "Content-Type": "application/json",
          "X-CSRFToken": form.querySelector("input[name=csrfmiddlewaretoken]").value,
        },
        body: JSON.stringify(pairs(new FormData(form))),
      });
      if (!response.headers.get("Content-Type")?.startsWith("application/json")) {
        if (mine === asking) over(notExamined(response));
        return;
      }
      const answer = await response.json();
      if (mine !== asking) return;
      if (!response.ok) over(answer.detail || `The server answered ${response.status}.`);
      else if (show(answer) && round < MOST_ROUNDS) ask(round + 1);
      else summary.ariaBusy = "false";
    } catch (error) {
      if (error.name === "AbortError" || mine !== asking) return;
      over("Not examined: the server cannot be reached. Saving examines everything.");
    }
  }

  function unfold(place) {
    for (let at = place.closest("details"); at && root.contains(at); at = at.parentElement.closest("details")) at.open = true;
  }

  // A page instead of facts: the login page after a redirect, or a refusal (403: the form is older than the session).
  function notExamined(response) {
    if (response.redirected || response.status === 403) {
      return "Not examined: you are signed out, and this form cannot be saved any more. Copy what you wrote, and open it anew.";
    }
    return `Not examined: the server answered ${response.status} and no facts. Saving examines everything.`;
  }

  function over(text) {
    say(text);
    summary.ariaBusy = "false";
  }

  function say(text) {
    const line = document.createElement("p");
    line.textContent = text;
    summary.replaceChildren(line);
  }

  function show(answer) {
    for (const place of root.querySelectorAll("[data-problem]")) {
      const name = place.id.slice(0, -"-problem".length);
      const text = answer.problems[name] ?? "";
      if (place.textContent !== text) {
        place.textContent = text;
        if (text) unfold(place);
      }
      const field = document.getElementById(name);
      if (field) field.setAttribute("aria-invalid", text ? "true" : "false");
    }
    for (const place of root.querySelectorAll("[data-facts]")) {
      const markup = answer.slots[place.id.slice(0, -"-facts".length)] ?? "";
      if (place.dataset.shown === markup) continue;
      place.dataset.shown = markup;
      const open = place.querySelector("details[open]") !== null;
      place.innerHTML = markup;
      if (open) place.querySelector("details")?.setAttribute("open", "");
    }
    for (const card of root.querySelectorAll(".rules-card")) {
      const troubled = [...card.querySelectorAll("[data-problem]")].some((place) => place.textContent.trim());
      card.classList.toggle("rules-troubled", troubled);
      const title = document.getElementById(`${card.dataset.item}.name`);
      if (title) card.querySelector("[data-title]").textContent = title.value;
    }
    summary.innerHTML = answer.summary;
    if (answer.file && fileIsOurs) file.value = answer.file;
    return answer.unfinished;
  }

  // -- wiring -------------------------------------------------------------------------------------------------------

  root.addEventListener("click", press);
  root.addEventListener("input", (event) => {
    if (event.target === file) fileIsOurs = false;
    else changed();
  });
  root.addEventListener("change", (event) => {
    const field = event.target.closest("[data-switch]");
    if (field) showOptions(field);
  });
  root.querySelectorAll("[data-switch]").forEach(showOptions);
  // Enter in a one-line field would press the first button of the form, whatever that is.
  root.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches("input[type=text]")) event.preventDefault();
  });
  form.addEventListener("formdata", (event) => {
    if (!event.formData.has("csrfmiddlewaretoken") || !sending) return;
    const all = pairs(event.formData);
    for (const [name] of all) event.formData.delete(name);
    event.formData.set("fields_sent", JSON.stringify(all));
  });
  let sending = false;
  form.addEventListener("submit", () => {
    sending = true; // ``new FormData(form)`` above raises the same event, and must see the fields one by one
    setTimeout(() => { sending = false; }, 0);
  });
  ask(0);
}

if (rules) start(rules, rules.closest("form"));
