"use strict";
// From events to what is drawn: a study has groups (cells of a grid, sides of a comparison), a group has trials (seeds).

/** An empty study.  `accept` puts events in, in any number of calls; the page is drawn from what is there. */
function newStudy() {
  return { head: null, groups: [], warnings: new Map() };
}

/** Take in one event of an event file.  Unknown events are passed over, so that an old page reads newer files. */
function accept(study, event) {
  if (event.event === "report") {
    study.head = event;
    return;
  }
  const trial = trialOf(study, event.group ?? 0, event.seed ?? 0);
  switch (event.event) {
    case "run began":
      trial.card = event;
      break;
    case "round":
      trial.rounds.push(event);
      break;
    case "run finished":
      trial.end = event;
      for (const [name, times] of Object.entries(event.warnings ?? {})) study.warnings.set(name, (study.warnings.get(name) ?? 0) + times);
      break;
  }
}

function trialOf(study, group, seed) {
  study.groups[group] ??= { trials: new Map() };
  const { trials } = study.groups[group];
  if (!trials.has(seed)) trials.set(seed, { seed, card: null, rounds: [], end: null });
  return trials.get(seed);
}

/** The trials of a group; none while nothing of it was recorded. */
function trialsOf(study, group) {
  return [...(study.groups[group]?.trials.values() ?? [])];
}

/** The first trial of a group that has what `pick` looks for. */
function firstOf(study, group, pick) {
  return trialsOf(study, group).map(pick).find((found) => found !== null && found !== undefined) ?? null;
}

/** How the horizontal axis is measured. */
const AXES = {
  round: { label: "Round", of: (event) => event.round + 1, format: (value) => count(value), from: 0 },
  bytes: { label: "Bytes sent a peer", of: (event, peers) => event.bytes_sent / peers, format: bytes, from: 0 },
  time: { label: "Virtual time", of: (event) => event.at, format: seconds, from: 0 },
};

/**
 * A group's points over the rounds: means over its seeds; least and greatest of all peers of all seeds.
 * pick: from a `round` event a number or {mean, min, max}, or nothing.
 */
function pointsOf(study, group, axis, pick) {
  const byRound = new Map();
  for (const trial of trialsOf(study, group)) {
    for (const event of trial.rounds) {
      const found = pick(event);
      if (found === null || found === undefined) continue;
      const value = typeof found === "number" ? { mean: found, min: found, max: found } : found;
      if (value.mean === null) continue;
      if (!byRound.has(event.round)) byRound.set(event.round, []);
      byRound.get(event.round).push({ x: AXES[axis].of(event, trial.card?.peers ?? 1), value });
    }
  }
  return [...byRound.keys()].sort((a, b) => a - b).map((round) => {
    const found = byRound.get(round);
    return {
      round,
      x: meanOf(found.map((one) => one.x)),
      y: meanOf(found.map((one) => one.value.mean)),
      low: Math.min(...found.map((one) => one.value.min)),
      high: Math.max(...found.map((one) => one.value.max)),
    };
  });
}

/** One line a peer of the group's first trial, where their values were recorded. */
function peerLines(study, group, axis) {
  const [trial] = trialsOf(study, group);
  if (!trial || trialsOf(study, group).length > 1) return [];
  const byPeer = new Map();
  for (const event of trial.rounds) {
    for (const [peer, y] of Object.entries(event.by_peer ?? {})) {
      if (!byPeer.has(peer)) byPeer.set(peer, []);
      byPeer.get(peer).push({ x: AXES[axis].of(event, trial.card?.peers ?? 1), y });
    }
  }
  return [...byPeer].map(([peer, points]) => ({ name: `Peer ${peer}`, points }));
}

/**
 * What the spectral gap predicts where nobody trains: from the last training round on, each round leaves 1 - gap of the distance.
 * points: the group's consensus distances.   returns: null without a gap between 0 and 1, or without closing rounds.
 */
function predictedSlope(study, group, points) {
  const card = firstOf(study, group, (trial) => trial.card);
  const gap = card?.spectral_gap ?? null;
  if (gap === null || gap <= 0 || gap >= 1 || !card.closing) return null;
  const last = card.opening + card.training - 1;
  const after = points.filter((point) => point.round >= last);
  if (after.length < 2 || !(after[0].y > 0)) return null;
  return after.map((point) => ({ x: point.x, y: after[0].y * (1 - gap) ** (point.round - after[0].round) }));
}

/** What a round without training has left of the distance, as the geometric mean over all of them; null where there was none. */
function measuredSlope(study, group, points) {
  const card = firstOf(study, group, (trial) => trial.card);
  const after = points.filter((point) => card && point.round >= card.opening + card.training - 1);
  if (after.length < 2 || !after.every((point) => point.y > 0)) return null;
  return (after.at(-1).y / after[0].y) ** (1 / (after.at(-1).round - after[0].round));
}

/** Where training begins and ends on the axis, as marks. */
function stagesOf(study, group, axis) {
  const card = firstOf(study, group, (trial) => trial.card);
  const points = pointsOf(study, group, axis, (event) => event.peers);
  if (!card || !points.length) return [];
  const marks = [];
  const at = (round) => points.find((point) => point.round >= round)?.x;
  if (card.opening && at(card.opening) !== undefined) marks.push({ name: "training", x: at(card.opening) });
  const last = points.filter((point) => point.round < card.opening + card.training).at(-1);
  if (card.closing && last && card.training && last !== points.at(-1)) marks.push({ name: "mixing only", x: last.x });
  return marks;
}

function meanOf(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
