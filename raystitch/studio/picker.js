// One side's choice: a run of the served dataset (radio buttons with thumbnails), or one's own data.

import * as api from "./api.js";
import { h, svg } from "./dom.js";
import { OwnDataError, example, readOwn } from "./own.js";
import { formatReturn } from "./scale.js";
import { thumbnail } from "./view.js";

const ORDERS = [
  ["return-false", "Worst first"],
  ["return-true", "Best first"],
  ["length-true", "Longest first"],
  ["length-false", "Shortest first"],
  ["index-false", "As recorded"],
];
const PAGE = 30;
const THUMB = [44, 31];

export const TITLES = { source: "Source", target: "Target" };
const HINTS = { source: "the run to leave", target: "the run to join" };

function picture(view, trajectory, side) {
  const points = thumbnail(view, trajectory.observations, ...THUMB).map((point) =>
    point.map((value) => value.toFixed(1)),
  );
  const [x, y] = points[side === "source" ? 0 : points.length - 1];
  return svg(
    "svg",
    { class: `thumb ${side}`, viewBox: `0 0 ${THUMB[0]} ${THUMB[1]}`, "aria-hidden": "true" },
    svg("polyline", { points: points.join(" ") }),
    svg("circle", { cx: x, cy: y, r: 2 }),
  );
}

// `on.pick(side, index)` for a run of the dataset, `on.own({side: trajectory | null}, from)` with own data,
// `on.problem(error, side)` otherwise; `on.last(side)` is the trajectory chosen last.
export class Picker {
  constructor(root, side, on) {
    Object.assign(this, {
      root,
      side,
      on,
      model: null,
      chosen: null,
      run: null,
      order: side === "source" ? "return-false" : "return-true",
    });
    this.summary = h("span", { class: "chosen" }, h("span", { class: "dim", text: "…" }));
    this.error = h("p", { class: "error", role: "alert", id: `${side}-error` });
    this.list = h("div", { class: "runs", role: "radiogroup", "aria-label": `${TITLES[side]}: runs of the dataset` });
    this.select = h(
      "select",
      { id: `${side}-order`, onchange: () => this.reorder(this.select.value) },
      ORDERS.map(([value, text]) => h("option", { value, text, selected: value === this.order })),
    );
    this.dataset = h("div", { class: "dataset" }, this.list);
    this.own = this.#ownForm();
    this.sorting = h(
      "span",
      { class: "sorting" },
      h("label", { for: `${side}-order`, class: "visually-hidden", text: `${TITLES[side]}: order` }),
      this.select,
    );
    this.modes = h(
      "div",
      { class: "segments small", role: "radiogroup", "aria-label": `${TITLES[side]}: where from` },
      this.#mode("dataset", "Dataset", true),
      this.#mode("own", "Your own", false),
    );
    this.details = h(
      "details",
      { class: `panel pick ${side}`, open: !matchMedia("(max-width: 760px)").matches },
      h(
        "summary",
        {},
        h("span", { class: "key", "aria-hidden": "true" }),
        h("b", { text: TITLES[side] }),
        h("span", { class: "dim hint-inline", text: HINTS[side] }),
        this.summary,
      ),
      h("div", { class: "row pick-bar" }, this.modes, this.sorting),
      this.dataset,
      this.own,
    );
    root.replaceChildren(this.details, this.error);
    this.observer = new IntersectionObserver((entries) => this.#seen(entries), { root: this.list, rootMargin: "60px" });
    for (const type of ["dragover", "dragleave", "drop"]) root.addEventListener(type, (event) => this.#drop(event));
  }

  #mode(value, text, checked) {
    const input = h("input", {
      type: "radio",
      name: `${this.side}-mode`,
      value,
      checked,
      onchange: () => this.show(value),
    });
    return h("label", {}, input, h("span", { text }));
  }

  #ownForm() {
    const id = `${this.side}-own`;
    this.text = h("textarea", {
      id,
      rows: 7,
      spellcheck: "false",
      "aria-describedby": `${this.side}-error ${id}-hint`,
      placeholder:
        '{"observations": [[..], [..], ..],\n "actions": [[..], ..],\n "rewards": [.., ..],\n "terminated": false}',
      oninput: () => {
        clearTimeout(this.timer);
        this.timer = setTimeout(() => this.readText(), 250);
      },
    });
    this.fill = h("button", {
      type: "button",
      class: "small",
      text: "Fill in the run chosen before",
      onclick: () => this.#example(),
    });
    const file = h("input", {
      type: "file",
      id: `${id}-file`,
      accept: ".json,application/json",
      class: "visually-hidden",
      onchange: () => this.#file(file.files[0]),
    });
    return h(
      "div",
      { class: "own", hidden: true },
      h("label", { for: id, text: "Trajectory as JSON" }),
      this.text,
      h(
        "div",
        { class: "row" },
        file,
        h("label", { for: `${id}-file`, class: "button small", text: "Open a file" }),
        this.fill,
      ),
      h("p", {
        class: "hint",
        id: `${id}-hint`,
        text: "Only observations are needed; a file may also be dropped here.",
      }),
    );
  }

  #toggle(mode) {
    for (const input of this.modes.querySelectorAll("input")) input.checked = input.value === mode;
    this.dataset.hidden = this.sorting.hidden = mode !== "dataset";
    this.own.hidden = mode !== "own";
  }

  show(mode) {
    this.#toggle(mode);
    this.fail("");
    if (mode === "own" && this.text.value.trim()) this.readText();
    if (mode === "dataset" && this.run !== null) this.on.pick(this.side, this.run);
  }

  // The served dataset of another model; without one only own data is offered.
  async setModel(model) {
    this.model = model;
    this.run = null; // the run of the dataset that was chosen last
    this.modes.hidden = this.fill.hidden = !model.dataset;
    this.total = model.dataset?.num_episodes ?? 0;
    this.show(model.dataset ? "dataset" : "own");
    this.setChosen(null);
    if (!model.dataset) return;
    const ends = await Promise.all(
      [true, false].map((descending) => api.episodes(model.name, { order: "return", descending, offset: 0, limit: 1 })),
    );
    this.returns = [ends[1].episodes[0].return, ends[0].episodes[0].return];
    await this.reorder(this.order);
  }

  async reorder(order) {
    this.order = order;
    this.offset = 0;
    this.list.replaceChildren();
    await this.#more();
  }

  async #more() {
    const [order, descending] = this.order.split("-");
    const asked = { model: this.model, order: this.order };
    let page;
    try {
      page = await api.episodes(this.model.name, { order, descending, offset: this.offset, limit: PAGE });
    } catch (error) {
      this.on.problem(error, this.side);
      return;
    }
    if (asked.model !== this.model || asked.order !== this.order) return;
    const more = this.list.querySelector(".more");
    const hadFocus = more !== null && more === document.activeElement;
    more?.remove();
    this.offset += page.episodes.length;
    const rows = page.episodes.map((row) => this.#row(row));
    this.list.append(...rows);
    if (hadFocus) rows[0]?.querySelector("input").focus();
    if (this.offset < page.total) {
      const left = page.total - this.offset;
      this.list.append(
        h("button", {
          type: "button",
          class: "more",
          text: `Show ${Math.min(PAGE, left)} more of ${left}`,
          onclick: () => this.#more(),
        }),
      );
    }
  }

  #row(row) {
    const [low, high] = this.returns;
    const share = high > low ? (row.return - low) / (high - low) : 0;
    const input = h("input", {
      type: "radio",
      name: `${this.side}-run`,
      value: row.index,
      checked: this.chosen === row.index,
      "aria-label": `Run ${row.index}, return ${formatReturn(row.return)}, ${row.steps} steps${row.terminated ? ", ended by itself" : ""}`,
      onchange: () => this.on.pick(this.side, row.index),
    });
    const bar = svg(
      "svg",
      { class: "return-bar", viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { class: "track", width: 100, height: 4 }),
      svg("rect", { class: "value", width: Math.max(2, 100 * share), height: 4 }),
    );
    const label = h(
      "label",
      { class: "run" },
      input,
      h("span", { class: "thumb-place" }),
      h("span", { class: "run-id", text: `#${row.index}` }),
      h("span", { class: "run-return" }, h("b", { text: formatReturn(row.return) }), bar),
      h("span", { class: "run-steps dim", text: `${row.steps} steps` }),
    );
    label.dataset.index = row.index;
    this.observer.observe(label);
    return label;
  }

  async #seen(entries) {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      this.observer.unobserve(target);
      const { model } = this;
      api.episode(model.name, Number(target.dataset.index)).then(
        (trajectory) =>
          target.querySelector(".thumb-place")?.replaceChildren(picture(model.view, trajectory, this.side)),
        () => {}, // a list without a thumbnail still works; choosing the run reports what is wrong
      );
    }
  }

  // The current choice: {index, trajectory} or {index: null, trajectory} for own data, null before there is one.
  setChosen(chosen) {
    this.chosen = chosen?.index ?? null;
    this.run = this.chosen ?? this.run;
    for (const input of this.list.querySelectorAll("input")) input.checked = Number(input.value) === this.chosen;
    if (!chosen) {
      this.summary.replaceChildren(h("span", { class: "dim", text: "nothing chosen" }));
      return;
    }
    const { trajectory, index } = chosen;
    const total = trajectory.rewards ? trajectory.rewards.reduce((sum, reward) => sum + reward, 0) : null;
    this.summary.replaceChildren(
      picture(this.model.view, trajectory, this.side),
      h(
        "span",
        { class: "facts" },
        h("b", { text: index === null ? "your own" : `#${index}` }),
        ` · return ${total === null ? "not given" : formatReturn(total)} · ${trajectory.observations.length - 1} steps`,
      ),
    );
  }

  fail(message) {
    this.error.textContent = message;
    this.text.toggleAttribute("aria-invalid", Boolean(message) && !this.own.hidden);
  }

  readText() {
    if (!this.text.value.trim()) return;
    try {
      const found = readOwn(this.text.value, this.side, this.model);
      this.fail("");
      this.on.own(found, this.side);
    } catch (error) {
      if (!(error instanceof OwnDataError)) throw error;
      this.fail(error.message);
      this.on.own({ [this.side]: null }, this.side);
    }
  }

  // Own data that was given together with the other side's.
  adopt(trajectory) {
    this.#toggle("own");
    this.fail("");
    this.text.value = example(trajectory);
  }

  // Why there is nothing to stitch on this side.
  failMissing() {
    if (!this.own.hidden && this.text.value.trim()) this.readText();
    else this.fail("Nothing to stitch yet: choose a run or give your own");
  }

  async #file(file) {
    if (!file) return;
    this.details.open = true;
    this.show("own");
    this.text.value = await file.text();
    this.readText();
  }

  #drop(event) {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    this.details.classList.toggle("dropping", event.type === "dragover");
    if (event.type === "drop") this.#file(event.dataTransfer.files[0]);
  }

  #example() {
    const trajectory = this.on.last(this.side);
    if (!trajectory) {
      this.fail("There is no run to fill in: choose one of the dataset first");
      return;
    }
    this.text.value = example(trajectory);
    this.readText();
  }
}
