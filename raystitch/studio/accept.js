// Which candidates of an answer a threshold accepts, by the server's rule.

// The first criterion that fails, in this order, is the reason.
export const CRITERIA = ["non_finite", "residual", "spread", "rollout", "termination", "return"];

export const REASON_WORDS = {
  ok: "accepted",
  residual: "a step the judges do not believe (residual ≥ δ)",
  return: "no better than staying in the source",
  termination: "the episode would probably end on the way",
  spread: "the judges disagree",
  rollout: "following the actions ends elsewhere",
  non_finite: "not a finite number",
};

// A delta is "q99" or "auto" (per gap), a number, or "off".
export function parseDelta(text) {
  if (text === "off" || text === "auto" || /^q(\d{1,2}(\.\d+)?|100)$/.test(text)) return text;
  const value = Number(text);
  return text !== "" && text !== null && Number.isFinite(value) && value >= 0 ? value : null;
}

const atGap = (values, gaps, gap) => values[Math.min(Math.max(gap - gaps[0], 0), gaps.length - 1)];

// The quantiles' values for one gap: [[50, 0.01], ..]; a gap outside the table takes its nearest end.
export function quantilesAt(model, gap) {
  const { gaps, quantiles, values } = model.delta;
  const row = atGap(values, gaps, gap);
  return quantiles.map((quantile, index) => [quantile, row[index]]);
}

// The number that residuals of this gap must stay below; Infinity for off.
export function thresholdFor(delta, gap, model) {
  if (delta === "off") return Infinity;
  if (typeof delta === "number") return delta;
  if (delta === "auto") return atGap(model.delta.auto, model.delta.gaps, gap);
  const asked = Number(delta.slice(1));
  const known = quantilesAt(model, gap);
  const exact = known.find(([quantile]) => quantile === asked);
  if (exact) return exact[1];
  const above = known.findIndex(([quantile]) => quantile > asked);
  if (above <= 0) return known[above === 0 ? 0 : known.length - 1][1];
  const [[q0, v0], [q1, v1]] = [known[above - 1], known[above]];
  return v0 + ((asked - q0) / (q1 - q0)) * (v1 - v0);
}

// At the delta of the request the server's own threshold is used, so quantiles outside the table work too.
export function thresholdOf(candidate, delta, model, requested) {
  if (delta === requested) return candidate.delta === null ? Infinity : candidate.delta;
  return thresholdFor(delta, candidate.gap, model);
}

export function judge(candidate, delta, model, requested) {
  const threshold = thresholdOf(candidate, delta, model, requested);
  const failed = candidate.failed.filter((name) => name !== "residual");
  const isOver = delta !== "off" && !(candidate.residual_max !== null && candidate.residual_max < threshold);
  if (isOver) failed.push("residual");
  const reason = CRITERIA.find((name) => failed.includes(name)) ?? "ok";
  return { threshold, failed, reason, accepted: reason === "ok" };
}

// All candidates at one delta: their verdicts, how many pass, the best one's index (the first that passes, else 0).
export function judgeAll(candidates, delta, model, requested) {
  const verdicts = candidates.map((candidate) => judge(candidate, delta, model, requested));
  const tally = {};
  for (const { reason } of verdicts) tally[reason] = (tally[reason] ?? 0) + 1;
  const first = verdicts.findIndex(({ accepted }) => accepted);
  return { verdicts, tally, numAccepted: tally.ok ?? 0, best: Math.max(first, 0) };
}
