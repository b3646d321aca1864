"use strict";
const index = JSON.parse(document.getElementById("index").textContent);
const parts = [...document.querySelectorAll("script.part")], read = [], SIZE = 25;
const find = (id) => document.getElementById(id);
const words = find("words"), task = find("task"), kind = find("kind");
// A stretch of rows has one task and one kind, so that a filter alone needs no row to be read.
let start = 0;
const stretches = index.stretches.map(([task, kind, count]) => ({ task, kind, from: start, to: (start += count) }));
let shown = [], page = 0, lower = null;

function row(number) {
  const place = Math.floor(number / index.part);
  if (!read[place]) {
    read[place] = JSON.parse(parts[place].textContent);
    parts[place].remove(); // its text is not needed twice
  }
  return read[place][number % index.part];
}

function stretchOf(number) {
  return stretches.find((one) => one.from <= number && number < one.to);
}

// In lower case, made at the first search.
function searched(number) {
  lower ??= [];
  return (lower[number] ??= row(number).slice(0, 4).join("\n").toLowerCase());
}

function choose() {
  const wanted = words.value.trim().toLowerCase();
  shown = [];
  for (const one of stretches) {
    if ((task.value && one.task !== Number(task.value)) || (kind.value && one.kind !== Number(kind.value))) continue;
    for (let number = one.from; number < one.to; number++) {
      if (!wanted || searched(number).includes(wanted)) shown.push(number);
    }
  }
  page = 0;
  show();
}

function element(name, text, style) {
  const made = document.createElement(name);
  made.textContent = text; // never markup
  if (style) made.className = style;
  return made;
}

function card(number) {
  const [prompt, reference, before, after, scoreBefore, scoreAfter] = row(number), one = stretchOf(number);
  const made = element("article", "", "card change"), list = document.createElement("dl");
  const scores = [scoreBefore, scoreAfter].map((score) => (100 * score).toFixed(1)).join(" → ");
  const what = one.kind ? "gained" : "lost";
  made.append(element("h3", `${index.tasks[one.task]} · ${what} · ${scores}`, one.kind ? "then" : "now"));
  made.append(element("p", prompt, "prompt"));
  list.append(element("dt", "Reference"), element("dd", reference));
  list.append(element("dt", "Answer before"), element("dd", before, one.kind ? "now" : "then"));
  list.append(element("dt", "Answer now"), element("dd", after, one.kind ? "then" : "now"));
  made.append(list);
  return made;
}

function show() {
  const pages = Math.max(1, Math.ceil(shown.length / SIZE)), many = shown.length.toLocaleString("en");
  find("rows").replaceChildren(...shown.slice(page * SIZE, (page + 1) * SIZE).map(card));
  find("shown").textContent = `${many} of ${start.toLocaleString("en")} rows`;
  find("page").textContent = `page ${(page + 1).toLocaleString("en")} of ${pages.toLocaleString("en")}`;
  find("back").disabled = page === 0;
  find("on").disabled = page + 1 === pages;
  find("paging").hidden = pages === 1;
}

function turn(by) {
  page += by;
  show();
  find("filter").scrollIntoView();
}

index.tasks.forEach((name, number) => task.add(new Option(name, number)));
let waiting = 0;
words.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(choose, 120);
});
task.addEventListener("change", choose);
kind.addEventListener("change", choose);
find("back").addEventListener("click", () => turn(-1));
find("on").addEventListener("click", () => turn(1));
find("filter").addEventListener("submit", (event) => event.preventDefault());
find("filter").hidden = false;
choose();
