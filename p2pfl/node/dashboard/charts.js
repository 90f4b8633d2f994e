"use strict";
// Charts: each draws itself into a host element of fixed height, at whatever width the host has.

const HEIGHT = 280;
const TALL = 360;
const MARGIN = { top: 14, right: 14, bottom: 38, left: 58 };

/**
 * Lines with bands over one horizontal axis, with a cursor for pointer and arrow keys.
 *
 * spec: title, summary (a sentence for who cannot see it), x and y ({label, format, log, values}),
 * lines [{name, tone, points [{x, y, low, high}], hasBand, isFaint, isMarked, isGuide}], levels [{name, y}],
 * marks [{name, x}].   returns: what draws another spec.
 */
function lineChart(host, spec) {
  let current = spec;
  let cursor = null;
  const spoken = el("p", { class: "spoken", "aria-live": "polite" });
  const plot = el("div", { class: "plot" });
  host.replaceChildren(plot, spoken);
  const redraw = drawn(plot, (width) => {
    const found = lineFrame(current, width);
    if (!found) return el("p", { class: "empty" }, current.empty ?? "Nothing was recorded.");
    const { root, xs, x, y } = found;
    const pointer = svg("g", { class: "cursor" });
    root.append(pointer);
    const show = (at, isSpoken) => {
      cursor = at;
      pointer.replaceChildren();
      if (at === null) return;
      const rows = nearest(current, xs[at]);
      pointer.append(...cursorParts(current, xs[at], rows, x, y, width));
      if (isSpoken) spoken.textContent = [`${current.x.label} ${current.x.format(xs[at])}`, ...rows.map((row) => row.text)].join("; ");
    };
    root.addEventListener("pointermove", (event) => {
      const left = event.clientX - root.getBoundingClientRect().left;
      show(closest(xs, (value) => Math.abs(x.at(value) - left)), false);
    });
    root.addEventListener("pointerleave", () => show(null, false));
    root.addEventListener("blur", () => show(null, false));
    root.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      show(Math.min(xs.length - 1, Math.max(0, (cursor ?? (step > 0 ? -1 : xs.length)) + step)), true);
    });
    return root;
  });
  return (next) => {
    current = next;
    cursor = null;
    redraw();
  };
}

function lineFrame(spec, width) {
  const usable = (value) => value !== null && value !== undefined && Number.isFinite(value) && (!spec.y.log || value > 0);
  const lines = spec.lines.map((line) => ({ ...line, points: line.points.filter((point) => usable(point.y) && Number.isFinite(point.x)) }));
  const points = lines.flatMap((line) => line.points);
  if (!points.length) return null;
  const heights = lines.flatMap((line) => line.points.flatMap((point) => (line.hasBand ? [point.y, point.low, point.high] : [point.y]))).filter(usable);
  heights.push(...(spec.levels ?? []).map((level) => level.y).filter(usable), ...(spec.y.values ?? []));
  const xs = [...new Set(points.map((point) => point.x))].sort((a, b) => a - b);
  const right = width - MARGIN.right;
  const x = linear(Math.min(spec.x.from ?? xs[0], xs[0]), xs[xs.length - 1], MARGIN.left, right, width < 480 ? 4 : 8);
  const y = verticalScale(spec.y, Math.min(...heights), Math.max(...heights));
  const root = svg("svg", {
    class: "chart", width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, tabindex: 0, role: "img", "aria-label": `${spec.title}. ${spec.summary}`,
  });
  root.append(svg("title", {}, spec.title), svg("desc", {}, spec.summary), ...axes(spec, x, y, width));
  for (const mark of spec.marks ?? []) root.append(...markParts(mark, x, width));
  for (const line of lines.filter((line) => line.hasBand)) root.append(bandPart(line, x, y, usable));
  const labels = [];
  for (const level of spec.levels ?? []) if (usable(level.y)) root.append(...levelParts(level, y, width, labels));
  for (const line of [...lines].sort((a, b) => Number(Boolean(b.isFaint)) - Number(Boolean(a.isFaint)))) root.append(...strokeParts(line, x, y));
  return { root, xs, x, y };
}

function verticalScale(spec, low, high, height = HEIGHT) {
  const [bottom, top] = [height - MARGIN.bottom, MARGIN.top];
  if (spec.log) return logarithmic(low, high, bottom, top, 6);
  const pad = (high - low) * 0.06 || Math.abs(high) * 0.05 || 0.5;
  const [least, most] = spec.within ?? [-Infinity, Infinity];
  return linear(Math.max(least, low - pad), Math.min(most, high + pad), bottom, top, 5);
}

function axes(spec, x, y, width, height = HEIGHT) {
  const bottom = height - MARGIN.bottom;
  const grid = y.ticks.map((tick) => svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y.at(tick), y2: y.at(tick) }));
  const left = y.ticks.map((tick) =>
    svg("text", { class: "tick", x: MARGIN.left - 8, y: y.at(tick) + 4, "text-anchor": "end" }, spec.y.log ? (spec.y.format ?? powerOfTen)(Math.round(Math.log10(tick))) : (spec.y.format ?? short)(tick)),
  );
  const below = x.ticks.map((tick) => svg("text", { class: "tick", x: x.at(tick), y: bottom + 17, "text-anchor": "middle" }, spec.x.format(tick)));
  const base = svg("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom });
  const name = svg("text", { class: "label", x: (MARGIN.left + width - MARGIN.right) / 2, y: height - 4, "text-anchor": "middle" }, spec.x.label);
  return [...grid, ...left, ...below, base, name];
}

function markParts(mark, x, width) {
  const at = x.at(mark.x);
  if (!(at >= MARGIN.left && at < width - MARGIN.right - 1)) return [];
  const isLate = at > width - 90;
  return [
    svg("line", { class: "mark", x1: at, x2: at, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }),
    svg("text", { class: "note", x: isLate ? at - 5 : at + 5, y: HEIGHT - MARGIN.bottom - 6, "text-anchor": isLate ? "end" : "start" }, mark.name),
  ];
}

function levelParts(level, y, width, labels) {
  const at = y.at(level.y);
  let height = at - 5;
  while (labels.some((other) => Math.abs(other - height) < 13)) height += 13;
  labels.push(height);
  return [
    svg("line", { class: "level", x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at }),
    svg("text", { class: "note", x: MARGIN.left + 6, y: height }, level.name),
  ];
}

function bandPart(line, x, y, usable) {
  const points = line.points.filter((point) => usable(point.low) && usable(point.high));
  const edge = [...points.map((p) => [x.at(p.x), y.at(p.high)]), ...points.reverse().map((p) => [x.at(p.x), y.at(p.low)])];
  return svg("path", { class: `band tone-${line.tone}`, d: edge.length ? `${pathOf(edge)}Z` : "" });
}

function strokeParts(line, x, y) {
  const points = line.points.map((point) => [x.at(point.x), y.at(point.y)]);
  const names = ["stroke", `tone-${line.tone}`, line.isFaint && "faint", line.isGuide && "guide"].filter(Boolean).join(" ");
  const parts = [svg("path", { class: names, d: pathOf(points) }, svg("title", {}, line.name))];
  if (line.isMarked || points.length === 1) parts.push(...points.map(([cx, cy]) => svg("circle", { class: `dot tone-${line.tone}`, cx: cx.toFixed(1), cy: cy.toFixed(1), r: 2.5 })));
  return parts;
}

/** What every line that is not faint has nearest to `at`. */
function nearest(spec, at) {
  const rows = [];
  for (const line of spec.lines.filter((line) => !line.isFaint)) {
    const points = line.points.filter((point) => point.y !== null && point.y !== undefined);
    if (!points.length) continue;
    const point = points[closest(points, (one) => Math.abs(one.x - at))];
    const range = line.hasBand && point.high !== point.low ? ` (${spec.y.show(point.low)} to ${spec.y.show(point.high)})` : "";
    if (Math.abs(point.x - at) < 1e-9 * Math.max(1, Math.abs(at))) rows.push({ tone: line.tone, y: point.y, text: `${line.name} ${spec.y.show(point.y)}${range}` });
  }
  return rows.slice(0, 8);
}

function cursorParts(spec, at, rows, x, y, width) {
  const texts = [`${spec.x.label} ${spec.x.format(at)}`, ...rows.map((row) => row.text)];
  const wide = Math.min(width - 20, 20 + 6.7 * Math.max(...texts.map((text) => text.length)));
  const left = x.at(at) + 12 + wide < width ? x.at(at) + 12 : Math.max(4, x.at(at) - 12 - wide);
  return [
    svg("line", { class: "hair", x1: x.at(at), x2: x.at(at), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }),
    ...rows.filter((row) => !spec.y.log || row.y > 0).map((row) => svg("circle", { class: `dot tone-${row.tone}`, cx: x.at(at), cy: y.at(row.y), r: 4 })),
    svg("rect", { class: "tip", x: left, y: MARGIN.top, width: wide, height: 12 + 16 * texts.length, rx: 4 }),
    ...texts.map((text, i) => svg("text", { class: i ? `tiptext tone-${rows[i - 1].tone}` : "tiptext", x: left + 10, y: MARGIN.top + 19 + 16 * i }, text)),
  ];
}

function closest(values, distance) {
  let best = 0;
  values.forEach((value, i) => {
    if (distance(value) < distance(values[best])) best = i;
  });
  return best;
}

/** One dot a peer, in the order of their values; those in the worst decile stand out.  spec: title, summary, dots [{peer, y, isWorst}], levels, y. */
function dotPlot(host, spec) {
  const plot = el("div", { class: "plot tall" });
  host.replaceChildren(plot);
  return drawn(plot, (width) => {
    if (!spec.dots.length) return el("p", { class: "empty" }, "Nothing was measured.");
    const values = [...spec.dots.map((dot) => dot.y), ...spec.levels.map((level) => level.y)];
    const y = verticalScale(spec.y, Math.min(...values), Math.max(...values), TALL);
    const x = linear(-0.5, spec.dots.length - 0.5, MARGIN.left, width - MARGIN.right, 4);
    const root = svg("svg", { class: "chart", width, height: TALL, viewBox: `0 0 ${width} ${TALL}`, role: "img", "aria-label": `${spec.title}. ${spec.summary}` });
    root.append(svg("title", {}, spec.title), svg("desc", {}, spec.summary));
    root.append(...axes({ ...spec, x: { label: spec.xLabel, format: () => "" } }, { ...x, ticks: [] }, y, width, TALL));
    const labels = [];
    for (const level of spec.levels) root.append(...levelParts(level, y, width, labels));
    const radius = Math.max(1.6, Math.min(6, (width - MARGIN.left - MARGIN.right) / spec.dots.length / 2.6));
    spec.dots.forEach((dot, i) => {
      const name = `${dot.name}: ${spec.y.show(dot.y)}`;
      root.append(svg("circle", { class: `dot ${dot.isWorst ? "tone-bad" : "tone-0"}`, cx: x.at(i).toFixed(1), cy: y.at(dot.y).toFixed(1), r: radius.toFixed(1) }, svg("title", {}, name)));
    });
    return root;
  });
}

/**
 * Peers on a circle, links as chords bent towards its middle.
 * spec: title, summary, peers [{number, name, heat 0..1 or null, isLiar}], links [{from, to, part 0..1}] (peer numbers).
 */
function network(host, spec) {
  const plot = el("div", { class: "plot tall" });
  host.replaceChildren(plot);
  return drawn(plot, (width) => {
    const height = TALL;
    const [cx, cy] = [width / 2, height / 2];
    const n = spec.peers.length;
    if (!n) return el("p", { class: "empty" }, "The graph was not recorded.");
    const radius = Math.min(width, height) / 2 - 26;
    const place = new Map(spec.peers.map((peer, i) => {
      const angle = (2 * Math.PI * i) / n - Math.PI / 2;
      return [peer.number, [cx + radius * Math.cos(angle), cy + radius * Math.sin(angle)]];
    }));
    const root = svg("svg", { class: "chart", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${spec.title}. ${spec.summary}` });
    root.append(svg("title", {}, spec.title), svg("desc", {}, spec.summary));
    const opacity = Math.max(0.12, Math.min(0.6, 30 / Math.max(1, spec.links.length)));
    for (const link of spec.links) {
      const [[x1, y1], [x2, y2]] = [place.get(link.from), place.get(link.to)];
      const bend = ([a, b]) => b + (a - b) * 0.35;
      const [mx, my] = [bend([cx, (x1 + x2) / 2]), bend([cy, (y1 + y2) / 2])];
      root.append(svg("path", {
        class: "link", d: `M${x1.toFixed(1)} ${y1.toFixed(1)}Q${mx.toFixed(1)} ${my.toFixed(1)} ${x2.toFixed(1)} ${y2.toFixed(1)}`,
        "stroke-width": (0.5 + 2 * link.part).toFixed(2), "stroke-opacity": opacity.toFixed(2),
      }));
    }
    const size = Math.max(3, Math.min(10, (Math.PI * radius) / n / 1.4));
    for (const peer of spec.peers) {
      const [x, y] = place.get(peer.number);
      const shape = peer.isLiar
        ? svg("path", { class: "node liar", d: `M${x} ${y - size * 1.3}L${x + size * 1.3} ${y}L${x} ${y + size * 1.3}L${x - size * 1.3} ${y}Z` })
        : svg("circle", { class: `node heat-${peer.heat === null ? "none" : Math.round(peer.heat * 8)}`, cx: x.toFixed(1), cy: y.toFixed(1), r: size.toFixed(1) });
      shape.append(svg("title", {}, peer.name));
      root.append(shape);
      if (n <= 40) {
        const out = 1 + (size + 11) / radius;
        root.append(svg("text", { class: "tick", x: cx + (x - cx) * out, y: cy + (y - cy) * out + 4, "text-anchor": "middle" }, String(peer.number)));
      }
    }
    return root;
  });
}

/** A table: header cells, rows of cells; a cell is text or an element.   numeric: columns that are aligned right.   isStacked: rows become blocks where it is narrow. */
function tableOf(header, rows, numeric = [], isStacked = false) {
  const cell = (name, value, i) =>
    el(name, { class: numeric.includes(i) ? "number" : null, scope: name === "th" ? "col" : null, "data-name": name === "td" ? header[i] : null }, value ?? "–");
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": header.filter(Boolean).join(", ") },
    el("table", { class: isStacked ? "stacked" : null }, el("thead", {}, el("tr", {}, header.map((value, i) => cell("th", value, i)))), el("tbody", {}, rows.map((row) => el("tr", {}, row.map((value, i) => cell("td", value, i)))))),
  );
}
