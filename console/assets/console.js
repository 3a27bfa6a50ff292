// What htmx and uPlot do not do: the stream that has the page move, times that tick, the word that says
// whether the page is live, and which series the chart has.
"use strict";

// Details that were opened stay open when the page moves.
Idiomorph.defaults.callbacks.beforeAttributeUpdated = (name, node) =>
  !(name === "open" && node.tagName === "DETAILS");

// Times that tick do not jump to when the page was made and back.
Idiomorph.defaults.callbacks.beforeNodeMorphed = (_, node) => {
  for (const element of node.querySelectorAll?.(TICKING) ?? []) write(element);
};

// The server's clock less this one's, in milliseconds. An answer that was long under way makes it too small.
let offset = -Infinity;

// The most that a clock is set by without being noticed.
const DRIFT = 5000;

function readClock() {
  const made = document.getElementById("made") ?? document.body;
  const now = Date.parse(made.dataset.made) - Date.now();
  if (now > offset || now < offset - DRIFT) offset = now;
}

// As format.rs writes them.
function duration(milliseconds) {
  const seconds = Math.floor(milliseconds / 1000);
  const minutes = Math.floor(seconds / 60), hours = Math.floor(seconds / 3600), days = Math.floor(seconds / 86400);
  if (seconds < 60) return `${seconds} s`;
  if (hours === 0) return `${minutes} min ${seconds % 60} s`;
  if (days === 0) return `${hours} h ${minutes % 60} min`;
  return `${days} d ${hours % 24} h`;
}

// As format.rs writes it: one unit is enough to say how long ago. From a month on it stays as it was made.
function ago(milliseconds) {
  const minutes = Math.floor(milliseconds / 60000), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
  if (minutes < 1) return "just now";
  if (hours < 1) return `${minutes} min ago`;
  if (days < 1) return `${hours} h ago`;
  if (days < 30) return `${days} d ago`;
}

const TICKING = "[data-running-since], time[data-ago]";

function write(element) {
  const since = Date.parse(element.dataset.runningSince ?? element.dateTime);
  const past = Date.now() + offset - since;
  const text = element.dataset.runningSince ? duration(Math.max(0, past)) : past >= 0 ? ago(past) : undefined;
  if (text && element.textContent !== text) element.textContent = text;
}

// Whether the page shows the last answer. Otherwise nothing ticks: it is unknown what still runs.
let current = true;

function tick() {
  if (!current) return;
  // What runs on a page that does not move may have ended.
  const moves = document.querySelector("[data-stream]");
  document.querySelectorAll(moves ? TICKING : "time[data-ago]").forEach(write);
}

// Whether the page's own stream is open; until it is known, as it was when the page was made.
let connected = true;

let source, watched, again;

// The stream that reports changes to the page; none while the page is hidden.
function connect() {
  const stream = document.querySelector("[data-stream]")?.dataset.stream;
  if (source && (document.hidden || stream !== watched)) {
    source.close();
    source = undefined;
  }
  if (source || document.hidden || !stream) return;
  watched = stream;
  source = new EventSource(stream);
  source.addEventListener("open", () => { connected = true; });
  source.addEventListener("change", move);
  source.addEventListener("error", () => {
    connected = false;
    // A failed request gives a better reason, at each attempt again.
    if (current) showLive(false);
    // Where the console refuses it, the browser gives up.
    if (source.readyState === EventSource.CLOSED) {
      source = undefined;
      clearTimeout(again);
      again = setTimeout(connect, 5000);
    }
  });
}

function move() {
  const moves = document.querySelector("[data-stream]");
  if (moves && !document.hidden) htmx.trigger(moves, "moved");
}

// Without events too.
let moved = Date.now();
setInterval(() => {
  const every = document.querySelector("[data-stream]")?.dataset.every ?? 15;
  if (Date.now() - moved < every * 1000) return;
  moved = Date.now();
  move();
}, 1000);

document.addEventListener("visibilitychange", () => {
  connect();
  move();
});

function showAsOf() {
  const note = document.getElementById("as-of"), made = document.getElementById("made");
  if (!note || !made) return;
  const isLive = document.getElementById("live")?.dataset.live === "true";
  note.hidden = isLive;
  note.textContent = isLive ? "" : `As of ${made.dataset.made.slice(11, 19)}`;
}

// Failures that the page has shown; those that come are said to who cannot see them.
let known;

function announce() {
  // The page of an error knows of none.
  if (!document.getElementById("made")) return;
  const failures = [...document.querySelectorAll("#activity .error .message, #history tr:has(.failed) [data-label=Execution]")]
    .map((element) => [element.closest("[id]").id, element]);
  const fresh = known ? failures.filter(([id]) => !known.has(id)) : [];
  known = new Set([...(known ?? []), ...failures.map(([id]) => id)]);
  if (fresh.length === 0) return;
  const [, first] = fresh[0];
  const text = first.matches(".message") ? first.textContent : `Execution ${first.textContent} failed`;
  document.getElementById("announced").textContent = fresh.length > 1 ? `${text}, and ${fresh.length - 1} more` : text;
}

function showLive(isLive, reason = "read again every 15 seconds") {
  const live = document.getElementById("live");
  const text = isLive ? "Live" : `Not live: ${reason}`;
  // A screen reader says again what is written again.
  if (!live || live.textContent === text) return;
  live.dataset.live = isLive;
  live.textContent = text;
  showAsOf();
}

// What the page of an error says.
function problem(response) {
  return new DOMParser().parseFromString(response, "text/html").getElementById("problem")?.textContent;
}

let plot, plotted;

// As format.rs writes what has ended, and what is between two labels of it.
const took = (seconds) => (seconds < 60 ? `${+seconds.toFixed(1)} s` : duration(seconds * 1000));
const MINUTES = 60, HOURS = 3600, DAYS = 86400;
const SPANS = [
  0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, ...[1, 2, 5, 10, 15, 30].map((n) => n * MINUTES), ...[1, 2, 3, 6, 12].map((n) => n * HOURS),
  ...[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10000, 100000, 1000000].map((n) => n * DAYS),
];

// Labels of the time axis: seconds between two, the label, and what a new year, month, day, hour and minute add.
const DAY = "{YYYY}-{MM}-{DD}", MINUTE = "{HH}:{mm}";
const TIMES = [
  [31536000, "{YYYY}", null, null, null, null, null, null, 1],
  [2419200, "{YYYY}-{MM}", null, null, null, null, null, null, 1],
  [86400, DAY, null, null, null, null, null, null, 1],
  [60, MINUTE, `\n${DAY}`, null, `\n${DAY}`, null, null, null, 1],
  [1, `${MINUTE}:{ss}`, `\n${DAY}`, null, `\n${DAY}`, null, null, null, 1],
  [0.001, "{ss}.{fff} s", `\n${DAY} ${MINUTE}`, null, `\n${DAY} ${MINUTE}`, null, `\n${MINUTE}`, null, 1],
];

// A canvas knows no variables: the color as the browser works it out.
function color(name) {
  const probe = document.body.appendChild(document.createElement("span"));
  probe.style.color = `var(${name})`;
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}

function draw() {
  const chart = document.getElementById("chart");
  if (plot && !document.contains(plot.root)) {
    plot.destroy();
    plot = plotted = undefined;
  }
  if (!chart || plotted === chart.dataset.points) return;
  plotted = chart.dataset.points;
  const points = JSON.parse(plotted);
  const of = (status) => points.map((p) => (p.status === status ? p.duration : null));
  const data = [points.map((p) => p.start), of("SUCCESS"), of("FAILED")];
  if (plot) {
    plot.setData(data);
    return;
  }
  const target = document.getElementById("plot");
  const series = (label, stroke, points) => ({
    label, stroke, width: 0, paths: () => null,
    points: { show: true, stroke, ...points },
    value: (_, value) => (value === null ? "–" : took(value)),
  });
  const good = color("--good"), bad = color("--bad");
  const axis = { stroke: color("--text"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line") } };
  plot = new uPlot({
    width: target.clientWidth, height: 180,
    legend: { markers: { show: false } },
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
    scales: { y: { range: (_, __, max) => [0, Math.max(max, 0.1) * 1.1] } },
    axes: [{ ...axis, values: TIMES }, { ...axis, size: 75, incrs: SPANS, values: (_, values) => values.map(took) }],
    series: [{ value: "{YYYY}-{MM}-{DD} {HH}:{mm}:{ss}" }, series("Succeeded after", good, { size: 7, fill: good }),
      // Rings and dots: not everybody sees the colors.
      series("Failed after", bad, { size: 11, width: 3, fill: color("--card") })],
  }, data, target);
  sized.disconnect();
  sized.observe(target);
}

const sized = new ResizeObserver(([{ target }]) => plot?.setSize({ width: target.clientWidth, height: 180 }));

// Colors of a canvas do not follow the system's.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  if (!plot) return;
  plot.destroy();
  plot = plotted = undefined;
  draw();
});

// What a page shows that has come: by itself, or in the place of an error.
function refresh() {
  readClock();
  tick();
  draw();
  connect();
  announce();
  const made = document.getElementById("made");
  if (made) showLive(connected && made.dataset.live === "true");
  showAsOf();
}

function fail(reason) {
  current = false;
  showLive(false, reason);
}

document.body.addEventListener("htmx:beforeRequest", () => { moved = Date.now(); });
document.body.addEventListener("htmx:beforeSwap", (event) => { current ||= event.detail.xhr.status === 200; });
document.body.addEventListener("htmx:afterSettle", refresh);
// Where the network is dead nothing says so: the console itself answers in less time.
for (const event of ["htmx:sendError", "htmx:timeout"])
  document.body.addEventListener(event, () => fail("the console does not answer"));
document.body.addEventListener("htmx:responseError", (event) => fail(problem(event.detail.xhr.responseText)));
refresh();
setInterval(tick, 1000);
