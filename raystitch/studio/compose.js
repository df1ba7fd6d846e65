// Makes a whole trajectory from the chosen candidate, and files and commands to take it elsewhere.

const sum = (values) => values.reduce((total, value) => total + value, 0);

export const returnOf = (trajectory) => (trajectory.rewards ? sum(trajectory.rewards) : null);

// source[0..source_step] + bridge + target[target_step..]. Columns that the caller left out were filled in by the
// models; the answer holds them for the first candidate only, so for others they stay null.
export function stitched(result, index, source, target) {
  const candidate = result.candidates[index];
  if (index === 0) return result.trajectory;
  const { source_step: leave, target_step: enter, gap } = candidate;
  const rest = target.observations.length - 1 - enter;
  const column = (name) => [
    ...(source[name] ? source[name].slice(0, leave) : Array(leave).fill(null)),
    ...candidate[name],
    ...(target[name] ? target[name].slice(enter) : Array(rest).fill(null)),
  ];
  return {
    observations: [
      ...source.observations.slice(0, leave + 1),
      ...candidate.observations.slice(1, -1),
      ...target.observations.slice(enter),
    ],
    actions: column("actions"),
    rewards: column("rewards"),
    is_synthetic: [...Array(leave).fill(false), ...Array(gap + 1).fill(true), ...Array(rest).fill(false)],
  };
}

// The undiscounted return of the whole trajectory; null if a reward is unknown.
export function totalReturn(trajectory) {
  return trajectory.rewards.some((reward) => reward === null) ? null : sum(trajectory.rewards);
}

// The answer as the server would have given it with this candidate first and this delta.
export function answerFor(result, index, verdicts, numAccepted, source, target) {
  const candidate = result.candidates[index];
  const verdict = verdicts[index];
  const shared = ["gap", "source_step", "target_step", "residuals", "return_source", "return_stitched"];
  return {
    ...result,
    ...Object.fromEntries(shared.map((name) => [name, candidate[name]])),
    accepted: verdict.accepted,
    reason: verdict.reason,
    delta: Number.isFinite(verdict.threshold) ? verdict.threshold : null,
    num_accepted: numAccepted,
    trajectory: stitched(result, index, source, target),
    candidates: result.candidates.map((other, at) => ({
      ...other,
      accepted: verdicts[at].accepted,
      reason: verdicts[at].reason,
      failed: verdicts[at].failed,
      delta: Number.isFinite(verdicts[at].threshold) ? verdicts[at].threshold : null,
    })),
  };
}

// One row per state; actions, reward and is_synthetic are of the transition that starts there.
export function csv(trajectory) {
  const sizes = [trajectory.observations[0].length, trajectory.actions.find((action) => action !== null)?.length ?? 0];
  const names = (prefix, size) => Array.from({ length: size }, (_, index) => `${prefix}_${index}`);
  const lines = [["step", ...names("observation", sizes[0]), ...names("action", sizes[1]), "reward", "is_synthetic"]];
  trajectory.observations.forEach((observation, step) => {
    const action = trajectory.actions[step] ?? Array(sizes[1]).fill("");
    lines.push([step, ...observation, ...action, trajectory.rewards[step] ?? "", trajectory.is_synthetic[step] ?? ""]);
  });
  return lines.map((line) => line.join(",")).join("\n") + "\n";
}

export function curl(origin, body, needsToken) {
  const lines = [`curl -sS '${origin}/v1/stitch' \\`, "  -H 'Content-Type: application/json' \\"];
  if (needsToken) lines.push('  -H "Authorization: Bearer $RAYSTITCH_TOKEN" \\');
  return [...lines, "  --data-binary @- <<'JSON'", JSON.stringify(body), "JSON"].join("\n") + "\n";
}

export function download(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
