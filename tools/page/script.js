"use strict";
// Tables with controls sort by a click on a heading, or by the list of headings where those are not
// shown, and filter by words and by a column's value. Without this script the page is all there.

function valueOf(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.firstChild?.textContent.trim() ?? "";
  const number = Number.parseFloat(text);
  return text !== "" && !Number.isNaN(number) && /^[\d.]/.test(text) ? number : text;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return a.localeCompare(b, "en", { numeric: true });
}

function sort(table, column, descending) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
  rows.sort((a, b) => (descending ? compare(b[0], a[0]) : compare(a[0], b[0])));
  body.append(...rows.map((pair) => pair[1]));
  [...table.tHead.rows[0].cells].forEach((heading, i) => {
    if (i === column) heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else heading.removeAttribute("aria-sort");
  });
}

function filter(table, controls) {
  const names = [...table.tHead.rows[0].cells].map((heading) => heading.textContent.trim());
  const words = controls.querySelector("input").value.toLowerCase().split(/\s+/);
  const chosen = [...controls.querySelectorAll("select[data-column]")]
    .filter((select) => select.value !== "")
    .map((select) => [names.indexOf(select.dataset.column), select.value]);
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    const fits = chosen.every(([i, value]) => row.cells[i].firstChild?.textContent.trim().split(" and ").includes(value));
    row.hidden = !(fits && words.every((word) => text.includes(word)));
    shown += row.hidden ? 0 : 1;
  }
  controls.querySelector("output").textContent = `${shown} of ${table.tBodies[0].rows.length}`;
}

for (const controls of document.querySelectorAll(".controls")) {
  const table = document.getElementById(controls.querySelector("input").dataset.table);
  const order = controls.querySelector("select[data-sort]");
  order.append(new Option("as written", ""));
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const name = heading.textContent;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      sort(table, column, heading.getAttribute("aria-sort") === "ascending");
      order.value = "";
    });
    order.append(new Option(`${name}, rising`, `${column} 0`), new Option(`${name}, falling`, `${column} 1`));
  });
  order.addEventListener("change", () => {
    const [column, descending] = order.value.split(" ").map(Number);
    if (order.value !== "") sort(table, column, descending === 1);
  });
  for (const event of ["input", "change"]) {
    controls.addEventListener(event, () => filter(table, controls));
  }
  filter(table, controls);
}
