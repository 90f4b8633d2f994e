"use strict";
// Elements, numbers and axes.  Text only ever enters as text, so that no name can become markup.

const SVG = document.getElementById("pen").namespaceURI;

/** An HTML element with attributes and children; strings become text, null nothing. */
function el(name, attributes = {}, ...children) {
  return furnish(document.createElement(name), attributes, children);
}

/** The same for SVG. */
function svg(name, attributes = {}, ...children) {
  return furnish(document.createElementNS(SVG, name), attributes, children);
}

function furnish(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

// --- numbers ---------------------------------------------------------------------------------------------

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

/** 10 to a whole power, as it is written by hand. */
function powerOfTen(exponent) {
  if (exponent >= -3 && exponent <= 3) return String(Number(`1e${exponent}`));
  const digits = [...String(Math.abs(exponent))].map((digit) => SUPERSCRIPTS[Number(digit)]).join("");
  return `10${exponent < 0 ? "⁻" : ""}${digits}`;
}

/** A number with about `digits` significant digits, short. */
function short(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-3 && size < 1e5) return String(Number(value.toPrecision(digits))).replace("-", "−");
  const exponent = Math.floor(Math.log10(size));
  const mantissa = Number((value / 10 ** exponent).toPrecision(Math.min(digits, 3)));
  return `${mantissa === 1 ? "" : `${mantissa} × `}${powerOfTen(exponent)}`.replace("-", "−");
}

/** With a fixed number of decimals, so that a column of them lines up. */
function fixed(value, digits = 3) {
  return value === null || value === undefined || !Number.isFinite(value) ? "–" : value.toFixed(digits).replace("-", "−");
}

function bytes(count) {
  if (count === null || count === undefined) return "–";
  for (const [unit, size] of [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (count >= size) return `${Number((count / size).toPrecision(3))} ${unit}`;
  }
  return `${Math.round(count)} B`;
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 7200) return `${Number((value / 3600).toPrecision(3))} h`;
  if (value >= 120) return `${Number((value / 60).toPrecision(3))} min`;
  return `${Number(value.toPrecision(3))} s`;
}

function count(value) {
  return Math.round(value).toLocaleString("en");
}

// --- scales ----------------------------------------------------------------------------------------------

/** From a domain to pixels: `at(value)`, and `ticks`, round values inside. */
function linear(low, high, from, to, most) {
  if (!(high > low)) [low, high] = [low - 0.5, high + 0.5];
  const step = niceStep((high - low) / Math.max(1, most));
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(Number((i * step).toPrecision(12)));
  return { at: (value) => from + ((value - low) / (high - low)) * (to - from), ticks, low, high };
}

function logarithmic(low, high, from, to, most) {
  let [first, last] = [Math.floor(Math.log10(low) + 1e-9), Math.ceil(Math.log10(high) - 1e-9)];
  if (last <= first) last = first + 1;
  const step = Math.max(1, Math.ceil((last - first) / Math.max(1, most)));
  const ticks = [];
  for (let exponent = first; exponent <= last; exponent += step) ticks.push(10 ** exponent);
  const at = (value) => from + ((Math.log10(value) - first) / (last - first)) * (to - from);
  return { at, ticks, low: 10 ** first, high: 10 ** last };
}

function niceStep(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  return [1, 2, 5, 10].find((multiple) => multiple * power >= step * 0.999) * power;
}

/** SVG path data through points [x, y]. */
function pathOf(points) {
  return points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

/** Draw again whenever `host` gets another width; what is drawn takes the width in pixels. */
function drawn(host, draw) {
  let width = 0;
  const redraw = () => {
    width = host.clientWidth;
    if (width > 0) host.replaceChildren(...[draw(width)].flat());
  };
  new ResizeObserver(() => {
    if (Math.abs(host.clientWidth - width) >= 1) redraw();
  }).observe(host);
  redraw();
  return redraw;
}
