// The result in words and numbers.

import { CRITERIA, REASON_WORDS } from "./accept.js";
import { h, svg } from "./dom.js";
import { CLASSES, format, formatReturn } from "./scale.js";

const mark = (accepted) =>
  svg(
    "svg",
    { class: "mark-icon", viewBox: "0 0 20 20", "aria-hidden": "true" },
    svg("path", { d: accepted ? "M4 10.5 8.2 15 16 5.5" : "M5 5 15 15M15 5 5 15" }),
  );

export function emptyVerdict() {
  const step = (name, title, text) =>
    h(
      "li",
      { class: name },
      h("span", { class: "key", "aria-hidden": "true" }),
      h("b", { text: title }),
      h("span", { text }),
    );
  return [
    h("p", { class: "verdict-head idle", text: "Press Stitch" }),
    h(
      "ol",
      { class: "how" },
      step("source", "Leave", "The source is left at one of its own recorded states."),
      step("bridge", "Imagine", "The model fills in the states up to the target, then the actions and rewards."),
      step("target", "Join", "The target is entered at one of its recorded states, and followed to its end."),
    ),
  ];
}

// A number before and after, with bars on a common scale.
function comparison(title, hint, before, after) {
  const known = [before, after].filter(Number.isFinite);
  const low = Math.min(0, ...known);
  const high = Math.max(0, ...known);
  const bar = (name, value) => {
    const span = high - low || 1;
    const [from, to] = [(Math.min(0, value ?? 0) - low) / span, (Math.max(0, value ?? 0) - low) / span];
    return svg(
      "svg",
      { class: `meter ${name}`, viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { class: "track", width: 100, height: 6 }),
      svg("rect", { class: "value", x: 100 * from, width: Math.max(0.8, 100 * (to - from)), height: 6 }),
    );
  };
  const line = (name, label, value) => [
    h("dt", { text: label }),
    h("dd", {}, bar(name, value), h("b", { text: formatReturn(value) })),
  ];
  return h(
    "div",
    { class: "comparison" },
    h("h3", {}, title, h("small", { text: hint })),
    h("dl", {}, line("before", "source alone", before), line("after", "stitched", after)),
  );
}

// facts: { verdict, candidate, source, target, totals: [before, after], inferred, isBest, delta }
export function verdictView(facts, buttons) {
  const { verdict, candidate, source, target, totals, inferred, isBest, attempts } = facts;
  const fact = (name, value) => [h("dt", { text: name }), h("dd", { text: value })];
  const why = verdict.failed.length
    ? CRITERIA.filter((name) => verdict.failed.includes(name))
        .map((name) => REASON_WORDS[name])
        .join("; ")
    : null;
  return [
    h(
      "p",
      { class: `verdict-head ${verdict.accepted ? "accepted" : "rejected"}` },
      mark(verdict.accepted),
      h("span", { text: verdict.accepted ? "Accepted" : "Not accepted" }),
      h("small", { text: isBest ? "best candidate" : "candidate of your choice" }),
    ),
    why ? h("p", { class: "why", text: `${why[0].toUpperCase()}${why.slice(1)}.` }) : null,
    comparison("Return of the whole run", "undiscounted", totals[0], totals[1]),
    comparison(
      `From step ${candidate.source_step} on`,
      "discounted, pessimistic",
      candidate.return_source,
      candidate.return_stitched,
    ),
    h(
      "dl",
      { class: "facts" },
      fact("Source left at", `step ${candidate.source_step} of ${source.observations.length - 1}`),
      fact("Bridge", `${candidate.gap} imagined states`),
      fact("Target entered at", `step ${candidate.target_step} of ${target.observations.length - 1}`),
      fact(
        "Largest residual",
        `${format(candidate.residual_max)}${Number.isFinite(verdict.threshold) ? ` (δ ${format(verdict.threshold)})` : ""}`,
      ),
      fact(
        "Chance to end early",
        candidate.termination_max === null
          ? "–"
          : `${(100 * candidate.termination_max).toFixed(candidate.termination_max < 0.1 ? 1 : 0)} %`,
      ),
      attempts ? fact("Attempt", candidate.attempt === 0 ? "first" : `repair ${candidate.attempt}`) : [],
    ),
    inferred.length
      ? h("p", { class: "hint", text: `Not given and filled in by the models: ${inferred.join(", ")}.` })
      : null,
    h("div", { class: "actions" }, buttons),
  ];
}

// How a candidate is drawn among the dots, by the reason of its verdict.
export const dotKind = (reason) => (reason === "ok" ? "ok" : reason === "residual" ? "no" : "other");

export function tallyView(tally, total) {
  const names = ["ok", ...CRITERIA].filter((name) => tally[name]);
  return h(
    "ul",
    { class: "tally", "aria-label": "Candidates by outcome" },
    names.map((name) =>
      h(
        "li",
        { class: dotKind(name) },
        h("span", { class: `dot ${dotKind(name)}`, "aria-hidden": "true" }),
        h("b", { text: tally[name] }),
        svg(
          "svg",
          { class: "tally-bar", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
          svg("rect", { class: "track", width: 100, height: 6 }),
          svg("rect", { class: "value", width: (100 * tally[name]) / total, height: 6 }),
        ),
        h("span", { text: REASON_WORDS[name] ?? name }),
      ),
    ),
  );
}

export function legendView(isStitched, threshold) {
  const item = (name, text) => h("li", {}, h("span", { class: `swatch ${name}`, "aria-hidden": "true" }), text);
  const runs = [item("source", "source"), item("target", "target")];
  if (!isStitched) return [...runs, item("start", "starts"), item("end", "ends")];
  const judged = Number.isFinite(threshold)
    ? CLASSES.map(({ name, label }) => item(`step ${name}`, label))
    : [item("step c1", "bridge (δ is off)")];
  return [
    ...runs,
    item("rest", "left out"),
    h("li", { class: "legend-title", text: "Bridge, residual:" }),
    ...judged,
    item("others ok", "other candidates, accepted"),
    item("others no", "rejected"),
  ];
}

export function announcement({ verdict, candidate, totals, numAccepted, count }) {
  const outcome = verdict.accepted
    ? "Bridge accepted"
    : `Bridge not accepted: ${REASON_WORDS[verdict.reason] ?? verdict.reason}`;
  const before = totals.every(Number.isFinite)
    ? ` Return ${formatReturn(totals[0])} before, ${formatReturn(totals[1])} stitched.`
    : "";
  return `${outcome}. ${candidate.gap} imagined states. ${numAccepted} of ${count} candidates accepted.${before}`;
}
