// The first choice: a run with a low return and one with a high return that a bridge of middling length may join.

import * as api from "./api.js";

const EACH = 12;
const STATES = 40;
const MARGIN = 8; // a source is not left from shortly before a termination
const ENOUGH = 20; // steps of a run that tell where it goes

async function sample(model, descending, share, signal) {
  const offset = Math.floor(share * Math.max(model.dataset.num_episodes - EACH, 0));
  const page = await api.episodes(model.name, { order: "return", descending, offset, limit: EACH }, signal);
  return Promise.all(page.episodes.map(async (row) => ({ row, trajectory: await api.episode(model.name, row.index) })));
}

// Typical change per step in each dimension: distances in these units are about numbers of steps.
function paces(runs) {
  const size = runs[0].trajectory.observations[0].length;
  const totals = Array(size).fill(0);
  let count = 0;
  for (const { trajectory: { observations } } of runs) {
    for (let step = 1; step < observations.length; step += 1) {
      for (let index = 0; index < size; index += 1) totals[index] += (observations[step][index] - observations[step - 1][index]) ** 2;
      count += 1;
    }
  }
  return totals.map((total) => Math.sqrt(total / Math.max(1, count)) || 1);
}

// Some states of a run, where they lie in it and what it still brings from there.
function states({ trajectory }, pace, last) {
  const { observations, rewards } = trajectory;
  const ahead = Array(observations.length).fill(0);
  for (let step = observations.length - 2; step >= 0; step -= 1) ahead[step] = ahead[step + 1] + (rewards?.[step] ?? 0);
  const stride = Math.max(1, Math.ceil(last / STATES));
  const found = [];
  for (let step = 0; step < last; step += stride) {
    const raw = observations[step];
    found.push({ step, raw, scaled: raw.map((value, index) => value / pace[index]), ahead: ahead[step], left: observations.length - 1 - step });
  }
  return found;
}

function distance(a, b) {
  let squares = 0;
  for (let index = 0; index < a.length; index += 1) squares += (a[index] - b[index]) ** 2;
  return Math.sqrt(squares / a.length);
}

// Whether the straight line between two states runs through a wall; without walls nothing does.
function blocked(view, a, b) {
  if (view.kind !== "maze") return false;
  const [x, y] = view.dims;
  for (let share = 0.1; share < 1; share += 0.1) {
    const [px, py] = [a[x] + share * (b[x] - a[x]), a[y] + share * (b[y] - a[y])];
    if (view.walls.some(([wx, wy, width, height]) => px > wx && px < wx + width && py > wy && py < wy + height)) return true;
  }
  return false;
}

// How much joining these two states would show; null if a bridge there is unlikely.
function worth(model, a, b) {
  const steps = distance(a.scaled, b.scaled);
  if (steps > 0.6 * model.gap_max || b.ahead <= a.ahead || blocked(model.view, a.raw, b.raw)) return null;
  return Math.min(1, a.step / ENOUGH) + Math.min(1, b.left / ENOUGH) + Math.min(1, a.left / ENOUGH) - Math.max(0, model.gap_min - steps) / model.gap_min;
}

// -> { source, target } indices
export async function defaultPair(model, signal) {
  const [low, high] = await Promise.all([sample(model, false, 0.1, signal), sample(model, true, 0, signal)]);
  const pace = paces([...low, ...high]);
  const entered = high.map((target) => states(target, pace, target.trajectory.observations.length));
  let best = { worth: -Infinity, source: low[0].row.index, target: (high.find(({ row }) => row.index !== low[0].row.index) ?? high[0]).row.index };
  for (const source of low) {
    const { observations, terminated } = source.trajectory;
    const left = states(source, pace, observations.length - (terminated ? MARGIN : 1));
    high.forEach((target, at) => {
      if (target.row.index === source.row.index) return;
      // Many states that may be joined, not one by chance: the mean over the best few counts.
      const found = left.flatMap((a) => entered[at].map((b) => worth(model, a, b)).filter((value) => value !== null)).sort((a, b) => b - a);
      const few = found.slice(0, 12);
      const value = few.length < 12 ? -Infinity : few.reduce((sum, one) => sum + one, 0) / few.length;
      if (value > best.worth) best = { worth: value, source: source.row.index, target: target.row.index };
    });
  }
  return { source: best.source, target: best.target };
}
