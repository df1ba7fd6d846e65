// The page: the choice, the answer, and the parts that show them.

import { judgeAll } from "./accept.js";
import * as api from "./api.js";
import { $, h, onWidth } from "./dom.js";
import { readHash, writeHash } from "./link.js";
import { Options } from "./options.js";
import { Panels } from "./panels.js";
import { defaultPair } from "./pick.js";
import { Picker } from "./picker.js";

const state = {
  models: [],
  model: null,
  source: null, // {index, trajectory}; index is null for own data
  target: null,
  delta: "q99",
  requested: null, // the delta that the answer was asked for with
  result: null,
  judged: null, // {verdicts, tally, numAccepted, best} at the present delta
  selected: 0,
  follows: true, // the selection is the best candidate, whichever that is
};
const SIDES = ["source", "target"];
let busy = null;

const options = new Options({ change: () => save() });
const panels = new Panels(state, { setDelta, select, request, gap: () => options.values().gap });
const pickers = Object.fromEntries(
  SIDES.map((side) => [
    side,
    new Picker($(side), side, { pick, own, problem: report, last: (name) => state[name]?.trajectory ?? lastRun[name] }),
  ]),
);
const lastRun = {};

function notice(message, again) {
  $("notice").hidden = !message;
  $("notice").replaceChildren(
    ...(message
      ? [
          h("span", { text: message }),
          ...(again ? [h("button", { type: "button", text: "Try again", onclick: again })] : []),
        ]
      : []),
  );
}

// Shows an error in words, next to its cause.
function report(error, side = null) {
  if (error.name === "AbortError") return;
  if (!(error instanceof api.Problem)) throw error;
  if (error.status === 401) {
    askToken();
    return;
  }
  const fields = error.errors.length ? error.errors : [{ field: "", message: error.message }];
  for (const { field, message } of fields) {
    const place =
      SIDES.find((name) => field.startsWith(name)) ??
      (field ? null : (SIDES.find((name) => message.startsWith(`${name}.`) || message.startsWith(`${name}:`)) ?? side));
    const text = field && !message.includes(field) ? `${field}: ${message}` : message;
    if (place) pickers[place].fail(text);
    else if (!options.fail(field, message))
      $("stitch-error").textContent = [
        text,
        error.requestId && error.status >= 500 ? `(request ${error.requestId})` : "",
      ]
        .join(" ")
        .trim();
  }
}

function clearErrors() {
  $("stitch-error").textContent = "";
  options.clear();
  for (const side of SIDES) pickers[side].fail("");
}

// ---- choosing

async function pick(side, index) {
  const { model } = state;
  pickers[side].fail("");
  const asked = Symbol(side);
  lastRun[`${side}-asked`] = asked;
  try {
    const trajectory = await api.episode(model.name, index);
    if (state.model !== model || lastRun[`${side}-asked`] !== asked) return;
    lastRun[side] = trajectory;
    choose(side, { index, trajectory });
  } catch (error) {
    report(error, side);
  }
}

// found: {side: trajectory | null}; a whole request fills the other side as well.
function own(found, from) {
  for (const [side, trajectory] of Object.entries(found)) {
    lastRun[`${side}-asked`] = null;
    if (side !== from) pickers[side].adopt(trajectory);
    choose(side, trajectory && { index: null, trajectory });
  }
}

function choose(side, chosen) {
  state[side] = chosen;
  pickers[side].setChosen(chosen);
  forget();
}

// An answer belongs to one request; a new choice removes it.
function forget() {
  busy?.abort();
  Object.assign(state, { result: null, judged: null, selected: 0, follows: true });
  $("live").textContent = "";
  save();
  panels.render();
}

function save() {
  if (!state.model) return;
  writeHash({
    model: state.model.name,
    source: state.source?.index,
    target: state.target?.index,
    delta: state.delta,
    ...options.values(),
  });
}

async function useModel(model, wanted = {}) {
  busy?.abort();
  Object.assign(state, {
    model,
    source: null,
    target: null,
    result: null,
    judged: null,
    delta: (wanted.delta === "auto" && !model.delta.auto ? null : wanted.delta) ?? model.delta.default ?? "q99",
  });
  for (const side of SIDES) delete lastRun[side];
  $("model").value = model.name;
  options.setModel(model, wanted);
  panels.setModel(model);
  panels.render();
  try {
    await Promise.all(SIDES.map((side) => pickers[side].setModel(model)));
    if (!model.dataset) return;
    const first = { source: wanted.source, target: wanted.target };
    if (SIDES.some((side) => (first[side] ?? null) === null)) {
      const found = await defaultPair(model);
      for (const side of SIDES) first[side] ??= found[side];
    }
    if (state.model !== model) return;
    await Promise.all(SIDES.map((side) => pick(side, first[side])));
  } catch (error) {
    report(error);
  }
}

// ---- stitching

function request() {
  const side = ({ observations, actions, rewards, terminated }) => ({
    observations,
    actions: actions ?? null,
    rewards: rewards ?? null,
    terminated,
  });
  const { seed, gap, num, cut } = options.values();
  return {
    source: side(state.source.trajectory),
    target: side(state.target.trajectory),
    options: { delta: state.delta, gap, num_candidates: num, return_all: true, seed, cut, model: state.model.name },
  };
}

async function stitch() {
  if (busy || !state.model) return;
  clearErrors();
  const missing = SIDES.filter((side) => !state[side]);
  for (const side of missing) pickers[side].failMissing();
  if (!options.check() || missing.length) return;
  const work = new AbortController();
  busy = work;
  setBusy(true);
  const body = request();
  try {
    const result = await api.stitch(body, work.signal);
    if (busy !== work) return;
    Object.assign(state, { result, requested: body.options.delta, follows: true });
    rejudge();
    save();
    panels.render();
    panels.announce();
    panels.play();
    if ($("stage").getBoundingClientRect().top > innerHeight * 0.6) $("stage").scrollIntoView({ block: "start" });
  } catch (error) {
    report(error);
  } finally {
    if (busy === work || busy === null) {
      busy = null;
      setBusy(false);
    }
  }
}

function setBusy(isBusy) {
  $("choose").setAttribute("aria-busy", String(isBusy));
  document.body.classList.toggle("busy", isBusy);
  $("stitch-label").textContent = isBusy ? "Stitching…" : "Stitch";
  $("stitch").setAttribute("aria-disabled", String(isBusy));
  $("cancel").hidden = !isBusy;
}

function cancel() {
  busy?.abort();
  $("stitch-error").textContent = "";
  $("live").textContent = "Cancelled.";
  $("stitch").focus();
}

// ---- the answer

function rejudge() {
  const { result, delta, model, requested } = state;
  state.judged = judgeAll(result.candidates, delta, model, requested);
  if (state.follows) state.selected = state.judged.best;
}

function setDelta(delta) {
  state.delta = delta;
  if (state.result) rejudge();
  save();
  panels.render();
}

function select(index) {
  state.selected = index;
  state.follows = index === state.judged.best;
  panels.render();
  panels.announce(`Candidate ${index + 1}. `);
}

// ---- start

function askToken() {
  $("token-hint").textContent = api.token.get()
    ? "The server did not take that token. Please check it."
    : "Kept in this tab only, and forgotten when it is closed.";
  $("token").hidden = false;
  $("token-field").focus();
}

function retry() {
  notice("The server is loading its models. This page goes on by itself.");
  setTimeout(boot, 2000);
}

async function boot() {
  notice("");
  try {
    state.models = await api.models();
  } catch (error) {
    if (error.status === 401) askToken();
    else if (error.status === 503) retry();
    else notice(error.message, boot);
    return;
  }
  $("token").hidden = true;
  $("main").hidden = !state.models.length;
  if (!state.models.length) {
    retry();
    return;
  }
  $("model").replaceChildren(
    ...state.models.map(({ name, dataset }) =>
      h("option", { value: name, text: dataset ? `${name} (${dataset.ref.split("/").at(-1)})` : name }),
    ),
  );
  $("model-row").hidden = state.models.length < 2;
  const wanted = readHash(location.hash);
  const model = state.models.find(({ name }) => name === wanted.model) ?? state.models[0];
  await useModel(model, model.name === wanted.model || wanted.model === null ? wanted : {});
}

$("choose").addEventListener("submit", (event) => {
  event.preventDefault();
  stitch();
});
$("cancel").addEventListener("click", cancel);
$("model").addEventListener("change", () => useModel(state.models.find(({ name }) => name === $("model").value)));
$("token").addEventListener("submit", (event) => {
  event.preventDefault();
  api.token.set($("token-field").value.trim());
  $("token-field").value = "";
  boot();
});
addEventListener("hashchange", () => boot());
for (const id of ["canvas", "strip"]) onWidth($(id), () => panels.render());
boot();
