// One button: as the system, light, dark.

const NEXT = { auto: "light", light: "dark", dark: "auto" };
const SIGN = { auto: "◐", light: "○", dark: "●" };

export function startThemeButton() {
  const button = document.getElementById("theme");
  const root = document.documentElement;
  const show = () => {
    const now = root.dataset.theme ?? "auto";
    button.firstChild.textContent = `${SIGN[now]} `;
    button.querySelector("span").textContent = now;
    button.setAttribute("aria-label", `Colours: ${now === "auto" ? "as the system" : now}`);
  };
  button.addEventListener("click", () => {
    const next = NEXT[root.dataset.theme ?? "auto"];
    if (next === "auto") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      if (next === "auto") localStorage.removeItem("theme");
      else localStorage.setItem("theme", next);
    } catch {
      // Storage may be forbidden; the choice then lasts as long as the page.
    }
    show();
  });
  show();
}
