// What all explorables share. Each page computes in a few plain functions, which `explore` hands to the
// tests, and redraws itself whole when something moved.
"use strict";
const $ = (id) => document.getElementById(id);
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
const visible = (word) => word.replace(/\n/g, "↵").trim() || "␣";
const whole = (n) => Math.round(n).toLocaleString("en-US");

// A drawing's element with attributes, put into its parent; colours are the style's variables.
function draw(parent, kind, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

// A line through points [x, y].
function curve(parent, points, attributes) {
  const path = points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  return draw(parent, "path", { d: path, fill: "none", "stroke-width": 2, ...attributes });
}

// An element of the page.
function element(kind, attributes = {}, ...inside) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...inside);
  return made;
}

// Empty a drawing and make one unit of it one pixel, so that words keep their size on a phone.
function stage(id, height) {
  const svg = $(id), width = svg.clientWidth || 728;
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  return [svg, width];
}

// Call `update` now and whenever a control of the page moves; a slider's value stands beside it.
function watch(update) {
  const all = () => {
    for (const slider of document.querySelectorAll("input[type=range]"))
      if (!slider.dataset.own) slider.parentElement.querySelector("output").textContent = slider.value;
    update();
  };
  for (const control of document.querySelectorAll("input, select, textarea"))
    control.addEventListener("input", all);
  addEventListener("resize", all);
  all();
  return all;
}

// Options for a <select>: [value, words] each.
function fill(select, options) {
  for (const [value, words] of options) $(select).append(element("option", { value }, words));
}
