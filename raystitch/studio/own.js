// Trajectories that people paste or drop: JSON to checked numbers, or one sentence that names the field.

export class OwnDataError extends Error {}

const fail = (message) => {
  throw new OwnDataError(message);
};

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

function parse(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    return fail(`This is not JSON: ${error.message}`);
  }
}

// [rows][size] of finite numbers; size null takes the first row's.
function matrix(value, field, size, rows) {
  if (!Array.isArray(value)) fail(`${field} must be a list of rows, each a list of numbers`);
  if (rows !== null && value.length !== rows) {
    fail(`${field} has ${value.length} rows; ${rows + 1} observations need ${rows}`);
  }
  value.forEach((row, index) => {
    if (!Array.isArray(row)) fail(`${field}[${index}] must be a list of ${size} numbers`);
    if (row.length !== size) fail(`${field}[${index}] has ${row.length} numbers, the model takes ${size}`);
    row.forEach((number, column) => {
      if (!Number.isFinite(number)) fail(`${field}[${index}][${column}] is ${JSON.stringify(number)}, not a number`);
    });
  });
  return value;
}

function trajectory(value, model) {
  const { obs_dim: obsDim, act_dim: actDim, limits } = model;
  if (Array.isArray(value)) value = { observations: value };
  if (!isObject(value)) fail('Give {"observations": [[..], ..]} or the list of observations itself');
  const known = ["observations", "actions", "rewards", "terminated"];
  const ours = ["index", "return"];
  const unknown = Object.keys(value).find((name) => !known.includes(name) && !ours.includes(name));
  if (unknown !== undefined) fail(`${unknown} is not a field of a trajectory; there are ${known.join(", ")}`);
  if (value.observations === undefined) fail("observations is missing");
  const observations = matrix(value.observations, "observations", obsDim, null);
  if (observations.length < 2) fail(`observations has ${observations.length} rows, a trajectory needs at least 2`);
  if (limits?.max_steps && observations.length > limits.max_steps) {
    fail(`observations has ${observations.length} rows, this server takes at most ${limits.max_steps}`);
  }
  const steps = observations.length - 1;
  const actions = value.actions ? matrix(value.actions, "actions", actDim, steps) : null;
  const rewards = value.rewards ?? null;
  if (rewards !== null) {
    if (!Array.isArray(rewards)) fail("rewards must be a list of numbers");
    if (rewards.length !== steps)
      fail(`rewards has ${rewards.length} numbers; ${steps + 1} observations need ${steps}`);
    rewards.forEach((number, index) => {
      if (!Number.isFinite(number)) fail(`rewards[${index}] is ${JSON.stringify(number)}, not a number`);
    });
  }
  const terminated = value.terminated ?? false;
  if (typeof terminated !== "boolean") fail("terminated must be true or false");
  return { observations, actions, rewards, terminated };
}

// -> { [side]: trajectory }; a whole request ({"source": .., "target": ..}) fills both sides.
export function readOwn(text, side, model) {
  const value = parse(text);
  if (isObject(value) && isObject(value.source) && isObject(value.target)) {
    const read = (name) => {
      try {
        return trajectory(value[name], model);
      } catch (error) {
        return fail(`${name}.${error.message}`);
      }
    };
    return { source: read("source"), target: read("target") };
  }
  return { [side]: trajectory(value, model) };
}

// A trajectory as text, as a user would paste it.
export function example(trajectory) {
  const row = (numbers) => `    ${JSON.stringify(numbers)}`;
  const rows = (matrix) => `[\n${matrix.map(row).join(",\n")}\n  ]`;
  const parts = [`  "observations": ${rows(trajectory.observations)}`];
  if (trajectory.actions) parts.push(`  "actions": ${rows(trajectory.actions)}`);
  if (trajectory.rewards) parts.push(`  "rewards": ${JSON.stringify(trajectory.rewards)}`);
  parts.push(`  "terminated": ${trajectory.terminated}`);
  return `{\n${parts.join(",\n")}\n}\n`;
}
