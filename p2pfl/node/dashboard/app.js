"use strict";
// The page: what it says of a study, and what a person may choose, which is the axis and the cell looked at.

const COLOURS = 6;
const CONTEXT = 24;
const study = newStudy();
const view = { axis: "round", focus: 0 };
const redraws = [];

function main() {
  const block = document.getElementById("events");
  if (!block) return;
  for (const event of JSON.parse(block.textContent)) accept(study, event);
  if (!study.head) return;
  const { head } = study;
  const card = firstOf(study, 0, (trial) => trial.card);
  document.getElementById("eyebrow").textContent = head.kind === "comparison" ? "p2pfl · two results side by side" : "p2pfl · simulation report";
  document.getElementById("title").textContent = head.title;
  document.getElementById("lede").replaceChildren(...ledeParts(card));
  document.getElementById("colophon").textContent = `Results ${head.results.slice(0, 16)}, schema ${head.v}. Nothing in this page comes from anywhere else.`;
  const parts = [tiles(), expectations(), differences(), matrices(), costs(), Object.keys(head.axes).length < 2 ? cells() : null, curves(), graphAndPeers(), warnings(), Object.keys(head.axes).length < 2 ? null : cells(), runCard()];
  document.getElementById("main").replaceChildren(...parts.filter(Boolean));
  // Until now hidden: a page that is still arriving would show them, and what is drawn would then push them away.
  for (const part of document.querySelectorAll("header, footer")) part.hidden = false;
  redraws.forEach((redraw) => redraw());
}

function group() {
  return study.head.groups[view.focus];
}

function choose(change) {
  Object.assign(view, change);
  redraws.forEach((redraw) => redraw());
}

/** A section with a heading; an element that is drawn anew with every choice when `draw` is given. */
function section(name, lead, ...content) {
  const id = name.toLowerCase().replaceAll(" ", "-");
  return el("section", { "aria-labelledby": id }, el("h2", { id }, name), lead ? el("p", { class: "lead" }, lead) : null, content);
}

function live(element, draw) {
  redraws.push(() => element.replaceChildren(...[draw()].flat().filter(Boolean)));
  return element;
}

function plural(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

function seedsText(seeds) {
  const isRun = seeds.length > 2 && seeds.every((seed, i) => i === 0 || seed === seeds[i - 1] + 1);
  return isRun ? `seeds ${seeds[0]}–${seeds.at(-1)}` : `${seeds.length === 1 ? "seed" : "seeds"} ${seeds.join(", ")}`;
}

// --- the top ---------------------------------------------------------------------------------------------

function ledeParts(card) {
  const { head } = study;
  const words = [];
  if (card && head.kind === "study") {
    const liars = card.peers - card.honest;
    words.push(plural(card.peers, "peer") + (liars ? `, ${count(liars)} of them Byzantine` : ""));
    words.push(`${card.engine} engine`, plural(card.training, "training round"));
  }
  if (head.groups.length > 1) words.push(head.kind === "study" ? plural(head.groups.length, "cell") : plural(head.rows.length, "row"));
  words.push(seedsText(head.seeds));
  const met = head.expectations.filter((outcome) => outcome.is_met).length;
  const all = head.expectations.length;
  const pill = all ? el("span", { class: `pill ${met === all ? "good" : "bad"}` }, `${met === all ? "✓" : "✗"} ${met} of ${all} expectations met`) : null;
  return [words.join(" · "), ...(pill ? [el("br"), pill] : [])];
}

function tiles() {
  return live(el("div"), () => {
    const { metric, pooled, alone, consensus_distance: distance, mass, bytes_per_peer_round: sent, backdoor, byzantine } = group();
    const who = byzantine ? "honest peer" : "peer";
    const worst = study.head.is_lower_better ? metric.max : metric.min;
    const virtual = firstOf(study, view.focus, (trial) => trial.end?.virtual_s);
    const which = study.head.groups.length > 1 ? el("p", { class: "which" }, group().label) : null;
    return [which, el("div", { class: "tiles" },
      tile(metric.name, short(metric.mean), `worst ${who} ${short(worst)}`),
      alone ? tile("each site alone", short(alone.mean), `worst ${short(study.head.is_lower_better ? alone.max : alone.min)}`) : null,
      pooled === null ? null : tile("all data together", short(pooled), "in one place, which nobody had"),
      backdoor ? tile("backdoor opens", short(backdoor.mean), "of rows under the trigger") : null,
      tile("consensus distance", short(distance, 3), "root mean square, at the end"),
      mass ? tile("mass error", short(mass.error, 2), `of ${short(mass.expected)}, relative`) : null,
      tile("sent", bytes(sent), "a peer and round"),
      tile("virtual time", seconds(virtual), `${seconds(group().wall_s)} on this machine`),
    )];
  });
}

function tile(name, value, note) {
  return el("div", { class: "tile" }, el("p", { class: "name" }, name), el("p", { class: "value" }, value), el("p", { class: "note" }, note));
}

function expectations() {
  const { expectations: outcomes } = study.head;
  if (!outcomes.length) return null;
  const rows = outcomes.map((outcome) => {
    const place = Object.entries(outcome.cell).map(([axis, label]) => `${axis} ${label}`);
    if (outcome.seed !== null) place.push(`seed ${outcome.seed}`);
    if (outcome.interval) place.push(`difference ${short(outcome.interval[0], 3)} to ${short(outcome.interval[1], 3)}`);
    const verdict = el("span", { class: outcome.is_met ? "good" : "bad" }, outcome.is_met ? "✓ met" : "✗ not met");
    return [verdict, el("code", {}, outcome.text), short(outcome.value), short(outcome.bound), place.join(", ") || "everywhere"];
  });
  return section("Expectations", null, tableOf(["", "Expectation", "Found", "Bound", "Where it is met least"], rows, [2, 3], true));
}

function differences() {
  const { rows, names } = study.head;
  if (!rows) return null;
  const mean = (side) => (side ? fixed(side.metric.mean, 4) : "–");
  const sent = (side) => (side ? bytes(side.bytes_per_peer_round) : "–");
  const table = rows.map((row) => [
    row.label, row.metric, mean(row.first), mean(row.second), row.difference === null ? "–" : `${row.difference > 0 ? "+" : ""}${fixed(row.difference, 4)}`,
    row.interval ? `${fixed(row.interval[0], 4)} to ${fixed(row.interval[1], 4)}` : "–", sent(row.first), sent(row.second),
  ]);
  return section("Side by side", "Second minus first, seed by seed, over the seeds that both have; with the 95% interval of that difference.",
    tableOf(["", "Metric", ...names, "Difference", "95% interval", `Sent, ${names[0]}`, `Sent, ${names[1]}`], table, [2, 3, 4, 5, 6, 7], true));
}

// --- the grid --------------------------------------------------------------------------------------------

function matrices() {
  const axes = Object.entries(study.head.axes);
  if (axes.length < 2) return null;
  const [[rowAxis, rowCases], [columnAxis, columnCases]] = axes.slice(-2);
  const outer = axes.slice(0, -2).reduce((all, [axis, cases]) => all.flatMap((place) => cases.map((label) => ({ ...place, [axis]: label }))), [{}]);
  const { name } = study.head.groups[0].metric;
  const means = study.head.groups.map((one) => one.metric.mean);
  const [low, high] = [Math.min(...means), Math.max(...means)];
  const draw = (place) => {
    const found = (row, column) => study.head.groups.findIndex((one) => Object.entries({ ...place, [rowAxis]: row, [columnAxis]: column }).every(([axis, label]) => one.cell[axis] === label));
    const rows = rowCases.map((row) => el("tr", {}, el("th", { scope: "row" }, row), columnCases.map((column) => heatCell(found(row, column), low, high))));
    const header = el("tr", {}, el("th", { class: "corner" }, `${rowAxis} × ${columnAxis}`), columnCases.map((column) => el("th", { scope: "col" }, column)));
    const caption = Object.entries(place).map(([axis, label]) => `${axis} ${label}`).join(", ");
    return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${rowAxis} by ${columnAxis}` }, el("table", { class: "matrix" }, caption ? el("caption", {}, caption) : null, el("thead", {}, header), el("tbody", {}, rows)));
  };
  const isStarred = study.head.groups.some((one) => one.bounds_broken);
  const who = study.head.groups.some((one) => one.byzantine) ? "honest peer" : "peer";
  return section("Matrix", `${name}: the mean over seeds and peers, and below it the worst ${who} of any seed. Choose a cell to see its curves.${isStarred ? " * More may lie than the rule bears." : ""}`, outer.map(draw));
}

function heatCell(at, low, high) {
  if (at < 0) return el("td", {}, "–");
  const { metric, bounds_broken: broken, label } = study.head.groups[at];
  const isLess = study.head.is_lower_better;
  const part = high > low ? (metric.mean - low) / (high - low) : 1;
  const heat = Math.round((isLess ? 1 - part : part) * 8);
  const button = el("button", { type: "button", class: `heat heat-${heat}`, "aria-label": `${label}: ${metric.name} ${fixed(metric.mean)}, worst ${fixed(isLess ? metric.max : metric.min)}` },
    el("span", { class: "value" }, fixed(metric.mean) + (broken ? "*" : "")), el("span", { class: "note" }, fixed(isLess ? metric.max : metric.min)));
  button.addEventListener("click", () => choose({ focus: at }));
  redraws.push(() => button.setAttribute("aria-pressed", String(view.focus === at)));
  return el("td", {}, button);
}

function cells() {
  const { groups, is_lower_better: isLess, kind } = study.head;
  if (groups.length < 2 || kind !== "study") return null;
  const rows = groups.map((one) => [one.label, fixed(one.metric.mean, 4), fixed(one.metric.worst_seed, 4), fixed(isLess ? one.metric.max : one.metric.min, 4), short(one.online_loss ?? null), short(one.consensus_distance, 3), bytes(one.bytes_per_peer_round)]);
  const table = tableOf(["Cell", groups[0].metric.name, "Worst seed", "Worst peer", "Online loss", "Consensus distance", "Sent a peer and round"], rows, [1, 2, 3, 4, 5, 6]);
  if (Object.keys(study.head.axes).length < 2) return section("Cells", null, table);
  return section("Every cell", null, el("details", {}, el("summary", {}, `${plural(groups.length, "cell")}, as a table`), table));
}

// --- curves ----------------------------------------------------------------------------------------------

function curves() {
  if (!study.groups.some((one) => [...one.trials.values()].some((trial) => trial.rounds.length))) return null;
  const { metric } = study.head.groups[0];
  const isPart = ["accuracy", "auc"].includes(metric.name);
  const show = (value) => short(value);
  const charts = [
    chart({
      name: metric.name[0].toUpperCase() + metric.name.slice(1), isWide: true, pick: (event) => event.metric,
      note: () => (study.head.groups.length === 1 ? "The mean of the peers that were measured, and the band from the worst to the best of them." : "The mean of the peers measured, over the seeds; the band, from the worst to the best of them, is the chosen cell's."),
      y: { show, within: isPart ? [0, 1] : undefined }, levels: metricLevels, hasPeers: true, isMarked: true, empty: "The metric was not measured on the way; simulation.measure_every says how often.",
    }),
    chart({ name: "Consensus distance", pick: (event) => event.consensus_distance, y: { show, log: true }, note: slopeNote, hasSlope: true, hasBand: true }),
    chart({ name: "Training loss", pick: (event) => event.loss, y: { show }, note: () => "Of each peer's last fit: mean, least and greatest." }),
  ];
  if (study.groups.some((one) => [...one.trials.values()].some((trial) => trial.rounds.some((event) => event.mass)))) {
    const floor = 1e-17;
    charts.push(chart({
      name: "Mass error", pick: (event) => (event.mass ? Math.max(floor, event.mass.error) : null), y: { show: (value) => (value <= floor ? "0" : short(value, 2)), log: true, values: [floor, 1e-6], format: (exponent) => (exponent <= -17 ? "0" : powerOfTen(exponent)) },
      levels: () => [{ name: "what a test would fail on", y: 1e-9 }], note: () => "What is held and in flight, against what entered: push-sum's books, relative.",
    }));
    const isUneven = study.groups.some((one) => [...one.trials.values()].some((trial) => trial.rounds.some((event) => event.w && event.w.min < 0.9 * event.w.max)));
    if (isUneven) charts.push(chart({ name: "Weights", pick: (event) => event.w, y: { show, log: true, values: [0.1, 1] }, note: () => "Push-sum's w as each peer keeps it: a peer with next to none learns slowly." }));
  }
  return section("Curves", null, toolbar(), el("div", { class: charts.length === 4 ? "grid thirds" : "grid" }, charts));
}

function toolbar() {
  const buttons = Object.entries(AXES).map(([axis, { label }]) => {
    const button = el("button", { type: "button", "data-axis": axis }, label);
    button.addEventListener("click", () => choose({ axis }));
    redraws.push(() => button.setAttribute("aria-pressed", String(view.axis === axis)));
    return button;
  });
  const bar = el("div", { class: "toolbar" }, el("div", { class: "segments", role: "group", "aria-label": "Horizontal axis" }, buttons));
  const { groups } = study.head;
  if (groups.length > COLOURS) {
    const select = el("select", { id: "cell" }, groups.map((one, i) => el("option", { value: i }, one.label)));
    select.addEventListener("change", () => choose({ focus: Number(select.value) }));
    redraws.push(() => (select.value = String(view.focus)));
    bar.append(el("label", { for: "cell" }, "Cell"), select);
  } else if (groups.length > 1) {
    bar.append(el("div", { class: "legend", role: "group", "aria-label": "Chosen cell" }, groups.map((one, i) => {
      const button = el("button", { type: "button" }, el("span", { class: `swatch tone-${i}` }), one.label);
      button.addEventListener("click", () => choose({ focus: i }));
      redraws.push(() => button.setAttribute("aria-pressed", String(view.focus === i)));
      return button;
    })));
  }
  return bar;
}

/** A chart over the chosen axis that follows every choice. */
function chart({ name, pick, y, note, levels, isWide, hasPeers, hasSlope, isMarked, empty }) {
  const host = el("div");
  const said = el("p", { class: "lead" });
  const table = el("div");
  const details = el("details", {}, el("summary", {}, "Numbers"), table);
  const figure = el("figure", { class: isWide ? "card wide" : "card" }, el("figcaption", {}, el("h3", {}, name), said), host, details);
  let update = null;
  const numbers = (points) => {
    if (!details.open) return;
    table.replaceChildren(tableOf(["Round", AXES[view.axis].label, "Mean", "Least", "Greatest"], points.map((p) => [count(p.round + 1), AXES[view.axis].format(p.x), y.show(p.y), y.show(p.low), y.show(p.high)]), [0, 1, 2, 3, 4]));
  };
  const draw = () => {
    const lines = linesOf(pick, hasPeers);
    const points = pointsOf(study, view.focus, view.axis, pick);
    const slope = hasSlope ? predictedSlope(study, view.focus, points) : null;
    if (slope) lines.unshift({ name: "Predicted", tone: "muted", isGuide: true, points: slope });
    for (const line of lines) line.isMarked = isMarked && !line.isFaint && line.points.length < 40;
    said.textContent = note();
    const end = points.at(-1);
    const summary = end ? `${study.head.groups[view.focus].label}: ${y.show(points[0].y)} in round ${points[0].round + 1}, ${y.show(end.y)} in round ${end.round + 1}.` : "Nothing was recorded.";
    const spec = { title: `${name} against ${AXES[view.axis].label.toLowerCase()}`, summary, x: AXES[view.axis], y, lines, levels: levels?.() ?? [], marks: stagesOf(study, view.focus, view.axis), empty };
    if (update) update(spec);
    else update = lineChart(host, spec);
    details.ontoggle = () => numbers(points);
    numbers(points);
  };
  redraws.push(draw);
  return figure;
}

function linesOf(pick, hasPeers) {
  const { groups } = study.head;
  const lines = [];
  if (groups.length <= COLOURS) {
    groups.forEach((one, i) => lines.push({ name: groups.length === 1 ? "Mean" : one.label, tone: i, hasBand: i === view.focus, points: pointsOf(study, i, view.axis, pick) }));
    if (groups.length === 1 && hasPeers) peerLines(study, 0, view.axis).forEach((line) => lines.push({ ...line, tone: 0, isFaint: true }));
    return lines.sort((a, b) => Number(Boolean(a.hasBand)) - Number(Boolean(b.hasBand)));
  }
  const others = groups.map((_, i) => i).filter((i) => i !== view.focus);
  const near = others.filter((i) => Object.entries(groups[i].cell).filter(([axis, label]) => group().cell[axis] !== label).length <= 1);
  for (const i of near.slice(0, CONTEXT)) lines.push({ name: groups[i].label, tone: "muted", isFaint: true, points: pointsOf(study, i, view.axis, pick) });
  lines.push({ name: group().label, tone: 0, hasBand: true, points: pointsOf(study, view.focus, view.axis, pick) });
  return lines;
}

function metricLevels() {
  const { pooled, alone, reference } = group();
  const levels = [];
  if (pooled !== null && pooled !== undefined) levels.push({ name: "all data together", y: pooled });
  if (alone) levels.push({ name: "each site alone", y: alone.mean });
  if (reference) levels.push({ name: "perfect network", y: reference.mean });
  return levels;
}

function slopeNote() {
  const card = firstOf(study, view.focus, (trial) => trial.card);
  const gap = card?.spectral_gap ?? null;
  if (gap === null) return "How far the models are from their mean. No slope is predicted: a robust rule or a control mixes, or the graph is too large or grows.";
  if (gap >= 1) return "How far the models are from their mean. On this graph one period of its plans without training, a single round for a complete one, brings them all the way together.";
  const points = pointsOf(study, view.focus, "round", (event) => event.consensus_distance);
  const found = measuredSlope(study, view.focus, points);
  const slope = `a spectral gap of ${short(gap, 3)}: each round leaves ${short(1 - gap, 3)} of the distance${found === null ? "" : `; measured ${short(found, 3)}`}`;
  return `How far the models are from their mean${card.closing ? "; the broad grey line, once training has ended, is" : ", and"} what the graph predicts by ${slope}.`;
}

// --- the rest --------------------------------------------------------------------------------------------

function warnings() {
  if (!study.warnings.size) return null;
  const rows = [...study.warnings].sort((a, b) => b[1] - a[1]).map(([name, times]) => [name, count(times)]);
  return section("Warnings", "What peers noted on the way, over all trials; docs/configuration.md says what each means.", el("div", { class: "narrow" }, tableOf(["Fact", "Times"], rows, [1])));
}

function runCard() {
  const { head } = study;
  const trials = study.groups.flatMap((one) => [...one.trials.values()]);
  const cards = trials.map((trial) => trial.card).filter(Boolean);
  // Where a grid varies something, all that it was.
  const all = (say) => [...new Set(cards.map(say).filter(Boolean))].join(" | ");
  const runs = [...new Set(cards.map((card) => card.run_id))];
  const peak = Math.max(0, ...trials.map((trial) => trial.end?.peak_rss_mb ?? 0));
  const mixing = (card) => (card.control !== "none" ? card.control : card.averaging === "robust" ? card.aggregator : card.averaging);
  const kind = (card) => `${card.topology}${card.spectral_gap === null ? "" : `, spectral gap ${short(card.spectral_gap, 3)}`}`;
  const machine = (card) => `${card.machine.processor || card.machine.system}, ${plural(card.machine.cores, "core")}, ${card.machine.system}`;
  const rows = [
    ["Command", el("code", {}, head.command)],
    ["Results", el("code", {}, head.results)],
    [runs.length === 1 ? "Run" : "Runs", runs.length === 1 ? el("code", {}, runs[0]) : `${count(runs.length)}, one a trial`],
    ["Trials", `${count(head.trials)}, ${seedsText(head.seeds)}`],
    ...(cards.length ? [
      ["Mixing", all(mixing)],
      ...(cards.some((card) => card.attack !== "none") ? [["Attack", all((card) => card.attack)]] : []),
      ["Topology", all(kind)],
      ["Rounds", all((card) => `${count(card.opening)} opening, ${count(card.training)} training, ${count(card.closing)} closing`)],
      ["Versions", all((card) => Object.entries(card.versions).map(([name, version]) => `${name} ${version}`).join(", "))],
      ["Machine", all(machine)],
    ] : []),
    ["Took", `${seconds(head.wall_s)} over all trials${peak ? `, at most ${count(peak)} MB` : ""}`],
  ];
  return section("Run card", null, el("dl", { class: "runcard" }, rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
}

main();
