// The first choice: a run with a low return and one with a high return that a bridge of middling length may join.

import * as api from "./api.js";

const LOOKED_AT = 100; // rows, at most
const SHARE = 0.3; // of the dataset, at most
const EACH = { low: 20, high: 8 }; // runs of those
const STATES = 40; // of a run
const MARGIN = 8; // a source is not left from shortly before a termination
const ENOUGH = 12; // steps of a run that tell where it goes

async function sample(model, descending, skipped, count, signal) {
  const total = model.dataset.num_episodes;
  const limit = Math.min(LOOKED_AT, Math.ceil(SHARE * total));
  const offset = Math.floor(skipped * (total - limit));
  const page = await api.episodes(model.name, { order: "return", descending, offset, limit }, signal);
  const long = page.episodes.filter((row) => row.steps >= ENOUGH);
  const from = long.length ? long : page.episodes;
  const stride = Math.max(1, Math.floor(from.length / count));
  const rows = from.filter((_, at) => at % stride === 0).slice(0, count);
  return Promise.all(rows.map(async (row) => ({ row, trajectory: await api.episode(model.name, row.index) })));
}

// Typical change per step in each dimension: distances in these units are about numbers of steps.
function paces(runs) {
  const size = runs[0].trajectory.observations[0].length;
  const totals = Array(size).fill(0);
  let count = 0;
  for (const {
    trajectory: { observations },
  } of runs) {
    for (let step = 1; step < observations.length; step += 1) {
      for (let index = 0; index < size; index += 1)
        totals[index] += (observations[step][index] - observations[step - 1][index]) ** 2;
      count += 1;
    }
  }
  return totals.map((total) => Math.sqrt(total / Math.max(1, count)) || 1);
}

// Some states of a run, their steps, and the return from there on.
function states({ trajectory }, pace, last) {
  const { observations, rewards } = trajectory;
  const ahead = Array(observations.length).fill(0);
  for (let step = observations.length - 2; step >= 0; step -= 1) ahead[step] = ahead[step + 1] + (rewards?.[step] ?? 0);
  const stride = Math.max(1, Math.ceil(last / STATES));
  const found = [];
  for (let step = 0; step < last; step += stride) {
    const raw = observations[step];
    found.push({
      step,
      raw,
      scaled: raw.map((value, index) => value / pace[index]),
      ahead: ahead[step],
      left: observations.length - 1 - step,
    });
  }
  return found;
}

function distance(a, b) {
  let largest = 0;
  for (let index = 0; index < a.length; index += 1) largest = Math.max(largest, Math.abs(a[index] - b[index]));
  return largest;
}

// True if the straight line between two states runs through a wall.
function blocked(view, a, b) {
  if (view.kind !== "maze") return false;
  const [x, y] = view.dims;
  for (let share = 0.1; share < 1; share += 0.1) {
    const [px, py] = [a[x] + share * (b[x] - a[x]), a[y] + share * (b[y] - a[y])];
    if (view.walls.some(([wx, wy, width, height]) => px > wx && px < wx + width && py > wy && py < wy + height))
      return true;
  }
  return false;
}

// The server leaves a source as early, and enters a target as late, as a bridge can reach. -> how much of both is then
// shown, and how seldom the straight line runs through a wall; null if nothing is in reach.
function worth(model, leave, enter) {
  let [first, last, gains, throughWalls] = [null, null, 0, 0];
  for (const a of leave) {
    for (const b of enter) {
      if (b.ahead <= a.ahead) continue;
      gains += 1;
      if (blocked(model.view, a.raw, b.raw)) throughWalls += 1;
      if (distance(a.scaled, b.scaled) > 1.3 * model.gap_max) continue;
      first ??= a;
      if (first === a) last = b;
    }
  }
  if (!first) return null;
  const enough = (steps, most) => Math.min(most, steps / ENOUGH);
  const way = distance(leave[0].scaled, leave.at(-1).scaled) / model.gap_max;
  return (
    enough(first.step, 2) +
    enough(first.left, 1) +
    enough(last.left, 1) +
    2 * Math.min(1, way) -
    (3 * throughWalls) / gains
  );
}

// -> { source, target } indices
export async function defaultPair(model, signal) {
  const [low, high] = await Promise.all([
    sample(model, false, 0.05, EACH.low, signal),
    sample(model, true, 0, EACH.high, signal),
  ]);
  const pace = paces([...low, ...high]);
  const entered = high.map((target) => states(target, pace, target.trajectory.observations.length));
  let best = {
    worth: -Infinity,
    source: low[0].row.index,
    target: (high.find(({ row }) => row.index !== low[0].row.index) ?? high[0]).row.index,
  };
  for (const source of low) {
    const { observations, terminated } = source.trajectory;
    const left = states(source, pace, observations.length - (terminated ? MARGIN : 1));
    for (const [at, target] of high.entries()) {
      if (target.row.index === source.row.index) continue;
      const value = worth(model, left, entered[at]);
      if (value !== null && value > best.worth)
        best = { worth: value, source: source.row.index, target: target.row.index };
    }
  }
  return { source: best.source, target: best.target };
}
