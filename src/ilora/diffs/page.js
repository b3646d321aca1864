"use strict";
const index = JSON.parse(document.getElementById("index").textContent);
const parts = [...document.querySelectorAll("script.part")], SIZE = 25, KEPT = 2;
const find = (id) => document.getElementById(id);
const words = find("words"), task = find("task"), kind = find("kind");
// A stretch of rows has one task and one kind, so that a filter alone needs no row to be read.
let start = 0;
const stretches = index.stretches.map(([task, kind, count]) => ({ task, kind, from: start, to: (start += count) }));
let shown = [], page = 0;
const read = new Map(), lower = [], encoder = new TextEncoder();

// The rows of a part. As objects they take several times the room of their text, so only the last KEPT parts stay.
function rowsOf(place) {
  const rows = read.get(place) ?? JSON.parse(parts[place].textContent);
  read.delete(place);
  read.set(place, rows);
  if (read.size > KEPT) read.delete(read.keys().next().value);
  return rows;
}

function row(number) {
  return rowsOf(Math.floor(number / index.part))[number % index.part];
}

function stretchOf(number) {
  return stretches.find((one) => one.from <= number && number < one.to);
}

// The texts of a part in lower case, and where each row ends in them. Made at the first search, and in UTF-8: a string
// with one letter that is not Latin would take twice the room.
function searched(place) {
  if (!lower[place]) {
    const rows = JSON.parse(parts[place].textContent), ends = new Uint32Array(rows.length);
    const texts = rows.map((row) => row.slice(0, 4).join("\n").replaceAll("\0", " ").toLowerCase() + "\0");
    const bytes = encoder.encode(texts.join(""));
    for (let at = 0, end = 0; at < ends.length; at++) ends[at] = end = bytes.indexOf(0, end) + 1;
    lower[place] = { bytes, ends };
  }
  return lower[place];
}

// Where the wanted bytes are next, from a place on; -1: nowhere.
function next(bytes, wanted, from) {
  for (let at = bytes.indexOf(wanted[0], from); at >= 0; at = bytes.indexOf(wanted[0], at + 1)) {
    let same = 1;
    while (same < wanted.length && bytes[at + same] === wanted[same]) same++;
    if (same === wanted.length) return at;
  }
  return -1;
}

// Adds the rows of a part that hold the words, from the row `from` to before the row `to`.
function search(place, wanted, from, to) {
  const { bytes, ends } = searched(place), first = place * index.part, last = Math.min(ends.length, to - first);
  let at = Math.max(0, from - first), found = at ? ends[at - 1] : 0;
  while (at < last && (found = next(bytes, wanted, found)) >= 0) {
    while (at < last && ends[at] <= found) at++;
    if (at < last) shown.push(first + at);
    found = ends[at++];
  }
}

function choose() {
  const wanted = encoder.encode(words.value.trim().toLowerCase());
  shown = [];
  for (const one of stretches) {
    if ((task.value && one.task !== Number(task.value)) || (kind.value && one.kind !== Number(kind.value))) continue;
    if (!wanted.length) for (let number = one.from; number < one.to; number++) shown.push(number);
    else for (let at = Math.floor(one.from / index.part); at * index.part < one.to; at++) search(at, wanted, one.from, one.to);
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
