"use strict";
// Single peers: the graph they form, and how unlike they end.

/** The section with both, of the chosen cell's first trial. */
function graphAndPeers() {
  if (!study.groups.some((_, i) => firstOf(study, i, (trial) => trial.end))) return null;
  const graph = peerCard("Topology", (host, said, table) => {
    const spec = graphSpec();
    said.textContent = spec.note;
    network(host, spec);
    table.replaceChildren(tableOf(["Peer", spec.metric, "Hears", "Tells", "Sent"], spec.rows, [0, 1, 2, 3, 4]));
  });
  const peers = peerCard("Fairness", (host, said, table) => {
    const spec = peerSpec();
    said.textContent = spec.note;
    dotPlot(host, spec);
    table.replaceChildren(tableOf(["", spec.metric], spec.dots.map((dot) => [dot.name, spec.y.show(dot.y)]), [1]));
  });
  return section("Peers", null, el("div", { class: "grid" }, graph, peers));
}

function peerCard(name, draw) {
  const [host, table, said] = [el("div"), el("div"), el("p", { class: "lead" })];
  redraws.push(() => draw(host, said, table));
  return el("figure", { class: "card" }, el("figcaption", {}, el("h3", {}, name), said), host, el("details", {}, el("summary", {}, "Numbers"), table));
}

function graphSpec() {
  // Cells of a large study share graphs; then the first cell's, of which the page has it, stands for all.
  const card = firstOf(study, view.focus, (trial) => (trial.card?.graph ? trial.card : null)) ?? firstOf(study, 0, (trial) => trial.card);
  const end = firstOf(study, view.focus, (trial) => trial.end);
  const { metric } = group();
  const graph = card?.graph ?? { peers: [], links: [], links_in_all: 0 };
  const [values, sent] = [new Map(), new Map()];
  (end?.per_peer.peer ?? []).forEach((peer, i) => {
    values.set(peer, end.per_peer.metric[i]);
    sent.set(peer, end.per_peer.bytes_sent[i]);
  });
  const known = [...values.values()].filter((value) => value !== null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const [tells, hears] = [new Map(), new Map()];
  for (const [from, to] of graph.links) {
    tells.set(from, (tells.get(from) ?? 0) + 1);
    hears.set(to, (hears.get(to) ?? 0) + 1);
  }
  const perLink = (peer) => (sent.get(peer) ?? 0) / (tells.get(peer) ?? 1);
  const most = Math.max(1, ...graph.peers.map(perLink));
  const heat = (value) => (value === null || value === undefined ? null : high > low ? (study.head.is_lower_better ? high - value : value - low) / (high - low) : 1);
  const isLiar = (peer) => card && peer >= card.honest;
  const name = (peer) => `Peer ${peer}${isLiar(peer) ? ", Byzantine" : `: ${metric.name} ${short(values.get(peer) ?? null)}, sent ${bytes(sent.get(peer) ?? null)}`}`;
  const part = card && graph.peers.length < card.peers ? ` Drawn are ${count(graph.peers.length)} of the ${count(card.peers)} peers, and ${count(graph.links.length)} of ${count(graph.links_in_all)} links.` : "";
  const liars = card && card.honest < card.peers ? " Diamonds are Byzantine." : "";
  const kind = card ? `${card.topology[0].toUpperCase()}${card.topology.slice(1)}, ${plural(graph.links_in_all, "link")} one way each` : "";
  return {
    title: "Topology", metric: metric.name,
    summary: card ? `${count(card.peers)} peers in a graph of kind ${card.topology} with ${count(graph.links_in_all)} directed links.` : "Not recorded.",
    note: card ? `${kind}. The fuller a peer's colour, the better its ${metric.name} among its like; the wider a link, the more its sender sent.${liars}${part}` : "",
    peers: graph.peers.map((number) => ({ number, name: name(number), heat: heat(values.get(number)), isLiar: isLiar(number) })),
    links: graph.links.map(([from, to]) => ({ from, to, part: isLiar(from) ? 0.2 : perLink(from) / most })),
    rows: graph.peers.map((peer) => [isLiar(peer) ? `${peer} (Byzantine)` : String(peer), short(values.get(peer) ?? null), count(hears.get(peer) ?? 0), count(tells.get(peer) ?? 0), bytes(sent.get(peer) ?? null)]),
  };
}

function peerSpec() {
  const ends = trialsOf(study, view.focus).map((trial) => trial.end).filter(Boolean);
  const { metric, alone, pooled } = group();
  const isLess = study.head.is_lower_better;
  const y = { show: (value) => short(value), within: ["accuracy", "auc"].includes(metric.name) ? [0, 1] : undefined };
  const worse = (a, b) => (isLess ? b.y - a.y : a.y - b.y);
  const several = trialsOf(study, view.focus).length > 1;
  let dots = trialsOf(study, view.focus).flatMap((trial) =>
    (trial.end?.per_peer.peer ?? []).map((peer, i) => ({ name: `Peer ${peer}${several ? `, seed ${trial.seed}` : ""}`, y: trial.end.per_peer.metric[i] })).filter((dot) => dot.y !== null),
  );
  dots.sort(worse);
  const all = dots.length;
  const worst = Math.max(1, Math.round(all / 10));
  dots = dots.map((dot, i) => ({ ...dot, isWorst: i < worst && dots[0].y !== dots[all - 1].y }));
  const decile = dots.slice(0, worst);
  const levels = [];
  if (alone) levels.push({ name: "each site alone", y: alone.mean });
  if (pooled !== null && pooled !== undefined) levels.push({ name: "all data together", y: pooled });
  const summary = all ? `${count(all)} peers from ${short(dots[0].y)} to ${short(dots.at(-1).y)}; the worst decile has ${short(meanOf(decile.map((dot) => dot.y)))} on average.` : "Nothing was measured.";
  const who = group().byzantine ? "honest peer" : "peer";
  const honest = firstOf(study, view.focus, (trial) => trial.card)?.honest ?? 0;
  const isPart = ends.length && ends[0].per_peer.peer.length < honest;
  const part = isPart ? ` Drawn are ${count(ends[0].per_peer.peer.length)} of ${count(honest)}; a tenth of all have ${short(ends[0].deciles[isLess ? 9 : 1])} or worse.` : "";
  const note = ends.length ? `Each ${who}'s ${metric.name} at the end${several ? ", of every seed" : ""}, worst first; the worst tenth in the other colour, ${short(meanOf(decile.map((dot) => dot.y)))} on average.${part}` : "";
  return { title: `${metric.name} of each peer`, metric: metric.name, summary, note, dots, levels, y, xLabel: `${who}s, worst first` };
}
