// Draws one scene into one panel. A panel says where a state at a time is: xy(state, time) -> [x, y]; a map ignores
// the time, a panel of one dimension over time ignores the others.

import { svg } from "./dom.js";

const fixed = (point) => `${point[0].toFixed(1)},${point[1].toFixed(1)}`;
const path = (points) => points.map(fixed).join(" ");
const polyline = (name, points) => svg("polyline", { class: name, points: path(points) });

function shape(kind, name, [x, y]) {
  const place = `translate(${x.toFixed(1)} ${y.toFixed(1)})`;
  if (kind === "start") return svg("circle", { class: `end ${name}`, r: 5, transform: place });
  if (kind === "end")
    return svg("rect", { class: `end ${name}`, x: -4.5, y: -4.5, width: 9, height: 9, transform: place });
  return svg("path", { class: `joint ${name}`, d: "M0-7 7 0 0 7-7 0Z", transform: place });
}

function label(text, name, [x, y], { width }) {
  const anchor = x > width - 60 ? "end" : x < 60 ? "start" : "middle";
  return svg("text", { class: `label ${name}`, x: x.toFixed(1), y: (y - 11).toFixed(1), "text-anchor": anchor, text });
}

const LONG = 200;
const runOf = (name, points) => polyline(`run ${name}${points.length > LONG ? " long" : ""}`, points);

// Nothing stitched yet: two whole runs.
function paintRuns(panel, { source, target }) {
  const nodes = [];
  for (const [name, states] of [
    ["source", source],
    ["target", target],
  ]) {
    if (!states) continue;
    const points = states.map((state, step) => panel.xy(state, step));
    nodes.push(runOf(name, points));
    nodes.push(shape("start", name, points[0]), shape("end", name, points.at(-1)));
    if (panel.labels) nodes.push(label(name, name, points[name === "source" ? 0 : points.length - 1], panel));
  }
  return { nodes, advance: () => {} };
}

// The part of `points` up to a fractional number of steps.
function upTo(points, steps) {
  const whole = Math.min(Math.floor(steps), points.length - 1);
  const shown = points.slice(0, whole + 1);
  const rest = steps - whole;
  if (rest > 0 && whole + 1 < points.length) {
    const [a, b] = [points[whole], points[whole + 1]];
    shown.push([a[0] + rest * (b[0] - a[0]), a[1] + rest * (b[1] - a[1])]);
  }
  return shown;
}

function candidateLines(panel, scene) {
  return scene.candidates.map((candidate, index) => {
    const points = candidate.observations.map((state, step) => panel.xy(state, candidate.source_step + step));
    const name = scene.verdicts[index].accepted ? "ok" : "no";
    const group = svg(
      "g",
      { class: `candidate ${name}`, "data-candidate": index },
      polyline("line", points),
      polyline("hit", points),
    );
    group.addEventListener("click", () => scene.onSelect(index));
    return group;
  });
}

// A stitched trajectory: recorded parts are dotted, the kept ones strongly; the bridge is drawn step by step.
function paintStitched(panel, scene) {
  const { source, target, candidate, classes } = scene;
  const { source_step: leave, target_step: enter, gap } = candidate;
  const shift = leave + gap + 1 - enter;
  // Close up on a map, states far ahead or behind would only cross the picture.
  const near = panel.near ?? Infinity;
  const first = Math.max(0, leave - near);
  const place = (states, from, to, by) =>
    states.slice(from, to).map((state, index) => panel.xy(state, from + index + by));
  const recorded = [
    place(source, first, leave + near + 1, 0),
    place(target, Math.max(0, enter - near), enter + near + 1, shift),
  ];
  const bridge = candidate.observations.map((state, step) => panel.xy(state, leave + step));
  const kept = [place(source, first, leave + 1, 0), place(target, enter, enter + near + 1, shift)];
  const lines = [runOf("source", kept[0]), runOf("target", kept[1])];
  const casing = polyline("casing", bridge);
  const steps = classes.map((name, step) =>
    svg("line", {
      class: `step ${name}`,
      "data-step": step,
      x1: bridge[step][0],
      y1: bridge[step][1],
      x2: bridge[step + 1][0],
      y2: bridge[step + 1][1],
    }),
  );
  const dots = bridge
    .slice(1, -1)
    .map(([cx, cy], step) =>
      svg("circle", { class: `state ${classes[step]}`, "data-step": step, cx, cy, r: panel.dot }),
    );
  const joints = [shape("joint", "source", bridge[0]), shape("joint", "target", bridge.at(-1))];
  const runner = svg("circle", { class: "runner", r: panel.dot + 3 });
  for (const [index, node] of steps.entries()) {
    node.addEventListener("pointerenter", () => scene.onHover(index));
    node.addEventListener("pointerleave", () => scene.onHover(null));
  }
  const nodes = [
    polyline("rest source", recorded[0]),
    polyline("rest target", recorded[1]),
    ...candidateLines(panel, scene),
    ...lines,
    ...(first === 0 ? [shape("start", "source", kept[0][0])] : []),
    ...(enter + near >= target.length - 1 ? [shape("end", "target", kept[1].at(-1))] : []),
    casing,
    ...steps,
    ...dots,
    ...joints,
    runner,
  ];
  if (panel.labels)
    nodes.push(label("source", "source", kept[0][0], panel), label("target", "target", kept[1].at(-1), panel));

  const whole = [...kept[0], ...bridge.slice(1, -1), ...kept[1]];
  // `done` steps of the stitched trajectory are shown.
  const advance = (done) => {
    const shown = Math.max(0, done - first);
    lines[0].setAttribute("points", path(upTo(kept[0], shown)));
    const onBridge = done - leave;
    casing.setAttribute("points", onBridge > 0 ? path(upTo(bridge, onBridge)) : "");
    for (const [step, node] of steps.entries()) {
      node.classList.toggle("ahead", onBridge <= step);
      const part = Math.min(1, Math.max(0, onBridge - step));
      const [[x1, y1], [x2, y2]] = [bridge[step], bridge[step + 1]];
      node.setAttribute("x2", x1 + part * (x2 - x1));
      node.setAttribute("y2", y1 + part * (y2 - y1));
    }
    for (const [step, node] of dots.entries()) node.classList.toggle("ahead", onBridge < step + 1);
    joints[0].classList.toggle("ahead", onBridge < 0);
    joints[1].classList.toggle("ahead", onBridge < gap + 1);
    const onTarget = onBridge - gap - 1;
    lines[1].setAttribute("points", onTarget > 0 ? path(upTo(kept[1], onTarget)) : "");
    runner.classList.toggle("ahead", shown >= whole.length - 1);
    const at = upTo(whole, shown).at(-1);
    runner.setAttribute("cx", at[0]);
    runner.setAttribute("cy", at[1]);
  };
  return { nodes, advance };
}

// -> { nodes, advance(done) }
export const paint = (panel, scene) => (scene.candidate ? paintStitched(panel, scene) : paintRuns(panel, scene));
