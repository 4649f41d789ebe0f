"use strict";
for (const stack of document.querySelectorAll(".stack")) {
  const border = stack.querySelector("input");
  const selects = stack.parentElement.querySelectorAll("select");
  stack.prepend(stack.parentElement.querySelector("img.map").cloneNode());
  const show = () => {
    stack.style.setProperty("--at", border.value + "%");
    border.setAttribute("aria-valuetext", border.value + " percent from the left");
    for (const select of selects) {
      const side = select.dataset.side;
      for (const image of stack.querySelectorAll("img")) image.classList.toggle(side, image.dataset.layer === select.value);
      stack.querySelector(".tag." + side).textContent = select.selectedOptions[0].textContent;
    }
  };
  border.addEventListener("input", show);
  for (const select of selects) select.addEventListener("change", show);
  stack.classList.add("ready");
  show();
}

const value = (row, column) => {
  const text = row.cells[column].textContent.trim().replace("−", "-");
  const number = parseFloat(text.replace(/,/g, ""));
  return /^[-+]?[\d.]/.test(text) && !Number.isNaN(number) ? number : text;
};
const order = (a, b) =>
  typeof a === typeof b ? (typeof a === "number" ? a - b : a.localeCompare(b)) : typeof a === "number" ? -1 : 1;
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement, column = heading.cellIndex, body = heading.closest("table").tBodies[0];
    const falls = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", falls ? "descending" : "ascending");
    const rows = [...body.rows].map((row) => [value(row, column), row]);
    rows.sort((a, b) => (falls ? -1 : 1) * order(a[0], b[0]));
    body.append(...rows.map((pair) => pair[1]));
  });
}

const find = document.getElementById("find-site");
find.addEventListener("input", () => {
  const words = find.value.toLowerCase().split(/\s+/);
  for (const row of document.querySelector("#sites-table").tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
});

const drawing = document.getElementById("network-drawing");
for (const choice of document.querySelectorAll("input[name=colour-by]")) {
  choice.addEventListener("change", () => {
    drawing.dataset.by = choice.value;
    const bits = choice.value === "w" || choice.value === "a";
    document.querySelector(".for-bits").style.display = bits ? "" : "none";
    document.querySelector(".for-levels").style.display = bits ? "none" : "flex";
  });
}
