// The residual of every step of the chosen bridge: bars on a logarithmic axis with the threshold, and the numbers.

import { h, svg } from "./dom.js";
import { classOf, format, linear, logTicks, logarithmic } from "./scale.js";

const HEIGHT = 150;
const LEFT = 50;
const BOTTOM = 20;

function bars(width, residuals, threshold, onHover) {
  const shown = residuals.filter((residual) => residual > 0);
  const values = Number.isFinite(threshold) && threshold > 0 ? [...shown, threshold] : shown;
  if (!values.length) values.push(1e-3, 1);
  const [low, high] = [Math.min(...values) / 2, Math.max(...values) * 1.8];
  const y = logarithmic([low, high], [HEIGHT - BOTTOM, 8]);
  const x = linear([0, residuals.length], [LEFT, width - 4]);
  const gap = Math.min(6, (x(1) - x(0)) * 0.25);
  const nodes = logTicks(low, high).flatMap((value) => [
    svg("line", { class: "grid", x1: LEFT, x2: width, y1: y(value), y2: y(value) }),
    svg("text", { class: "tick", x: LEFT - 6, y: y(value) + 4, "text-anchor": "end", text: format(value) }),
  ]);
  const every = Math.ceil(residuals.length / Math.max(2, Math.floor((width - LEFT) / 28)));
  residuals.forEach((residual, step) => {
    const top = residual > 0 ? Math.min(y(residual), HEIGHT - BOTTOM - 2) : residual === null ? 8 : HEIGHT - BOTTOM - 2;
    const bar = svg(
      "g",
      { class: `bar-step ${classOf(residual, threshold)}`, "data-step": step },
      svg("rect", { class: "reach", x: x(step), y: 0, width: x(step + 1) - x(step), height: HEIGHT - BOTTOM }),
      svg("rect", {
        class: "value",
        x: x(step) + gap / 2,
        y: top,
        width: Math.max(1.5, x(step + 1) - x(step) - gap),
        height: HEIGHT - BOTTOM - top,
        rx: 2,
      }),
    );
    bar.addEventListener("pointerenter", () => onHover(step));
    bar.addEventListener("pointerleave", () => onHover(null));
    nodes.push(bar);
    if (step % every === 0)
      nodes.push(
        svg("text", {
          class: "tick",
          x: (x(step) + x(step + 1)) / 2,
          y: HEIGHT - 5,
          "text-anchor": "middle",
          text: step + 1,
        }),
      );
  });
  if (Number.isFinite(threshold)) {
    const at = y(threshold);
    nodes.push(svg("line", { class: "delta-line", x1: LEFT, x2: width, y1: at, y2: at }));
    nodes.push(svg("text", { class: "delta-name", x: width - 4, y: at - 5, "text-anchor": "end", text: "δ" }));
  }
  return svg(
    "svg",
    {
      class: "steps-plot",
      viewBox: `0 0 ${width} ${HEIGHT}`,
      width,
      height: HEIGHT,
      role: "img",
      "aria-label": "Bar chart of the residual of each step; the numbers are in the table below",
    },
    nodes,
  );
}

function table(candidate, threshold) {
  const rows = candidate.residuals.map((residual, step) =>
    h(
      "tr",
      { "data-step": step },
      h("th", { scope: "row", text: step + 1 }),
      h("td", { text: format(residual) }),
      h("td", { text: Number.isFinite(threshold) && residual !== null ? format(residual / threshold) : "–" }),
      h("td", { text: format(candidate.rewards[step]) }),
      h("td", {
        text: Number.isFinite(threshold)
          ? residual !== null && residual < threshold
            ? "under"
            : "over"
          : "not judged",
      }),
    ),
  );
  const heads = ["Step", "Residual", "Residual / δ", "Reward", "δ"].map((text) => h("th", { scope: "col", text }));
  return h(
    "table",
    {},
    h("caption", { class: "visually-hidden", text: "Residual of each step of the bridge shown" }),
    h("thead", {}, h("tr", {}, heads)),
    h("tbody", {}, rows),
  );
}

export function drawSteps(root, candidate, threshold, onHover) {
  if (!candidate) {
    root.replaceChildren(
      h("p", {
        class: "empty",
        text: "One bar for each step of the bridge, and the line it has to stay below, appear here.",
      }),
    );
    return;
  }
  const wasOpen = root.querySelector("details")?.open ?? false;
  const width = Math.max(220, root.clientWidth);
  root.replaceChildren(
    bars(width, candidate.residuals, threshold, onHover),
    h(
      "details",
      { class: "numbers", open: wasOpen },
      h("summary", { text: "As a table" }),
      h(
        "div",
        { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of residuals" },
        table(candidate, threshold),
      ),
    ),
  );
}
