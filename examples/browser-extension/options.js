// The settings: server, key, pinned root, policy, and what happens when nobody can say what may be shown.

const form = document.querySelector("form");
const output = document.querySelector("output");
const NAMES = ["url", "key", "root", "policy", "issuer", "fail"];

chrome.storage.local.get(NAMES).then((kept) => {
  for (const name of NAMES) if (name in kept) form.elements[name].value = kept[name];
});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const settings = Object.fromEntries(NAMES.map((name) => [name, form.elements[name].value.trim()]));
  const origins = [`${new URL(settings.url).protocol}//${new URL(settings.url).hostname}/*`];
  const allowed = (await chrome.permissions.contains({ origins })) || (await chrome.permissions.request({ origins }));
  if (!allowed) {
    output.textContent = "Not saved: the extension may not ask this server.";
    return;
  }
  await chrome.storage.local.set(settings);
  output.textContent = "Saved.";
});
