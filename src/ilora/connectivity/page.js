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

function number(value, error, factor, digits) {
  const spread = error === null ? "" : " ± " + (factor * error).toFixed(digits);
  return (factor * value).toFixed(digits) + spread;
}

function show() {
  const path = paths[choice.value], at = Number(slider.value);
  place.textContent = "t = " + path.ts[at].toFixed(3) + (path.ts[at] === path.best ? " (highest mean score)" : "");
  body.replaceChildren(...path.rows.map((task) => {
    const row = document.createElement("tr"), [score, scoreError, loss, lossError] = task.cells[at];
    cell(row, task.title);
    const bar = document.createElement("meter");
    bar.max = 1;
    bar.value = score;
    cell(row, "").append(bar);
    cell(row, number(score, scoreError, 100, 1));
    cell(row, number(loss, lossError, 1, 3));
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
