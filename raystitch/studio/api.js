// The endpoint's v1. Every error becomes a Problem that can be shown in words.

// Where the endpoint is: below the page's own address, which may have a prefix; without a slash at its end.
export const base = new URL(".", document.baseURI).href.replace(/\/$/, "");

const TOKEN = `raystitch-token${new URL(base).pathname.replace(/\/$/, "")}`; // one for each endpoint of a host

export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (value) => sessionStorage.setItem(TOKEN, value),
  forget: () => sessionStorage.removeItem(TOKEN),
};

export class Problem extends Error {
  constructor(status, message, errors = [], requestId = null) {
    super(message);
    this.status = status;
    this.errors = errors;
    this.requestId = requestId;
  }
}

const WORDS = {
  401: "This server needs a token.",
  413: "This is larger than the server takes.",
  429: "The server is busy.",
  503: "The server is starting or stopping.",
  504: "The server did not finish in time; ask for fewer candidates.",
};

async function problemOf(response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    // The answer is not from the endpoint: a proxy's page, or nothing.
  }
  const words = WORDS[response.status];
  const detail = body.detail || words || `The server answered ${response.status} ${response.statusText}.`;
  const wait = Number(response.headers.get("retry-after"));
  const again = wait > 0 ? ` Try again in ${wait} s.` : "";
  const message = [detail, again].join("");
  return new Problem(response.status, message, Array.isArray(body.errors) ? body.errors : [], body.request_id ?? null);
}

async function request(path, { body, signal } = {}) {
  const headers = { Accept: "application/json" };
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(`${base}/${path}`, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw await problemOf(response);
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(response.status, "The server's answer broke off.");
  }
}

const at = (model) => `v1/models/${encodeURIComponent(model)}`;
const cache = new Map();
const CACHED = 400; // runs

// Few at a time, so that thumbnails do not hold up the request that somebody waits for.
let running = 0;
const waiting = [];
async function inTurn(work, signal) {
  if (running >= 4) await new Promise((resolve) => waiting.push(resolve));
  running += 1;
  try {
    signal?.throwIfAborted();
    return await work();
  } finally {
    running -= 1;
    waiting.shift()?.();
  }
}

export const models = async (signal) => (await request("v1/models", { signal })).models;

export function episodes(model, { order, descending, offset, limit }, signal) {
  const query = new URLSearchParams({ order, descending, offset, limit });
  return request(`${at(model)}/episodes?${query}`, { signal });
}

// A trajectory of the served dataset, asked for once.
export function episode(model, index) {
  const path = `${at(model)}/episodes/${index}`;
  if (!cache.has(path)) {
    const found = inTurn(() => request(path));
    found.catch(() => cache.delete(path));
    if (cache.size >= CACHED) cache.delete(cache.keys().next().value);
    cache.set(path, found);
  }
  return cache.get(path);
}

export const stitch = (body, signal) => request("v1/stitch", { body, signal });
