"use strict";
// Sorting: every column head becomes a button. A third press restores the order in which the table was written.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], written = [...body.rows], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const words = !written.some((row) => row.cells[column].hasAttribute("data-value"));
      const turns = words ? ["none", "ascending", "descending"] : ["none", "descending", "ascending"];
      const next = turns[(turns.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", next);
      body.append(...(next === "none" ? written : sorted(written, column, words, next === "ascending" ? 1 : -1)));
    });
  });
}

function sorted(rows, column, words, direction) {
  const key = (row) => {
    const cell = row.cells[column];
    if (words) return cell.dataset.text;
    return cell.hasAttribute("data-value") ? Number(cell.dataset.value) : null;
  };
  return [...rows].sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === null || b === null) return (a === null) - (b === null); // what has no number stays last
    return direction * (words ? a.localeCompare(b) : a - b);
  });
}

// Filtering: one field for all tables and heat maps of the page.
const form = document.getElementById("filter"), field = document.getElementById("words");
const clear = document.getElementById("clear-only"), shown = document.getElementById("shown");
const marked = [...document.querySelectorAll("[data-row]")];

function filter() {
  const words = field.value.toLowerCase().split(/[\s,]+/).filter(Boolean);
  for (const element of marked) {
    const name = element.dataset.name.toLowerCase();
    const named = !words.length || words.some((word) => name.includes(word));
    element.hidden = !(named && (!clear.checked || element.dataset.clear === "yes"));
  }
  const rows = [...document.querySelectorAll("#main tbody tr")];
  shown.textContent = rows.filter((row) => !row.hidden).length + " of " + rows.length + " rows shown";
}

form.hidden = false;
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
filter();
