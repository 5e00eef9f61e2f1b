"use strict";
// Tables sort by the column whose header button is pressed; numbers as numbers, missing values last.
const value = (text) => (text === "inf" ? Infinity : Number(text));
const number = (text) => text.trim() !== "" && !Number.isNaN(value(text));
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const numeric = header.classList.contains("number");
      const now = header.getAttribute("aria-sort");
      const descending = now === null ? numeric : now === "ascending";
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.key;
      const rows = [...body.rows].sort((a, b) => {
        const x = key(a), y = key(b);
        if (x === "" || y === "") return (x === "") - (y === "");
        const both = numeric || (number(x) && number(y)); // settings and levels are words that may all be numbers
        const order = both ? value(x) - value(y) : x.localeCompare(y, "en", { numeric: true });
        return descending ? -order : order;
      });
      body.append(...rows);
      document.getElementById("said").textContent =
        `${table.caption.textContent.split(".")[0]}: sorted by ${header.textContent.trim()}, ${descending ? "descending" : "ascending"}.`;
    });
  });
}
