// The threshold: a logarithmic slider with every candidate on it, where its largest residual lies.

import { quantilesAt, thresholdFor } from "./accept.js";
import { $, h, svg } from "./dom.js";
import { dotKind } from "./results.js";
import { format, logarithmic } from "./scale.js";

const STEPS = 500; // positions of the slider that are thresholds
const OFF = 535; // its end
const THUMB = 20;
const ROWS = 5;
const HEIGHT = 74;

// The thresholds with a name at this gap, ascending: [name, value, what it means].
function marksAt(model, gap) {
  const marks = quantilesAt(model, gap).map(([quantile, value]) => [
    `q${quantile}`,
    value,
    `${quantile} % of real stretches of this length have a largest residual below ${format(value)}`,
  ]);
  if (model.delta.auto) {
    const value = thresholdFor("auto", gap, model);
    marks.push(["auto", value, `95 % of the bridges below ${format(value)} should be truer than real data with noise`]);
  }
  return marks.filter(([, value]) => value > 0).sort(([, one], [, other]) => one - other);
}

export class Strip {
  // `on.delta(value)` while sliding, `on.select(index)` for a candidate.
  constructor(root, on) {
    this.on = on;
    this.dots = h("div", {
      class: "dots",
      role: "listbox",
      tabindex: 0,
      "aria-label": "Candidates by largest residual",
      hidden: true,
    });
    this.plot = svg("svg", { class: "strip-plot", "aria-hidden": "true" });
    this.slider = h("input", { type: "range", id: "delta", min: 0, max: OFF, step: 1, oninput: () => this.#slid() });
    this.marks = h("div", { class: "marks", role: "group", "aria-label": "Thresholds with a name" });
    root.replaceChildren(h("div", { class: "strip" }, this.plot, this.dots, this.slider, this.marks));
    this.root = root;
    this.dots.addEventListener("keydown", (event) => this.#key(event));
    this.slider.addEventListener("keydown", (event) => this.#leap(event));
  }

  #slid() {
    const slid = Number(this.slider.value);
    if (slid > (STEPS + OFF) / 2) return this.on.delta("off");
    const at = Math.min(STEPS, slid);
    const mark = this.known.find(([, value]) => this.#position(value) === at);
    return this.on.delta(mark ? mark[0] : Number(this.#value(at).toPrecision(3)));
  }

  // One key press crosses the room between the largest threshold and "off".
  #leap(event) {
    const at = Number(this.slider.value);
    const up = ["ArrowRight", "ArrowUp"].includes(event.key);
    const down = ["ArrowLeft", "ArrowDown"].includes(event.key);
    if (!(up && at === STEPS) && !(down && at === OFF)) return;
    event.preventDefault();
    this.slider.value = up ? OFF : STEPS;
    this.#slid();
  }

  #value = (at) => this.low * (this.high / this.low) ** (at / STEPS);

  #position = (value) =>
    Math.min(STEPS, Math.max(0, Math.round((STEPS * Math.log(value / this.low)) / Math.log(this.high / this.low))));

  #key(event) {
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const { state } = this;
    if (!state?.candidates) return;
    const order = this.sorted;
    let to = order.indexOf(state.selected) + (move ?? 0);
    if (event.key === "Home") to = 0;
    else if (event.key === "End") to = order.length - 1;
    else if (!move) return;
    event.preventDefault();
    this.on.select(order[Math.min(order.length - 1, Math.max(0, to))]);
  }

  // state: { model, delta, gap, candidates | null, verdicts, selected }
  draw(state) {
    this.state = state;
    const { model, delta, gap, candidates } = state;
    this.known = marksAt(model, gap);
    const values = this.known.map(([, value]) => value);
    if (typeof delta === "number" && delta > 0) values.push(delta);
    const largest = (candidates ?? []).map(({ residual_max: residual }) => residual).filter((residual) => residual > 0);
    values.push(...largest);
    this.low = values.length ? Math.min(...values) / 1.6 : 1e-4;
    this.high = values.length ? Math.max(...values) * 1.6 : 1;
    this.#drawPlot(state);
    this.#drawDots(state);
    const threshold = thresholdFor(delta, gap, model);
    this.slider.value = delta === "off" ? OFF : this.#position(Math.max(threshold, this.low));
    const isNamed = typeof delta === "string";
    const origin = delta === "auto" ? "auto" : `${delta} of real steps`;
    const meaning = isNamed ? `${format(threshold)}, ${origin} at gap ${gap}` : format(threshold);
    const words = delta === "off" ? "off: every residual is accepted" : meaning;
    const effect = candidates ? `; ${state.numAccepted} of ${candidates.length} accepted` : "";
    this.slider.setAttribute("aria-valuetext", words + effect);
    $("delta-value").textContent =
      delta === "off"
        ? "off"
        : typeof delta === "string"
          ? `${format(threshold)} = ${delta} at gap ${gap}`
          : format(threshold);
  }

  #drawPlot({ delta, gap, model }) {
    const width = Math.max(220, this.root.clientWidth);
    // The thumb's centre travels from THUMB / 2 to width - THUMB / 2, of which positions 0..STEPS are the axis.
    const end = THUMB / 2 + ((width - THUMB) * STEPS) / OFF;
    const x = logarithmic([this.low, this.high], [THUMB / 2, end]);
    this.slider.style.width = `${width}px`;
    this.x = x;
    const threshold = thresholdFor(delta, gap, model);
    const cut = Number.isFinite(threshold) ? Math.min(x(threshold), width) : width;
    const nodes = [svg("rect", { class: "zone", x: 0, y: 0, width: Math.max(0, cut), height: HEIGHT, rx: 6 })];
    for (const [, value] of this.known)
      nodes.push(svg("line", { class: "quantile", x1: x(value), x2: x(value), y1: 0, y2: HEIGHT }));
    if (Number.isFinite(threshold))
      nodes.push(svg("line", { class: "delta-line", x1: cut, x2: cut, y1: 0, y2: HEIGHT + 12 }));
    if (!this.state.candidates)
      nodes.push(
        svg("text", {
          class: "promise",
          x: 12,
          y: HEIGHT / 2 + 4,
          text:
            width < 640
              ? "Each candidate becomes a dot"
              : "Each candidate becomes a dot: left of the line it is accepted",
        }),
      );
    this.plot.setAttribute("viewBox", `0 0 ${width} ${HEIGHT + 12}`);
    this.plot.setAttribute("height", HEIGHT + 12);
    this.plot.setAttribute("width", width);
    this.plot.replaceChildren(...nodes);
    const focused = this.marks.contains(document.activeElement) ? document.activeElement.textContent : null;
    this.marks.replaceChildren(...this.#markButtons(width, x));
    if (focused) [...this.marks.children].find(({ textContent }) => textContent === focused)?.focus();
  }

  #markButtons(width, x) {
    const { delta } = this.state;
    let free = [-Infinity, -Infinity]; // right end of the last label in each of two rows
    const place = (text, value, at, title) => {
      const row = free.findIndex((end) => at - 18 > end);
      if (row < 0 && value !== delta) return null; // no room; the slider reaches it
      free = free.map((end, index) => (index === Math.max(row, 0) ? at + 18 : end));
      const button = h("button", {
        type: "button",
        class: `mark row${Math.max(row, 0)}`,
        "aria-pressed": String(delta === value),
        title,
        text,
        onclick: () => this.on.delta(value),
      });
      button.style.left = `${at}px`;
      return button;
    };
    const buttons = this.known.map(([name, value, title]) => place(name, name, x(value), title));
    buttons.push(place("off", "off", width - THUMB / 2 - 4, "No threshold: residuals reject nothing"));
    return buttons.filter(Boolean);
  }

  #drawDots({ candidates, verdicts, selected }) {
    this.dots.hidden = !candidates;
    if (!candidates) return;
    const at = (index) =>
      candidates[index].residual_max > 0 ? this.x(candidates[index].residual_max) : this.x(this.high);
    this.sorted = candidates.map((_, index) => index).sort((a, b) => at(a) - at(b) || a - b);
    const ends = Array(ROWS).fill(-Infinity);
    const nodes = [];
    for (const index of this.sorted) {
      const x = at(index);
      let row = ends.findIndex((end) => x - end >= 13);
      if (row < 0) row = ends.indexOf(Math.min(...ends));
      ends[row] = x;
      const { accepted, reason } = verdicts[index];
      const dot = h("div", {
        role: "option",
        id: `candidate-${index}`,
        class: `dot ${dotKind(reason)}`,
        "data-candidate": index,
        "aria-selected": String(index === selected),
        "aria-label": `Candidate ${index + 1}: ${candidates[index].gap} states, largest residual ${format(candidates[index].residual_max)}, ${accepted ? "accepted" : `rejected by ${reason}`}`,
        onclick: () => this.on.select(index),
      });
      dot.style.left = `${x}px`;
      dot.style.bottom = `${6 + row * 13}px`;
      nodes.push(dot);
    }
    this.dots.replaceChildren(...nodes);
    this.dots.setAttribute("aria-activedescendant", `candidate-${selected}`);
  }
}
