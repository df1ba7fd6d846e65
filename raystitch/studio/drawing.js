// The drawing: panels for the chosen view, the scene in each of them.

import { svg } from "./dom.js";
import { paint } from "./paint.js";
import { extent, format, linear, ticks } from "./scale.js";
import { boundsOf, dimensionName, fit, projection, wallBounds } from "./view.js";

const PANEL = 132;

// States that the drawing must show: all, or those of the bridge with some room around it.
function framed(scene, project) {
  const states =
    scene.closeup && scene.candidate
      ? scene.candidates.flatMap((candidate) => candidate.observations)
      : [
          ...(scene.source ?? []),
          ...(scene.target ?? []),
          ...(scene.candidates ?? []).flatMap((candidate) => candidate.observations),
        ];
  return states.map(project);
}

function axes(width, height, xs, ys, x, y, names) {
  const nodes = [];
  for (const value of ticks(...xs, Math.max(2, Math.round(width / 110)))) {
    nodes.push(svg("line", { class: "grid", x1: x(value), x2: x(value), y1: 0, y2: height }));
    if (x(value) > 14 && x(value) < width - 14)
      nodes.push(
        svg("text", { class: "tick", x: x(value), y: height - 6, "text-anchor": "middle", text: format(value) }),
      );
  }
  for (const value of ticks(...ys, Math.max(2, Math.round(height / 80)))) {
    nodes.push(svg("line", { class: "grid", x1: 0, x2: width, y1: y(value), y2: y(value) }));
    if (y(value) > 16 && y(value) < height - 22)
      nodes.push(svg("text", { class: "tick", x: 6, y: y(value) - 4, text: format(value) }));
  }
  nodes.push(svg("text", { class: "axis", x: width - 8, y: height - 22, "text-anchor": "end", text: names[0] }));
  nodes.push(svg("text", { class: "axis", x: 8, y: 16, text: names[1] }));
  return nodes;
}

function map(scene, width) {
  const { view } = scene.model;
  const project = projection(view);
  const isMaze = view.kind === "maze";
  const isClose = scene.closeup && scene.candidate;
  const whole = isMaze && !isClose ? wallBounds(view.walls) : null;
  const ratio = whole ? (whole[1][1] - whole[1][0]) / (whole[0][1] - whole[0][0]) : 0.62;
  const height = Math.round(Math.min(width * ratio, Math.max(300, innerHeight * 0.72)));
  const points = whole ? [] : framed(scene, project);
  const bounds =
    whole ??
    (points.length
      ? boundsOf(points, isClose ? 0.25 : 0.06)
      : [
          [-1, 1],
          [-1, 1],
        ]);
  let frame = fit(bounds, width, height);
  let xy = (state) => {
    const [x, y] = project(state);
    return [frame.x(x), frame.y(y)];
  };
  const backdrop = [];
  if (isMaze) {
    for (const name of ["wall-edge", "wall"]) {
      for (const [x, y, w, h] of view.walls) {
        const [left, right, top, bottom] = [frame.x(x), frame.x(x + w), frame.y(y + h), frame.y(y)].map(Math.round);
        backdrop.push(svg("rect", { class: name, x: left, y: top, width: right - left, height: bottom - top }));
      }
    }
    for (const { kind, x, y } of view.marks ?? []) {
      backdrop.push(
        svg(
          "g",
          { class: `place ${kind}`, transform: `translate(${frame.x(x).toFixed(1)} ${frame.y(y).toFixed(1)})` },
          svg("circle", { r: (0.3 * frame.unit).toFixed(1) }),
          svg("text", { y: 4, "text-anchor": "middle", text: kind }),
        ),
      );
    }
  } else {
    // Components have no common unit with the window: fill it.
    const [xs, ys] = bounds;
    const [x, y] = [linear(xs, [10, width - 10]), linear(ys, [height - 18, 10])];
    xy = (state) => {
      const [a, b] = project(state);
      return [x(a), y(b)];
    };
    backdrop.push(...axes(width, height, xs, ys, x, y, ["component 1 →", "↑ component 2"]));
  }
  return {
    height,
    panels: [
      {
        xy,
        width,
        top: 0,
        backdrop,
        labels: true,
        dot: isClose ? 5 : 4,
        near: isClose ? scene.candidate.gap + 6 : Infinity,
      },
    ],
  };
}

function series(scene, width) {
  const { source, target, candidate } = scene;
  const shift = candidate ? candidate.source_step + candidate.gap + 1 - candidate.target_step : 0;
  let times = [0, Math.max(1, (source?.length ?? 1) - 1, (target?.length ?? 1) - 1 + shift)];
  times[0] = Math.min(0, shift);
  if (scene.closeup && candidate) {
    const room = candidate.gap + 1;
    times = [candidate.source_step - room, candidate.source_step + candidate.gap + 1 + room];
  }
  const left = 46;
  const x = linear(times, [left, width - 10]);
  const inside = (time) => time >= times[0] && time <= times[1];
  const panels = scene.dims.map((dimension, index) => {
    const values = [
      ...(source ?? []).filter((_, step) => inside(step)).map((state) => state[dimension]),
      ...(target ?? []).filter((_, step) => inside(step + shift)).map((state) => state[dimension]),
      ...(scene.candidates ?? []).flatMap((other) => other.observations.map((state) => state[dimension])),
    ];
    const [low, high] = values.length ? extent(values) : [-1, 1];
    const pad = (high - low) * 0.12 || 0.5;
    const y = linear([low - pad, high + pad], [PANEL - 14, 10]);
    const backdrop = ticks(low, high, 3).flatMap((value) => [
      svg("line", { class: "grid", x1: left, x2: width, y1: y(value), y2: y(value) }),
      svg("text", { class: "tick", x: left - 6, y: y(value) + 4, "text-anchor": "end", text: format(value) }),
    ]);
    backdrop.push(svg("text", { class: "axis", x: left + 8, y: 14, text: dimensionName(scene.model.view, dimension) }));
    if (candidate) {
      const [from, to] = [x(candidate.source_step), x(candidate.source_step + candidate.gap + 1)];
      backdrop.unshift(svg("rect", { class: "span", x: from, y: 0, width: to - from, height: PANEL - 6 }));
    }
    return {
      xy: (state, time) => [x(time), y(state[dimension])],
      width,
      top: index * PANEL,
      backdrop,
      labels: false,
      dot: 3,
      clip: [left, width - left],
    };
  });
  const height = scene.dims.length * PANEL + 36;
  const foot = ticks(...times, Math.max(2, Math.round(width / 90))).map((value) =>
    svg("text", { class: "tick", x: x(value), y: height - 24, "text-anchor": "middle", text: format(value) }),
  );
  foot.push(svg("text", { class: "axis", x: width - 10, y: height - 6, "text-anchor": "end", text: "step →" }));
  return { height, panels, foot };
}

export function describe(scene) {
  const { candidate, source, target } = scene;
  if (!source && !target) return "Nothing to draw yet";
  const where =
    scene.kind === "time"
      ? "over time"
      : scene.model.view.kind === "maze"
        ? "in the maze"
        : "in two principal components";
  if (!candidate) return `Source and target drawn ${where}`;
  const verdict = scene.verdicts[scene.selected].accepted ? "accepted" : "not accepted";
  return `Stitched trajectory ${where}: the source up to step ${candidate.source_step}, a bridge of ${candidate.gap} imagined states (${verdict}), the target from step ${candidate.target_step} on`;
}

// Redraws everything; returns advance(done), see paint.js.
export function draw(root, scene) {
  const width = Math.max(240, Math.round(root.parentElement.clientWidth));
  const { height, panels, foot = [] } = scene.kind === "time" ? series(scene, width) : map(scene, width);
  root.setAttribute("viewBox", `0 0 ${width} ${height}`);
  root.setAttribute("width", width);
  root.setAttribute("height", height);
  root.setAttribute("aria-label", describe(scene));
  const advances = [];
  const groups = panels.map((panel, index) => {
    const { nodes, advance } = paint(panel, scene);
    advances.push(advance);
    const inner = svg("g", panel.clip ? { "clip-path": "url(#panel-clip)" } : {}, nodes);
    return svg(
      "g",
      { class: "panel-svg", transform: `translate(0 ${panel.top})`, "data-panel": index },
      panel.backdrop,
      inner,
    );
  });
  const clip = panels[0]?.clip;
  const defs = clip
    ? [
        svg(
          "defs",
          {},
          svg(
            "clipPath",
            { id: "panel-clip" },
            svg("rect", { x: clip[0] - 8, y: -2, width: clip[1] + 8, height: PANEL }),
          ),
        ),
      ]
    : [];
  root.replaceChildren(...defs, ...groups, ...foot);
  return (done) => advances.forEach((advance) => advance(done));
}
