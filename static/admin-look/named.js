// The theme's boxes that search (select2) bear no name for a screen reader: each gets that of the field it stands for.
// The boxes are made when the page has been read, and made again in forms that are added.
"use strict";
(() => {
  const name = () => {
    for (const box of document.querySelectorAll("select + .select2-container")) {
      const said = box.previousElementSibling.labels[0]?.textContent.trim();
      if (!said) continue;
      for (const part of box.querySelectorAll("[role=combobox], [role=searchbox]")) part.setAttribute("aria-label", said);
    }
  };
  new MutationObserver(name).observe(document, { childList: true, subtree: true });
})();
