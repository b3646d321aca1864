"use strict";
const paths = JSON.parse(document.getElementById("data").textContent);
const choice = document.getElementById("path"), slider = document.getElementById("t");
const place = document.getElementById("where"), body = document.getElementById("rows");

function cell(row, text) {
  const made = document.createElement("td");
  made.textContent = text;
  row.append(made);
  return made;
}

function loss(value, error) {
  return value.toFixed(3) + (error === null ? "" : " ± " + error.toFixed(3));
}

function show() {
  const path = paths[choice.value], at = Number(slider.value);
  place.textContent = "t = " + path.ts[at].toFixed(3) + (path.ts[at] === path.best ? " (highest mean score)" : "");
  body.replaceChildren(...path.rows.map((task) => {
    const row = document.createElement("tr"), [score, shown, ...losses] = task.cells[at];
    cell(row, task.title);
    const bar = document.createElement("meter");
    bar.max = 1;
    bar.value = score;
    cell(row, "").append(bar);
    cell(row, shown);
    cell(row, loss(...losses));
    return row;
  }));
}

function choose() {
  const path = paths[choice.value];
  slider.max = path.ts.length - 1;
  slider.value = path.ts.indexOf(path.best);
  show();
}

paths.forEach((path, index) => choice.add(new Option(path.title, index)));
choice.addEventListener("change", choose);
slider.addEventListener("input", show);
if (paths.length) choose();
