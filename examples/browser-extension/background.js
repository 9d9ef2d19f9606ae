// Keeps the page in which answers are guarded (offscreen.html: a service worker may have no workers of its own), and
// hands it the settings. The API key is read here and there, never in a web page.

const DEFAULTS = { url: "http://127.0.0.1:8000", key: "", root: "", policy: "", issuer: "sluicegate", fail: "closed" };
let opening = null;

// Without this, content scripts, which run in the processes of web pages, could read the key as well.
chrome.storage.local.setAccessLevel({ accessLevel: "TRUSTED_CONTEXTS" });

async function open() {
  const there = await chrome.runtime.getContexts({ contextTypes: ["OFFSCREEN_DOCUMENT"] });
  if (!there.length) {
    await chrome.offscreen.createDocument({
      url: "offscreen.html",
      reasons: ["WORKERS"],
      justification: "Signed rules run in a worker that can be ended when it hangs.",
    });
  }
  const settings = { ...DEFAULTS, ...(await chrome.storage.local.get(Object.keys(DEFAULTS))) };
  settings.issuer ||= DEFAULTS.issuer;
  await chrome.runtime.sendMessage({ to: "offscreen", settings });
  return settings.fail;
}

chrome.runtime.onMessage.addListener(({ to }, sender, answer) => {
  if (to !== "background") return false;
  opening ??= open().finally(() => (opening = null)); // many answers may begin at once: one page
  opening.then(
    (fail) => answer({ ready: true, fail }),
    (error) => answer({ ready: false, message: `${error}` }),
  );
  return true; // the answer comes later
});

chrome.storage.local.onChanged.addListener(() => {
  opening ??= open().finally(() => (opening = null));
});

chrome.runtime.onInstalled.addListener(({ reason }) => {
  if (reason === "install") chrome.runtime.openOptionsPage();
});
