"use strict";

const by = (id) => document.getElementById(id);
const TRAIL = 40;           // places of a track that are drawn
const FORGET = 3;           // seconds of the stream after which a track that is gone is forgotten
const STATE_EVERY = 500;    // ms

let state = null;           // the last answer of /api/state
let selected = 0;           // number of the stream on the stage
let shown = null;           // {about, bitmap, run} of the picture on the stage; run: of the server that sent it
let request = null;         // the picture that is being waited for
let trails = new Map();     // track id -> {places, seen}
let own = [];               // the model's thresholds, as soon as they were in force
let dragging = false;
let changes = 0;            // of the threshold, by this page

const seconds = (s) => s < 60 ? `${Math.floor(s)} s` : s < 3600 ? `${Math.floor(s / 60)} min` : `${Math.floor(s / 3600)} h`;
const percent = (score) => score.toFixed(2);
const celsius = (c) => c ? `${c.max.toFixed(1)} °C` : "";

// ---- the picture

async function watch() {
  for (;;) {
    if (document.hidden) { await pause(300); continue; }
    const number = selected;
    request = new AbortController();
    try {
      const after = shown ? `after=${shown.about.number}&run=${shown.run}` : "after=0";
      const answer = await fetch(`api/streams/${number}/picture?${after}`, {signal: request.signal});
      if (answer.status !== 200) { if (answer.status !== 204) await pause(1000); continue; }
      const bytes = new Uint8Array(await answer.arrayBuffer());
      const line = bytes.indexOf(10);
      const about = JSON.parse(new TextDecoder().decode(bytes.subarray(0, line)));
      const bitmap = await createImageBitmap(new Blob([bytes.subarray(line + 1)], {type: "image/jpeg"}));
      if (number !== selected) continue;
      if (!shown) by("veil").hidden = true;
      const run = answer.headers.get("Glmd-Run");
      if (shown && shown.run !== run) trails = new Map();  // its tracks are others
      shown = {about, bitmap, run};
      follow(about);
      draw();
      await new Promise(requestAnimationFrame);
    } catch (error) {
      if (error.name !== "AbortError") await pause(1000);
    }
  }
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

function follow({detections, time}) {
  for (const d of detections) {
    if (d.track_id === undefined || d.track_id === null) continue;
    const trail = trails.get(d.track_id) || {places: []};
    trail.places.push([(d.xyxy[0] + d.xyxy[2]) / 2, d.xyxy[3]]);
    trail.places = trail.places.slice(-TRAIL);
    trail.seen = time;
    trail.name = d.name;
    trails.set(d.track_id, trail);
  }
  for (const [id, trail] of trails) if (Math.abs(time - trail.seen) > FORGET) trails.delete(id);
}

// Detections of the picture on the stage that the slider leaves; the detector follows with its next frame.
function kept() {
  if (!shown) return [];
  const threshold = dragging ? Number(by("threshold").value) : state && state.threshold;
  return shown.about.detections.filter((d) => threshold === null || threshold === undefined || d.score > threshold);
}

function draw() {
  by("stage").classList.toggle("empty", !shown);
  if (!shown) return;
  const {about, bitmap} = shown, canvas = by("picture"), stage = by("stage");
  const wide = window.matchMedia("(min-width: 761px)").matches;
  const room = [stage.clientWidth, wide ? stage.clientHeight : stage.clientWidth * 1.2];
  const zoom = Math.min(room[0] / about.width, room[1] / about.height);
  const width = Math.floor(about.width * zoom), height = Math.floor(about.height * zoom);
  const sharp = window.devicePixelRatio || 1;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  if (canvas.width !== Math.round(width * sharp) || canvas.height !== Math.round(height * sharp)) {
    canvas.width = Math.round(width * sharp);
    canvas.height = Math.round(height * sharp);
  }
  const c = canvas.getContext("2d");
  c.setTransform(sharp, 0, 0, sharp, 0, 0);
  c.imageSmoothingQuality = "high";
  c.drawImage(bitmap, 0, 0, width, height);
  drawTrails(c, zoom);
  const rows = kept();
  for (const d of [...rows].reverse()) drawBox(c, d, zoom);
  const taken = rows.map((d) => smaller(d.xyxy.map((v) => v * zoom)));  // labels do not hide objects
  for (const d of rows) drawLabel(c, d, zoom, taken, width, height);
  const held = about.held ? " · shutter closed" : "";
  by("caption").textContent = `frame ${about.index} · ${about.time.toFixed(1)} s${held}`;
  list(rows);
}

const colour = (name) => (state && state.colours[name]) || "#ffbe50";

function drawTrails(c, zoom) {
  c.lineWidth = 2;
  for (const trail of trails.values()) {
    c.strokeStyle = colour(trail.name);
    for (let i = 1; i < trail.places.length; i++) {
      c.globalAlpha = 0.7 * i / trail.places.length;
      c.beginPath();
      c.moveTo(trail.places[i - 1][0] * zoom, trail.places[i - 1][1] * zoom);
      c.lineTo(trail.places[i][0] * zoom, trail.places[i][1] * zoom);
      c.stroke();
    }
  }
  c.globalAlpha = 1;
}

function drawBox(c, d, zoom) {
  const [x1, y1, x2, y2] = d.xyxy.map((v) => v * zoom);
  for (const [width, style] of [[4, "rgba(6, 9, 13, .75)"], [2, colour(d.name)]]) {
    c.lineWidth = width;
    c.strokeStyle = style;
    c.strokeRect(x1 - 1, y1 - 1, x2 - x1 + 2, y2 - y1 + 2);
  }
}

function drawLabel(c, d, zoom, taken, width, height) {
  const track = d.track_id === undefined || d.track_id === null ? "" : ` #${d.track_id}`;
  const text = [`${d.name}${track}`, percent(d.score), celsius(d.celsius)].filter(Boolean).join("  ");
  const size = width < 600 ? 10 : 12.5;
  c.font = `600 ${size}px system-ui, 'DejaVu Sans', sans-serif`;
  const w = c.measureText(text).width + 10, h = Math.round(size * 1.5);
  const [x1, y1, x2, y2] = d.xyxy.map((v) => v * zoom);
  const places = [[x1 - 2, y1 - h - 3], [x1 - 2, y2 + 3], [x2 - w + 2, y1 - h - 3], [x2 - w + 2, y2 + 3], [x2 + 4, y1], [x1 - w - 4, y1]];
  for (const place of places) {
    const x = Math.max(0, Math.min(place[0], width - w)), y = Math.max(0, Math.min(place[1], height - h));
    if (taken.some((t) => x < t[2] && t[0] < x + w && y < t[3] && t[1] < y + h)) continue;
    taken.push([x, y, x + w, y + h]);
    c.fillStyle = "rgba(6, 9, 13, .78)";
    c.beginPath();
    c.roundRect(x, y, w, h, 4);
    c.fill();
    c.fillStyle = colour(d.name);
    c.fillText(text, x + 5, y + h - size * 0.42);
    return;
  }
}

// The middle of a box: a label may lie over its edge, and in a large one.
function smaller([x1, y1, x2, y2]) {
  const dx = Math.min((x2 - x1) / 4, 12), dy = Math.min((y2 - y1) / 4, 12);
  const x = (x1 + x2) / 2, y = (y1 + y2) / 2;
  return [x - dx, y - dy, x + dx, y + dy];
}

function list(rows) {
  by("count").textContent = rows.length;
  by("detections").replaceChildren(...rows.map((d) => {
    const row = document.createElement("li"), mark = document.createElement("i");
    mark.style.background = colour(d.name);
    const track = d.track_id === undefined || d.track_id === null ? "" : ` #${d.track_id}`;
    row.append(mark, text("span", d.name + track), text("small", celsius(d.celsius)), text("span", percent(d.score)));
    return row;
  }));
}

function text(tag, words) {
  const element = document.createElement(tag);
  element.textContent = words;
  return element;
}

// ---- states and figures

async function ask() {
  for (;;) {
    try {
      const began = changes;
      const answer = await fetch("api/state");
      if (!answer.ok) throw new Error(answer.status);
      const came = await answer.json();
      if (came.threshold === null) own = Object.values(came.thresholds);
      if (state && changes !== began) came.threshold = state.threshold;  // it was asked before the user moved the slider
      state = came;
      by("connection").hidden = true;
      tell();
    } catch (error) {
      const refused = error.message === "403";  // it was started again, and has another token
      by("connection").textContent = refused ? "glmd-run wants its token: open its new address" : "No answer from glmd-run";
      by("connection").hidden = false;
      by("stage").classList.add("stale");
    }
    await pause(document.hidden ? 2000 : STATE_EVERY);
  }
}

function tell() {
  const {model, streams} = state;
  if (shown && shown.run !== state.run) clear();  // glmd-run was started again: its picture is over
  if (selected >= streams.length) return select(0);
  const stream = streams[selected];
  by("model").textContent = model.name;
  by("engine").textContent = `${model.backend} · ${model.precision} · ${model.device}`;
  document.title = `${stream.name} · ${model.name}`;
  tellSources(streams);
  const runs = stream.state === "running" && stream.latency !== null;
  by("rate").textContent = runs ? stream.rate.toFixed(1) : "–";
  by("latency").textContent = runs ? Math.round(stream.latency) : "–";
  const drops = Object.entries(stream.drops);
  by("dropped").textContent = drops.reduce((sum, [, count]) => sum + count, 0);
  by("causes").textContent = drops.map(([cause, count]) => `${count} ${cause}`).join(" · ");
  by("snapshot").disabled = stream.frames === 0;
  by("warning").textContent = stream.warnings.join(" ");
  by("warning").hidden = stream.warnings.length === 0;
  if (!dragging) tellThreshold();
  tellVeil(stream);
}

function tellSources(streams) {
  const box = by("source-list");
  while (box.children.length > streams.length) box.lastChild.remove();
  while (box.children.length < streams.length) {
    const number = box.children.length, row = document.createElement("button");
    row.type = "button";
    row.setAttribute("role", "option");
    row.append(text("span", ""), text("span", ""), text("small", ""));
    row.addEventListener("click", () => select(number));
    box.append(row);
  }
  streams.forEach((stream, i) => {
    const row = box.children[i], kind = stream.failed ? "failed" : stream.state;
    row.className = `source ${kind}`;
    row.title = stream.name;
    row.setAttribute("aria-selected", i === selected);
    row.children[0].className = `dot ${kind}`;
    row.children[1].textContent = stream.name;
    row.children[2].textContent = kind === "running" ? `${stream.rate.toFixed(1)} / s` : kind === "lost" ? `lost ${seconds(stream.silence)}` : kind;
  });
}

function tellVeil(stream) {
  const veil = by("veil"), stage = by("stage");
  const away = stream.state !== "running" || !shown;
  veil.hidden = !away;
  veil.className = stream.failed ? "lost" : stream.state;
  stage.classList.toggle("stale", stream.state === "lost" || stream.failed);
  if (!away) return;
  const title = {
    lost: `Lost for ${seconds(stream.silence)}`, connecting: "Connecting", ended: "Ended", running: "Waiting for a picture",
  }[stream.state];
  by("veil-title").textContent = stream.failed ? "Failed" : title;
  by("veil-text").textContent = stream.state === "running" ? "" : stream.detail;
}

function tellThreshold() {
  const isOwn = state.threshold === null;
  const low = Math.min(...own), high = Math.max(...own);
  const range = own.length ? `, ${[...new Set([low, high].map(percent))].join(" to ")}` : "";
  if (!isOwn) by("threshold").value = state.threshold;
  else if (own.length) by("threshold").value = (low + high) / 2;
  by("threshold-value").textContent = isOwn ? `model's own${range}` : percent(state.threshold);
  by("own").disabled = isOwn;
}

// ---- what the user does

function select(number) {
  if (number === selected) return;
  selected = number;
  clear();
  if (request) request.abort();
  if (state) tell();
}

function clear() {
  shown = null;
  trails = new Map();
  draw();
  by("caption").textContent = "";
  list([]);
}

async function setThreshold(value) {
  await fetch("api/threshold", {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({value}),
  }).catch(() => null);
  if (state) state.threshold = value;
}

let sending = false, wanted;
async function sendThreshold(value) {
  wanted = value;
  changes += 1;
  if (sending) return;  // the last value wins; no more than one request at a time
  sending = true;
  while (wanted !== undefined) { const next = wanted; wanted = undefined; await setThreshold(next); }
  sending = false;
  dragging = false;
  changes += 1;
  draw();
  tellThreshold();
}

by("threshold").addEventListener("input", (event) => {
  dragging = true;
  by("threshold-value").textContent = percent(Number(event.target.value));
  draw();
  sendThreshold(Number(event.target.value));
});
by("own").addEventListener("click", () => sendThreshold(null));
by("snapshot").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = `api/streams/${selected}/snapshot.png`;
  link.download = "";
  link.click();
});
window.addEventListener("resize", draw);

ask();
watch();
