"use strict";
// What the page is made of. What comes from outside is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "tone") made.dataset.tone = value;
    else if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// Only what has changed is touched: readers' selections and screen readers' places stay.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function setData(node, name, value) {
  if (node.dataset[name] !== value) node.dataset[name] = value;
}

// Calls `fill` with the node only where what it is to show, `shown`, is not what it shows already.
function refill(node, shown, fill) {
  const key = JSON.stringify(shown);
  if (node.shows === key) return;
  node.shows = key;
  node.replaceChildren(...fill());
}

function facts(list, labels) {
  const values = {};
  for (const [key, label] of labels) {
    values[key] = element("dd");
    list.append(element("div", {}, element("dt", { textContent: label }), values[key]));
  }
  return values;
}

// Numbers, times and words

const count = (number) => number.toLocaleString("en");
const words = (name) => name.replaceAll("_", " ");
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");

function duration(seconds) {
  if (seconds === null) return "–";
  if (seconds < 0.001) return `${(seconds * 1e6).toPrecision(3) * 1} µs`;
  if (seconds < 1) return `${(seconds * 1000).toPrecision(3) * 1} ms`;
  return `${seconds.toPrecision(3) * 1} s`;
}

// In the largest unit of which there is one, for what takes long.
function roughly(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86400)} days`;
}

function perSecond(number) {
  if (number === 0) return "0 / s";
  return `${number < 0.01 ? "< 0.01" : number < 10 ? Math.round(number * 100) / 100 : count(Math.round(number))} / s`;
}

function percent(part) {
  if (part === null) return "–";
  if (part === 0) return "0 %";
  return `${part < 0.001 ? "< 0.1" : Math.round(part * 1000) / 10} %`;
}

// What is old fades: how old something is that happened at `seconds`.
function ageOf(seconds, now) {
  const age = now - seconds;
  return age < 60 ? "new" : age < 600 ? "recent" : "old";
}

const ago = (seconds, now) => (now - seconds < 60 ? "just now" : `${roughly(now - seconds)} ago`);
const moment = (seconds, now) =>
  now - seconds < 64800 ? clock(seconds) : `${new Date(seconds * 1000).toLocaleDateString("en-CA")} ${clock(seconds)}`;

// Plots

const BARS = [["failures", (slot) => slot.failures], ["denials", (slot) => slot.denials],
  ["calls", (slot) => slot.calls - slot.denials - slot.failures]];

function bars(slots) {
  const width = 600 / slots.length;
  const most = Math.max(1, ...slots.map((slot) => slot.calls));
  const shapes = [shape("line", { class: "axis", x1: 0, x2: 600, y1: 50, y2: 50 })];
  slots.forEach((slot, index) => {
    let top = 50;
    for (const [name, numberOf] of BARS) {
      const number = numberOf(slot);
      if (number <= 0) continue;
      const height = Math.max(1.5, (number / most) * 46);
      top -= height;
      shapes.push(shape("rect", { class: name, x: index * width + 1, width: width - 2, y: Math.max(0, top), height }));
    }
  });
  return shapes;
}

// A line for each run of slots that have a value: where there is none, there is no line.
function lines(slots, name, slowest) {
  const width = 600 / slots.length;
  const shapes = [];
  let points = [];
  const end = () => {
    if (points.length === 1) {
      const [[x, y]] = points;
      points = [[x - width / 2, y], [x + width / 2, y]];
    }
    if (points.length) shapes.push(shape("polyline", { class: name, points: points.map(String).join(" ") }));
    points = [];
  };
  slots.forEach((slot, index) => {
    if (slot[name] === null) end();
    else points.push([(index + 0.5) * width, 88 - (slot[name] / slowest) * 34]);
  });
  end();
  return shapes;
}

function described(slots, noun) {
  const sum = (name) => slots.reduce((total, slot) => total + slot[name], 0);
  return `Last ten minutes: ${plural(sum("calls"), noun)}, ${plural(sum("denials"), "denial")}, ` +
    `${plural(sum("failures"), "failure")}; at most ${count(Math.max(0, ...slots.map((slot) => slot.calls)))} in ten seconds`;
}

// Pages

const PHONE = matchMedia("(max-width: 40rem)");

class Pager {
  constructor(node, large, small) {
    this.node = node;
    this.size = () => (PHONE.matches ? small : large);
    this.page = 0;
    this.back = element("button", { type: "button", textContent: "Previous" });
    this.next = element("button", { type: "button", textContent: "Next" });
    this.where = element("span");
    this.back.addEventListener("click", () => this.turn(-1));
    this.next.addEventListener("click", () => this.turn(1));
    node.append(this.back, this.where, this.next);
  }

  turn(by) {
    const button = by < 0 ? this.back : this.next;
    if (button.getAttribute("aria-disabled") === "true") return;
    this.page += by;
    show();
  }

  // The items of the page that is looked at.
  of(items) {
    const size = this.size();
    const pages = Math.max(1, Math.ceil(items.length / size));
    this.page = Math.min(this.page, pages - 1);
    const first = this.page * size;
    this.node.hidden = pages === 1;
    // A button that is disabled loses the focus: it is only said to be.
    this.say(this.back, this.page > 0);
    this.say(this.next, this.page < pages - 1);
    setText(this.where, `${count(first + 1)} to ${count(Math.min(first + size, items.length))} of ${count(items.length)}`);
    return items.slice(first, first + size);
  }

  say(button, enabled) {
    button.setAttribute("aria-disabled", String(!enabled));
  }
}
