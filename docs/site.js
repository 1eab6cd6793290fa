"use strict";
// What the theme makes after loading, for those who use a keyboard or hear the page: whatever is wider than the page can be
// scrolled with keys, and the buttons of each block of code are a region with a name of its own.
addEventListener("load", () => {
  const mend = () => {
    for (const box of document.querySelectorAll(".md-typeset__scrollwrap, .highlight code")) box.tabIndex = 0;
    document.querySelectorAll(".md-code__nav").forEach((nav, i) => nav.setAttribute("aria-label", `Code block ${i + 1}`));
  };
  mend();
  new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
});
