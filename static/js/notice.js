// What the page itself has to say, where the server's messages stand and in their form. Words only, never markup.

export function notice(code, words) {
  const banner = document.createElement("div");
  banner.className = "banner banner-note";
  banner.dataset.error = code;
  const title = document.createElement("strong");
  title.className = "banner-title";
  const sign = document.createElement("span");
  sign.ariaHidden = "true";
  sign.textContent = "!";
  title.append(sign, " Trouble");
  const text = document.createElement("p");
  text.textContent = words;
  const dismiss = document.createElement("button");
  dismiss.type = "button";
  dismiss.className = "dismiss";
  dismiss.dataset.dismiss = "";
  dismiss.ariaLabel = "Dismiss this message";
  dismiss.textContent = "×";
  banner.append(title, text, dismiss);
  const place = document.getElementById("notices");
  for (const old of place.querySelectorAll(`[data-error="${code}"]`)) old.remove();
  place.append(banner);
  banner.role = "alert"; // set when it stands there, so that it is read out
}
