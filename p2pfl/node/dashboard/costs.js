"use strict";
// What cells are worth against what they cost: a dot a cell, and another for the model of a hub.

/** The section, of studies of exchanges of knowledge and of those that counted what sites compute. */
function costs() {
  const { groups, kind } = study.head;
  if (kind !== "study" || groups.length < 2 || !groups.some((one) => one.compute || one.knowledge)) return null;
  const { name } = groups[0].metric;
  const sent = costCard(`${name} against bytes`, "sent a peer and round", (one) => one.bytes_per_peer_round, bytes);
  const computed = groups.some((one) => one.compute)
    ? costCard(`${name} against computing`, "multiply-adds a round, at the site that computes least", (one) => one.compute?.min, (value) => short(value, 3))
    : null;
  const lead = "Means over the seeds. A ring is what a hub's model makes of its edges' features, a dot what sites' own models are worth.";
  return section("Worth and cost", lead, el("div", { class: "grid" }, sent, computed));
}

function costCard(title, label, pick, format) {
  const dots = study.head.groups.flatMap((one, i) => {
    const cost = pick(one);
    if (!(cost > 0)) return [];
    const dot = { name: one.label, tone: i < COLOURS ? i : 0, x: cost, y: one.metric.mean, isRing: false };
    const hub = one.knowledge?.hub ?? null;
    return hub === null ? [dot] : [dot, { ...dot, name: `${one.label}, the hub's model`, y: hub, isRing: true }];
  });
  const host = el("div");
  const rows = dots.map((dot) => [dot.name, fixed(dot.y, 4), format(dot.x)]);
  const table = tableOf(["Cell", study.head.groups[0].metric.name, label[0].toUpperCase() + label.slice(1)], rows, [1, 2]);
  const heading = el("h3", {}, title[0].toUpperCase() + title.slice(1));
  scatter(host, { title, label, format, dots });
  return el("figure", { class: "card" }, el("figcaption", {}, heading), host, el("details", {}, el("summary", {}, "Numbers"), table));
}

/** Dots over a logarithmic axis, each with its name beside it.   spec: title, label, format, dots [{name, tone, x, y, isRing}]. */
function scatter(host, spec) {
  const plot = el("div", { class: "plot tall" });
  host.replaceChildren(plot);
  return drawn(plot, (width) => {
    if (!spec.dots.length) return el("p", { class: "empty" }, "Nothing was measured.");
    const [xs, ys] = [spec.dots.map((dot) => dot.x), spec.dots.map((dot) => dot.y)];
    const isPart = Math.min(...ys) >= 0 && Math.max(...ys) <= 1;
    const y = verticalScale({ within: isPart ? [0, 1] : undefined }, Math.min(...ys), Math.max(...ys), TALL);
    const x = logarithmic(Math.min(...xs), Math.max(...xs), MARGIN.left + 12, width - MARGIN.right - 12, 4);
    const summary = `${spec.dots.map((dot) => `${dot.name}: ${short(dot.y)} for ${spec.format(dot.x)}`).join("; ")}.`;
    const root = svg("svg", { class: "chart", width, height: TALL, viewBox: `0 0 ${width} ${TALL}`, role: "img", "aria-label": `${spec.title}. ${summary}` });
    root.append(svg("title", {}, spec.title), svg("desc", {}, summary), ...axes({ x: { label: spec.label, format: spec.format }, y: {} }, x, y, width, TALL));
    const taken = [];
    for (const dot of [...spec.dots].sort((a, b) => a.y - b.y)) {
      const [cx, cy] = [x.at(dot.x), y.at(dot.y)];
      const isLeft = cx > width / 2;
      let height = cy + 4;
      while (taken.some(([left, at]) => left === isLeft && Math.abs(at - height) < 14)) height -= 14;
      taken.push([isLeft, height]);
      root.append(
        svg("circle", { class: `${dot.isRing ? "ring" : "dot"} tone-${dot.tone}`, cx: cx.toFixed(1), cy: cy.toFixed(1), r: 5 }, svg("title", {}, `${dot.name}: ${short(dot.y)}, ${spec.format(dot.x)}`)),
        svg("text", { class: "note", x: isLeft ? cx - 10 : cx + 10, y: height, "text-anchor": isLeft ? "end" : "start" }, dot.name),
      );
    }
    return root;
  });
}
