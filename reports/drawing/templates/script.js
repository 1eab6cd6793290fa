"use strict";
// Everything on the page can be read without this script; it adds sorting, one threat at a time, and copying.
document.documentElement.classList.add("js");
document.addEventListener("DOMContentLoaded", () => {
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    node.className = className;
    node.textContent = text;
    return node;
  };

  // Sorting: a button in each head, numbers from data-v, rows without a number last in both directions.
  const sort = (table, at, numeric, up) => {
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
      const value = (row) => {
        const cell = row.cells[at];
        if (!numeric) return cell.textContent.trim();
        return "v" in cell.dataset ? Number(cell.dataset.v) : null;
      };
      const keyed = rows.map((row) => [value(row), row]);
      keyed.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        const order = numeric ? a - b : a.localeCompare(b, "en", { numeric: true });
        return up ? order : -order;
      });
      body.append(...keyed.map(([, row]) => row));
    }
  };
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, at) => {
      if (head.classList.contains("graph")) return;
      const button = make("button", "sort", "");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const numeric = head.dataset.sort === "num";
        const before = head.getAttribute("aria-sort");
        const up = before ? before === "descending" : !numeric;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        sort(table, at, numeric, up);
      });
    });
  }

  // One threat at a time.
  const select = (box, anchor) => {
    for (const radio of box.querySelectorAll("input")) radio.checked = radio.value === anchor;
    for (const panel of box.parentElement.querySelectorAll(".panel")) panel.hidden = panel.id !== anchor;
  };
  for (const box of document.querySelectorAll("[data-threats]")) {
    const chosen = box.querySelector("input:checked") || box.querySelector("input");
    select(box, chosen.value);
    box.addEventListener("change", (event) => select(box, event.target.value));
  }

  // A link may lead into a folded card or a hidden panel.
  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    const panel = target.closest(".panel");
    const box = panel && panel.parentElement.querySelector("[data-threats]");
    if (box) select(box, panel.id);
    for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (link && link.hash === location.hash) reveal(); // the same link again changes no hash
  });
  reveal();

  // Pointing at a legend entry brings its line forward.
  for (const box of document.querySelectorAll("[data-curves]")) {
    const light = (name) => {
      box.classList.toggle("lit", name !== null);
      for (const node of box.querySelectorAll("[data-line]")) node.classList.toggle("on", node.dataset.line === name);
    };
    for (const item of box.querySelectorAll("li[data-line]")) {
      item.addEventListener("pointerenter", () => light(item.dataset.line));
      item.addEventListener("pointerleave", () => light(null));
    }
  }

  // Rows that hold every word that was typed, in their name if they have one; those of one name count once.
  for (const box of document.querySelectorAll("input[data-filter]")) {
    const rows = [...document.querySelectorAll("[data-row]")];
    const said = document.querySelector("[data-filtered]");
    const count = (some) => new Set(some.map((row) => row.dataset.row || row)).size;
    box.addEventListener("input", () => {
      const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const text = (row.dataset.row || row.textContent).toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
      const left = rows.filter((row) => !row.hidden);
      said.textContent = words.length ? `${count(left)} of ${count(rows)} ${box.dataset.filter}` : "";
    });
  }

  for (const code of document.querySelectorAll("code[data-copy]")) {
    const button = make("button", "copy", "Copy");
    button.type = "button";
    button.setAttribute("aria-label", "Copy the command");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    if (code.closest("table")) code.before(button);
    else code.after(button);
  }
});
